"""Claims proved here, with tiny networks on the CPU, exported from a bucket and run by the container's own program.

- Labels and confidences are those of the volumes that the platform's stages store: of a model, an ensemble of annotators, of flips,
  of snapshots, and of what is calibrated by a temperature and by isotonic curves. From NIfTI they are equal to the bit, from
  MetaImage within 3e-4.
- So they are if the scan comes in another voxel order (sagittal, RAS), on the scan's own voxels, with the geometry that ITK reads.
- The program runs without Dagster and without a store; its check loads every model, and refuses one that is damaged.
- The label map holds the values of the record, 16 bits wide if one needs them; the sockets are those that were asked for.
- An export holds no patient and no annotator's file, and of weights only those that predict; it replaces an earlier export, also
  one that was cut off, which nothing reads, and refuses a folder that holds anything else.
- Every model is rehearsed, also where variants of it alone are members. Two results never share a file.
- No scan, two scans, one that is damaged, has four axes or colours, no record, a record of another format, a model that is
  gone, and names that are none are each refused in our own words, and nothing is written.
- One preprocessed scan is held at a time, however many preprocessings the members have.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from benchmarks import prediction as benchmark
from curvas_assets.calibration import CalibratedVolume, calibrator_of
from curvas_assets.errors import MissingArtefactError, StudyError
from curvas_assets.orchestration.operations.export_submission import export_submission
from curvas_assets.segmentation import Predictor
from curvas_assets.stages import cohort, ensemble, predict, table
from curvas_assets.stages.calibrated import base_of
from curvas_assets.stages.checks import StepChecks
from curvas_assets.stages.stored import Stored
from curvas_assets.storage import directories, tables
from curvas_assets.storage.layout import Cell, patient_by_patient
from curvas_assets.storage.softmax import open_softmax
from curvas_assets.study import Study, load_study
from curvas_assets.submission import RECORD_FILE, Sockets
from curvas_assets.submission.__main__ import main

RAW = load_study("phantom").model_dump(mode="json")
ONE, TWO = "anno1_init1_foldall", "anno2_init1_foldall"
STUDY = Study.model_validate(
    RAW
    | {"seeds": [1], "annotators": RAW["annotators"][:2], "groups": {}, "in_distribution_group": None}
    | {"sets": {"train": [1], "validation": [4], "test": [7, 8, 9]}}
    | {"plans": RAW["plans"] | {"patch_size": [16, 24, 24], "features_per_stage": [4, 8, 16]}}
    | {"training": RAW["training"] | {"mirroring": True, "snapshots": 1, "epochs": 4}}
    | {"cheap_ensembles": {"flips": [ONE], "snapshots": [ONE]}}
    | {"calibrated": {"temperature": [ONE], "isotonic": ["ensemble_all"]}}
)
ORDERS = {"PHANTOM007": None, "PHANTOM008": "PIR", "PHANTOM009": "RAS"}
FLIPS, SNAPSHOTS = "ensemble_flips-anno1-1", "ensemble_snapshots-anno1-1"
CURVE = {"probability": [0.1, 0.3, 0.6], "response": [0.0, 0.45, 0.9]}
CALIBRATORS = {
    f"temperature_{ONE}": {"method": "temperature", "temperature": 1.7},
    "isotonic_ensemble_all": {"method": "isotonic", "curves": dict.fromkeys(STUDY.organs, CURVE)},
}
EVERYTHING = [ONE, "ensemble_all", FLIPS, SNAPSHOTS, *CALIBRATORS]
CASES = [
    *(("PHANTOM007", one, ".nii.gz") for one in EVERYTHING),
    ("PHANTOM007", "isotonic_ensemble_all", ".mha"),
    ("PHANTOM008", ONE, ".mha"),
    ("PHANTOM008", "isotonic_ensemble_all", ".nii.gz"),
    ("PHANTOM009", ONE, ".nii.gz"),
    ("PHANTOM009", "isotonic_ensemble_all", ".mha"),
]


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """A folder with the scans, and a bucket with what the stages make of them."""
    folder = tmp_path_factory.mktemp("platform")
    benchmark.set_up(folder, STUDY, (20, 40, 36), (9, 6.5, 7))
    tools = benchmark.tools_of(STUDY, folder)
    for patient, order in ORDERS.items():
        for path in (folder / "tests" / patient).glob("*.nii.gz"):
            image = nib.load(path)
            if order:
                image = nib.as_closest_canonical(image) if order == "RAS" else _reordered(image, order)
                nib.save(image, path)
            tools.objects.upload(tools.layout.patient_file(patient, path.name), path)
    patients = list(ORDERS)
    dict(cohort.take_in(tools, patients, StepChecks(*cohort.SCAN_CHECKS)))
    scans = benchmark.artefacts(tools, table.SCAN, patients)
    dict(cohort.select_test_scans(tools, patients, StepChecks(*cohort.TEST_SCAN_CHECKS), scan=scans))
    for number, model in enumerate(STUDY.models):
        _train(benchmark.results_of(folder, number), number)
        key = tools.layout.model(str(model))
        directories.write_directory(tools.objects, key, benchmark.results_of(folder, number))
    tables.write_json(tools.objects, tools.layout.calibrators(), {"calibrators": CALIBRATORS})
    _predict(tools)
    return folder


def _reordered(image, order):
    wanted = nib.orientations.axcodes2ornt(order)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))


def _train(model, seed):
    """Weights that predict something, a snapshot, mirroring, and a record with names that must not go along."""
    best = model / "fold_all/checkpoint_best.pth"
    state = torch.load(best, weights_only=True)
    for name, shift in ((best.name, 0), ("checkpoint_snapshot1.pth", 10)):
        torch.manual_seed(seed + shift)
        weights = {one: w + 0.1 * torch.randn(w.shape) for one, w in state["network_weights"].items()}
        changed = state | {"network_weights": weights, "inference_allowed_mirroring_axes": (0, 1, 2)}
        torch.save(changed, model / "fold_all" / name)
    (model / "training.json").write_text(json.dumps({"trained_on": ["PHANTOM001"]}))
    dataset = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps(dataset | {"fused_labels": {"PHANTOM001": ["anno1"]}}))


def _predict(tools):
    """Volumes of all models, of patient 7 also of variants, and ensembles, by the stages."""
    of = partial(benchmark.artefacts, tools)
    cells = patient_by_patient(str(Cell(str(model), patient)) for model in STUDY.models for patient in ORDERS)
    variants = [str(Cell(str(variant), "PHANTOM007")) for variant in STUDY.variants]
    scans, checks = of(table.TEST_SCAN, list(ORDERS)), StepChecks(*predict.CHECKS)
    models = of(table.TRAINED_MODEL, [ONE, TWO])
    ensembles = [str(Cell("ensemble_all", patient)) for patient in ORDERS]
    ensembles += [str(Cell(name, "PHANTOM007")) for name in (FLIPS, SNAPSHOTS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "preview_softmax", lambda volume, title: None)
        outcomes = dict(predict.predict(tools, cells, checks, trained_model=models, test_scan=scans))
        softmax = of(table.SOFTMAX, cells)
        outcomes |= predict.predict_variants(tools, variants, checks, softmax=softmax, test_scan=scans)
        variant_softmax = of(table.VARIANT_SOFTMAX, variants)
        for patient in ORDERS:
            its_own = [cell for cell in ensembles if Cell.of(cell).patient == patient]
            checks = StepChecks(*ensemble.CHECKS)
            outcomes |= ensemble.build_ensembles(
                tools, its_own, checks, softmax=softmax, variant_softmax=variant_softmax
            )
    assert {cell: one for cell, one in outcomes.items() if not isinstance(one, Stored)} == {}


@pytest.fixture(scope="module")
def exported(platform, tmp_path_factory):
    """Predictor → the folder of its submission, exported once."""
    tools, made = benchmark.tools_of(STUDY, platform), {}

    def folder_of(predictor):
        if predictor not in made:
            made[predictor] = tmp_path_factory.mktemp("export") / "submission"
            export_submission(tools.objects, tools.layout, STUDY, predictor, made[predictor], lambda _: None)
        return made[predictor]

    return folder_of


def stored(platform, patient, predictor):
    """What the platform has: probabilities (C, Z, Y, X) and labels."""
    tools = benchmark.tools_of(STUDY, platform)
    calibrated = predictor in CALIBRATORS
    key = tools.layout.softmax(patient, base_of(predictor) if calibrated else predictor)
    volume = open_softmax(tools.objects, key)
    if calibrated:
        volume = CalibratedVolume(volume, calibrator_of(CALIBRATORS[predictor], predictor))
    return volume.slab(0, volume.shape[1]), volume.labels(0, volume.shape[1])


def given(platform, patient, folder, suffix=".nii.gz"):
    """The challenge's input: the patient's scan alone."""
    at = folder / "input/images/thoracic-abdominal-ct"
    at.mkdir(parents=True)
    source = platform / "tests" / patient / STUDY.image
    if suffix == ".nii.gz":
        shutil.copyfile(source, at / "some-uuid.nii.gz")
    else:
        sitk.WriteImage(sitk.ReadImage(str(source)), str(at / f"some-uuid{suffix}"), useCompression=True)
    return next(at.iterdir())


def run(models, folder, *more):
    return main(["--models", str(models), "--input", str(folder / "input"), "--output", str(folder / "output"), *more])


def read(folder, socket):
    return sitk.ReadImage(str(folder / "output/images" / socket / "output.mha"))


@pytest.mark.parametrize(("patient", "predictor", "suffix"), CASES)
def test_the_program_answers_what_the_platform_has_stored(platform, exported, tmp_path, patient, predictor, suffix):
    image = given(platform, patient, tmp_path, suffix)
    assert run(exported(predictor), tmp_path) == 0
    softmax, labels = stored(platform, patient, predictor)
    assert len(np.unique(labels)) > 1
    like, drawn = sitk.ReadImage(str(image)), read(tmp_path, "abdominal-organ-segmentation")
    for c, organ in enumerate(STUDY.class_names[1:], 1):
        answer = read(tmp_path, f"{organ}-confidence")
        confidence = sitk.GetArrayFromImage(answer)
        assert confidence.dtype == np.float32
        assert np.abs(confidence - softmax[c]).max() <= (0 if suffix == ".nii.gz" else 3e-4)
        assert np.ptp(softmax[c]) > 0.01
        for fact in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(answer, fact)(), getattr(like, fact)(), rtol=0, atol=1e-6), fact
    found = sitk.GetArrayFromImage(drawn)
    assert found.dtype == np.uint8
    sure = np.sort(softmax, axis=0)[-1] - np.sort(softmax, axis=0)[-2] > 1e-3
    assert np.array_equal(found[sure], labels[sure])
    assert suffix == ".mha" or np.array_equal(found, labels)
    assert np.allclose(drawn.GetDirection(), like.GetDirection(), rtol=0, atol=1e-6)


def test_the_scans_are_in_the_orders_that_the_claim_names(platform):
    found = {p: nib.aff2axcodes(nib.load(platform / "tests" / p / STUDY.image).affine) for p in ORDERS}
    assert {"".join(order) for order in found.values()} == {"LPS", "PIR", "RAS"}


def test_it_runs_without_dagster_and_without_a_store(platform, exported, tmp_path):
    given(platform, "PHANTOM007", tmp_path)
    code = (
        "import sys; from curvas_assets.submission.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 10 * ('dagster' in sys.modules))"
    )
    options = ["--models", exported(ONE), "--input", tmp_path / "input", "--output", tmp_path / "output"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(benchmark.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, options)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"1 of 1, {ONE}: predicted on" in done.stdout
    assert (tmp_path / "output/images/liver-confidence/output.mha").is_file()


def test_the_check_loads_every_model_and_writes_nothing(exported, tmp_path, capsys):
    whole = shutil.copytree(exported("isotonic_ensemble_all"), tmp_path / "whole")
    assert run(whole, tmp_path, "--check") == 0
    assert f"{TWO}: loaded" in capsys.readouterr().out
    assert not (tmp_path / "output").exists()
    (whole / "models" / TWO / "fold_all/checkpoint_best.pth").write_bytes(b"no weights")
    assert run(whole, tmp_path, "--check") == 1
    assert f"{TWO}: loading the model failed" in capsys.readouterr().err


def test_each_model_is_rehearsed_also_where_variants_alone_predict(exported, tmp_path, monkeypatch):
    rehearsed: list[str] = []
    monkeypatch.setattr(Predictor, "rehearse", lambda _, folder, scratch: rehearsed.append(folder.name))
    assert run(exported(FLIPS), tmp_path, "--check") == 0
    assert rehearsed == [ONE]


def test_the_label_map_holds_the_records_values_in_the_sockets_that_were_asked_for(platform, exported, tmp_path):
    models = shutil.copytree(exported(ONE), tmp_path / "models")
    record = json.loads((models / RECORD_FILE).read_text())
    values = dict(zip(STUDY.class_names[1:], (7, 300, 2), strict=True))
    record["label_values"] = values
    record["sockets"] = {"image": "ct", "labels": "map", "confidence": "p-{organ}"}
    (models / RECORD_FILE).write_text(json.dumps(record))
    image = given(platform, "PHANTOM007", tmp_path)
    image.parent.rename(image.parent.with_name("ct"))
    assert run(models, tmp_path) == 0
    assert {path.name for path in (tmp_path / "output/images").iterdir()} == {"map", *(f"p-{one}" for one in values)}
    found = sitk.GetArrayFromImage(read(tmp_path, "map"))
    assert found.dtype == np.uint16
    _, labels = stored(platform, "PHANTOM007", ONE)
    assert np.array_equal(found, np.array([0, *values.values()])[labels])


def test_an_export_holds_what_predicts_and_no_people(platform, exported, tmp_path):
    folder = exported(SNAPSHOTS)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weights = {f"models/{ONE}/fold_all/checkpoint_{name}.pth" for name in ("best", "snapshot1")}
    assert files == {RECORD_FILE, f"models/{ONE}/plans.json", f"models/{ONE}/dataset.json", *weights}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
    assert not {"checkpoint_snapshot1.pth"} & {path.name for path in exported(FLIPS).rglob("*")}
    text = "".join(path.read_text() for path in folder.rglob("*.json"))
    people = [*ORDERS, "PHANTOM001", "PHANTOM004", *(a.file for a in STUDY.annotators if a.file not in ("annotation",))]
    assert [name for name in people if name in text] == []
    record = json.loads((folder / RECORD_FILE).read_text())
    assert record["members"] == [ONE, f"{ONE}_snapshot1"]
    assert list(record["made_of"]["models"]) == [ONE]


def test_an_export_replaces_an_earlier_one_and_nothing_else(platform, tmp_path):
    tools = benchmark.tools_of(STUDY, platform)
    export = partial(export_submission, tools.objects, tools.layout, STUDY, tell=lambda _: None)
    export("ensemble_all", folder=tmp_path / "a")
    export(TWO, folder=tmp_path / "a")
    assert [path.name for path in (tmp_path / "a/models").iterdir()] == [TWO]
    (tmp_path / "a/notes.txt").write_text("mine")
    with pytest.raises(StudyError, match=r"notes\.txt, which is no earlier export"):
        export(ONE, folder=tmp_path / "a")
    assert [path.name for path in (tmp_path / "a/models").iterdir()] == [TWO]
    with pytest.raises(MissingArtefactError, match="holds no calibrator of temperature_ensemble_all"):
        export("temperature_ensemble_all", folder=tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(StudyError, match=r"no ensemble 'none'"):
        export("ensemble_none", folder=tmp_path / "b")
    (tmp_path / "c/models").mkdir(parents=True)
    (tmp_path / "c" / RECORD_FILE).write_text('{"team": "somebody else"}')
    with pytest.raises(StudyError, match=r"models, submission\.json, which is no earlier export"):
        export(ONE, folder=tmp_path / "c")
    assert (tmp_path / "c/models").is_dir()


def test_an_export_that_was_cut_off_is_not_read_and_is_made_again(platform, tmp_path, capsys):
    tools, folder = benchmark.tools_of(STUDY, platform), tmp_path / "a"
    export = partial(export_submission, tools.objects, tools.layout, STUDY, "ensemble_all", folder)

    def cut(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(cut)
    assert [path.name for path in (folder / "models").iterdir()] == [ONE]
    given(platform, "PHANTOM007", tmp_path)
    assert run(folder, tmp_path) == 1
    assert "its format is 'curvas-submission-unfinished'" in capsys.readouterr().err
    mask = os.umask(0o077)
    try:
        export(lambda _: None)
    finally:
        os.umask(mask)
    assert {path.name for path in (folder / "models").iterdir()} == {ONE, TWO}
    modes = {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*")) if path.is_dir()}
    assert modes == {0o755}, "the container's user is another one"


def test_results_that_would_be_one_file_are_refused_before_the_export(platform, tmp_path):
    tools, sockets = benchmark.tools_of(STUDY, platform), Sockets(labels="liver-confidence")
    with pytest.raises(StudyError, match="would both be liver-confidence"):
        export_submission(tools.objects, tools.layout, STUDY, ONE, tmp_path / "a", lambda _: None, sockets=sockets)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("sockets", "says"),
    [
        ({"image": "a/b"}, "'a/b' is no folder name"),
        ({"labels": ".."}, "'..' is no folder name"),
        ({"confidence": "confidence"}, "does not say where the organ's name stands"),
    ],
)
def test_names_that_are_none_are_refused(sockets, says):
    with pytest.raises(StudyError, match=says):
        Sockets(**sockets)


def _two(image):
    shutil.copyfile(image, image.with_name("another.mha"))


def _of(voxels):
    def write(image):
        image.unlink()
        sitk.WriteImage(voxels, str(image.with_name("some-uuid.mha")))

    return write


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda image: image.unlink(), "holds nothing: 0 images"),
        (_two, "another.mha, some-uuid.mha: 2 images"),
        (lambda image: image.rename(image.with_suffix(".tiff")), "some-uuid.tiff: 0 images"),
        (lambda image: shutil.rmtree(image.parent), "there is no folder"),
        (lambda image: image.write_bytes(b"ObjectType = Image"), "ITK cannot read it"),
        (lambda image: image.write_bytes(image.read_bytes()[:-500]), "ITK cannot read it"),
        (lambda image: image.rename(image.with_suffix(".nii.gz")), "it is no NIfTI file"),
        (_of(sitk.Image([4, 4], sitk.sitkInt16)), "not three axes"),
        (_of(sitk.Image([4, 4, 4, 4], sitk.sitkInt16)), "not three axes"),
        (_of(sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3)), "of 3 numbers each"),
    ],
)
def test_what_is_no_scan_is_refused_and_nothing_is_written(platform, exported, tmp_path, capfd, spoil, says):
    spoil(given(platform, "PHANTOM007", tmp_path, ".mha"))
    assert run(exported(ONE), tmp_path) == 1
    told = capfd.readouterr().err
    assert says in told
    assert "reading the scan failed" in told
    assert not (tmp_path / "output").exists()


def _one_file_for_two(folder):
    record = json.loads((folder / RECORD_FILE).read_text())
    record["sockets"]["labels"] = "kidney-confidence"
    (folder / RECORD_FILE).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_one_file_for_two, "would both be kidney-confidence"),
        (lambda folder: (folder / RECORD_FILE).unlink(), "no submission.json"),
        (lambda folder: (folder / RECORD_FILE).write_text("{"), "cannot be read"),
        (lambda folder: (folder / RECORD_FILE).write_text('{"format": "next"}'), "its format is 'next'"),
        (lambda folder: shutil.rmtree(folder / "models" / ONE), f"no folder models/{ONE}"),
    ],
)
def test_what_is_no_submission_is_refused(platform, exported, tmp_path, capsys, spoil, says):
    models = shutil.copytree(exported(ONE), tmp_path / "models")
    spoil(models)
    given(platform, "PHANTOM007", tmp_path)
    assert run(models, tmp_path) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_one_preprocessed_scan_is_held_at_a_time(platform, exported, tmp_path, monkeypatch):
    models = shutil.copytree(exported("ensemble_all"), tmp_path / "models")
    plans = json.loads((models / "models" / TWO / "plans.json").read_text())
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 20
    (models / "models" / TWO / "plans.json").write_text(json.dumps(plans))
    held, original = [], Predictor.predict

    def counted(self, scan, folder, **more):
        prediction = original(self, scan, folder, **more)
        held.append(list(scan.preprocessed))
        return prediction

    monkeypatch.setattr(Predictor, "predict", counted)
    given(platform, "PHANTOM007", tmp_path)
    assert run(models, tmp_path) == 0
    assert [len(one) for one in held] == [1, 1]
    assert held[0] != held[1]
