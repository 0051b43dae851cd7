"""Claims proved here, of `channels` in a study file: two MR sequences from files in a bucket to scores, by the stages, without Dagster.

- Intake describes and judges each channel by itself. One that is stored in another voxel order is reordered, one that lies
  elsewhere is refused.
- The dataset has the fingerprint, plans and preprocessed arrays that nnU-Net itself makes of the same files: z-score inside
  the body, since the scan around it is 0. Annotators who share statistics share images.
- Predictions are nnU-Net's own within 3e-4 on the scan's voxels, and where nnU-Net crops, background has probability 1.
- Ensembles and scores are made of them; without a CT the whole image is scored. Pictures show the first channel.
- A model is taken in as what it is, and refused if its channels are others or in another order.
- A study of one CT has the versions of before; another normalisation makes scans and datasets stale.
"""

import json
import shutil
from pathlib import Path

import blosc2
import nibabel as nib
import numpy as np
import pytest

from benchmarks.prediction import artefacts, tools_of
from curvas_assets.cohort import PatientError, read_patient
from curvas_assets.cohort.phantom import CONTRASTS, write_cohort
from curvas_assets.errors import SegmentationError
from curvas_assets.local.demo import images_of
from curvas_assets.segmentation import Predictor, adopt_model, prepare_dataset
from curvas_assets.segmentation.runtime import nnunet_folders, quiet
from curvas_assets.stages import cohort, ensemble, predict, prepare, score, table, train
from curvas_assets.stages.picture import Case, pictures
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage.layout import Cell
from curvas_assets.study import Study, load_study
from curvas_assets.voxel_order import turned_image
from curvas_assets_tests.segmentation.conftest import tiny_study
from curvas_assets_tests.stages.test_fused_labels import run
from curvas_assets_tests.stages.test_stages import NONE, no_calibrators

TRAINING, TEST = ["PHANTOM001", "PHANTOM002", "PHANTOM003"], "PHANTOM007"
REORDERED = "PHANTOM002"
"""Whose second channel is stored in another voxel order, as is that of the test patient."""
EMPTY = 4
"""Slices at either end of the test patient that no sequence covers; the second covers fewer still."""


def study_of(**changed) -> Study:
    raw = tiny_study(epochs=1, iterations_per_epoch=2).model_dump(mode="json", exclude={"image", "channels"})
    del raw["evaluation"]["region"]
    raw |= {"seeds": [7, 8], "annotators": raw["annotators"][:1], "ensembles": {}}
    raw["plans"] |= {"spacing_mm": [9, 6, 7]}
    raw["prediction"]["mirroring"] = False
    channels = [{"name": "T1", "file": "t1.nii.gz"}, {"name": "T2", "file": "t2.nii.gz"}]
    return Study.model_validate(raw | {"channels": channels} | changed)


STUDY = study_of()
MODELS = [str(model) for model in STUDY.models]


def resave(path: Path, order: str = "LPS", empty: int = 0) -> None:
    image = nib.Nifti1Image.from_filename(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[..., :empty] = voxels[..., voxels.shape[2] - empty :] = 0
    nib.save(turned_image(image, order, voxels), path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The patients with every file in LPS, as nnU-Net itself gets them."""
    folder = tmp_path_factory.mktemp("plain")
    write_cohort(
        folder, patients=[*TRAINING, TEST], shape=(24, 36, 40), spacing_mm=(9, 8, 8), annotators=1, seed=5,
        images=images_of(STUDY),
    )  # fmt: skip
    for number, file in enumerate(STUDY.image_files):
        resave(folder / TEST / file, empty=EMPTY + number)
    return folder


@pytest.fixture(scope="module")
def patients(plain, tmp_path_factory) -> Path:
    folder = shutil.copytree(plain, tmp_path_factory.mktemp("patients") / "data")
    resave(folder / REORDERED / "t2.nii.gz", "RAS")
    resave(folder / TEST / "t2.nii.gz", "PIR")
    return folder


@pytest.fixture(scope="module")
def tools(patients, tmp_path_factory) -> Toolkit:
    """A bucket in which every stage has run."""
    made = tools_of(STUDY, tmp_path_factory.mktemp("study"))
    for path in sorted(patients.rglob("*.nii.gz")):
        made.objects.upload(made.layout.patient_file(path.parent.name, path.name), path)
    run(cohort.take_in, cohort.SCAN_CHECKS, made, [*TRAINING, TEST])
    scan, softmax = artefacts(made, table.SCAN, [*TRAINING, TEST]), [str(Cell(model, TEST)) for model in MODELS]
    run(cohort.select_test_scans, cohort.TEST_SCAN_CHECKS, made, [TEST], scan=scan)
    taken = artefacts(made, table.SCAN, TRAINING)
    run(prepare.select_training_cases, prepare.CASES_CHECKS, made, ["anno1"], scan=taken)
    cases = artefacts(made, table.TRAINING_CASES, ["anno1"])
    run(prepare.prepare_datasets, prepare.CHECKS, made, ["anno1"], training_cases=cases)
    dataset = artefacts(made, table.PREPROCESSED_DATASET, ["anno1"])
    run(train.train_models, train.CHECKS, made, MODELS, preprocessed_dataset=dataset)
    models, bridge = artefacts(made, table.TRAINED_MODEL, MODELS), artefacts(made, table.TEST_SCAN, [TEST])
    run(predict.predict, predict.CHECKS, made, softmax, trained_model=models, test_scan=bridge)
    return made


@pytest.fixture(scope="module")
def dataset(tools, tmp_path_factory) -> Path:
    return artefacts(tools, table.PREPROCESSED_DATASET, ["anno1"])["anno1"].folder(tmp_path_factory.mktemp("d") / "d")


@pytest.fixture(scope="module")
def model(tools, tmp_path_factory) -> Path:
    return artefacts(tools, table.TRAINED_MODEL, MODELS)[MODELS[0]].folder(tmp_path_factory.mktemp("m") / "m")


def test_intake_describes_each_channel_and_reorders_what_is_stored_otherwise(plain, patients, tools, tmp_path):
    record = artefacts(tools, table.SCAN, [TEST])[TEST].record()
    sequences = record["facts"]["channels"]
    assert list(sequences) == ["T1", "T2"]
    assert sequences["T1"]["range"][0] == 0
    assert {"body_region", "hu_range"} & {*record["facts"], *sequences["T1"]} == set()
    assert {file["name"]: file.get("channel") for file in record["files"]} == {
        "t1.nii.gz": "T1", "t2.nii.gz": "T2", "annotation_1.nii.gz": None}  # fmt: skip
    assert record["warnings"] == [
        "t2.nii.gz is stored in the voxel order PIR, t1.nii.gz in LPS: it was reordered, and every voxel stays at its place"
    ]
    for name in (REORDERED, TEST):
        one, other = read_patient(plain / name, STUDY), read_patient(patients / name, STUDY)
        assert len(one.channels) == 2
        for stored, turned in zip(one.channels, other.channels, strict=True):
            np.testing.assert_array_equal(stored, turned)
    shown, _ = pictures(tools, [Case(TEST, "typical")], MODELS[0], tmp_path)
    np.testing.assert_array_equal(shown[0].image, one.scan[shown[0].z])
    assert (shown[0].channel, shown[0].window[0]) == ("T1", 0)


def test_a_channel_that_lies_elsewhere_or_tells_nothing_is_told(plain, tmp_path):
    folder = shutil.copytree(plain / TEST, tmp_path / TEST)
    image = nib.load(folder / "t2.nii.gz")
    nib.save(nib.Nifti1Image(np.full(image.shape, 3, np.int16), image.affine), folder / "t2.nii.gz")
    assert read_patient(folder, STUDY).warnings == ("T2: every voxel of this channel is 3",)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), folder / "t2.nii.gz")
    with pytest.raises(
        PatientError, match=r"comparing t2.nii.gz with t1.nii.gz .* the channel has .* Resample the channel"
    ):
        read_patient(folder, STUDY)
    with pytest.raises(SegmentationError, match=r"comparing t2.nii.gz with t1.nii.gz .* the channel has"):
        Predictor(STUDY).open([folder / file for file in STUDY.image_files], TEST)
    with pytest.raises(SegmentationError, match=r"1 images, and the study has 2: T1, T2"):
        Predictor(STUDY).open(folder / "t1.nii.gz", TEST)
    (folder / "t2.nii.gz").unlink()
    with pytest.raises(PatientError, match=r"t2.nii.gz missing"):
        read_patient(folder, STUDY)


def test_the_dataset_is_that_of_nnunet_itself(plain, dataset, tmp_path):
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    ours = {
        name: json.loads((dataset / f"{name}.json").read_text())
        for name in ("dataset", "dataset_fingerprint", "nnUNetPlans")
    }
    assert ours["dataset"]["channel_names"] == {"0": "T1", "1": "T2"}
    files = {p: [str(plain / p / file) for file in STUDY.image_files] for p in TRAINING}
    labels = {p: str(plain / p / "annotation_1.nii.gz") for p in TRAINING}
    number = int(STUDY.plans.intensity_samples // 3)
    cases = [DatasetFingerprintExtractor.analyze_case(files[p], labels[p], SimpleITKIO, number) for p in TRAINING]
    fingerprint = ours["dataset_fingerprint"]
    assert fingerprint["shapes_after_crop"] == [list(shape) for shape, *_ in cases]
    assert fingerprint["median_relative_size_after_cropping"] == np.median([relative for *_, relative in cases]) < 0.75
    for channel in (0, 1):
        drawn = np.concatenate([intensities[channel] for _, _, intensities, _, _ in cases])
        found = fingerprint["foreground_intensity_properties_per_channel"][str(channel)]
        assert (found["mean"], found["std"]) == (float(np.mean(drawn)), float(np.std(drawn)))
        assert found["percentile_99_5"] == np.percentile(drawn, 99.5)
    with nnunet_folders(raw=tmp_path / "raw", preprocessed=tmp_path / "made", results=tmp_path / "results"), quiet():
        for folder in ("raw", "made"):
            (tmp_path / folder / "Dataset001_own").mkdir(parents=True)
        named = {p: {"images": files[p], "label": labels[p]} for p in TRAINING}
        stock = ours["dataset"] | {"dataset": named, "overwrite_image_reader_writer": "SimpleITKIO"}
        (tmp_path / "raw/Dataset001_own/dataset.json").write_text(json.dumps(stock))
        (tmp_path / "made/Dataset001_own/dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        planned = ExperimentPlanner(1, overwrite_target_spacing=[9.0, 6.0, 7.0]).plan_experiment()
    settings = ours["nnUNetPlans"]["configurations"]["3d_fullres"]
    for name in ("normalization_schemes", "use_mask_for_norm", "spacing", "resampling_fn_data_kwargs"):
        assert settings[name] == json.loads(json.dumps(planned["configurations"]["3d_fullres"][name], default=list))
    assert (settings["normalization_schemes"], settings["use_mask_for_norm"]) == (
        ["ZScoreNormalization"] * 2,
        [True] * 2,
    )
    plans = PlansManager(ours["nnUNetPlans"])
    for p in TRAINING:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(tmp_path / p), files[p], labels[p], plans, plans.get_configuration("3d_fullres"), ours["dataset"]
        )
        for name in (f"{p}.b2nd", f"{p}_seg.b2nd"):
            theirs, own = (blosc2.open(str(f / name))[:] for f in (tmp_path, dataset / "nnUNetPlans_3d_fullres"))
            assert own.tobytes() == theirs.tobytes()
            assert own.shape[0] == (1 if "seg" in name else 2)
            assert "seg" not in name or -1 in own


def test_a_prediction_is_nnunets_own_and_background_where_it_crops(plain, tools, model):
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with nnunet_folders(), quiet():
        stock = nnUNetPredictor(
            use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
        )
        stock.initialize_from_trained_model_folder(
            str(model), use_folds=("all",), checkpoint_name="checkpoint_best.pth"
        )
        images, properties = SimpleITKIO().read_images([str(plain / TEST / file) for file in STUDY.image_files])
        labels, theirs = stock.predict_single_npy_array(images, properties, None, None, True)
    volume = artefacts(tools, table.SOFTMAX, [str(Cell(MODELS[0], TEST))])[str(Cell(MODELS[0], TEST))].volume()
    ours = volume.slab(0, volume.shape[1])
    assert np.abs(ours - theirs).max() <= 3e-4
    assert (ours.argmax(axis=0) == labels).mean() >= 0.9999
    seen = np.flatnonzero((images != 0).any(axis=(0, 2, 3)))
    assert (seen[0], seen[-1]) == (EMPTY, images.shape[1] - EMPTY - 1)
    outside = np.ones(images.shape[1], bool)
    outside[seen[0] : seen[-1] + 1] = False
    assert (ours[0, outside] == 1).all()
    assert ours[0, ~outside].min() < 0.9  # the network says something inside, else this proves nothing


def test_ensembles_and_scores_are_made_of_channels(tools):
    softmax = artefacts(tools, table.SOFTMAX, [str(Cell(name, TEST)) for name in MODELS])
    means = [str(Cell(str(one), TEST)) for one in STUDY.ensemble_ids]
    assert means
    run(ensemble.build_ensembles, ensemble.CHECKS, tools, means, softmax=softmax, variant_softmax=NONE)
    scored, _ = run(
        score.score_patients, score.CHECKS, tools, [TEST], softmax=softmax, variant_softmax=NONE,
        ensemble_softmax=artefacts(tools, table.ENSEMBLE_SOFTMAX, means), calibrators=no_calibrators(tools.objects),
        scan=artefacts(tools, table.SCAN, [TEST]),
    )  # fmt: skip
    assert scored[TEST].metadata["predictors"] == len(STUDY.predictors)
    merged, _ = score.merge_scores(tools, artefacts(tools, table.SCORES, [TEST]))
    assert set(merged["predictor"]) == set(STUDY.predictors)


def test_a_model_is_taken_in_unless_its_channels_are_others(model, tmp_path):
    name = MODELS[0]
    adopted = adopt_model(STUDY, name, model, tmp_path / "same")
    assert adopted.normalisation == "ZScoreNormalization, ZScoreNormalization"
    turned = study_of(channels=[channel.model_dump() for channel in reversed(STUDY.channels)])
    with pytest.raises(
        SegmentationError, match=r"a patient here has T2, T1: 'T1' in place of T2, 'T2' in place of T1.*in this order"
    ):
        adopt_model(turned, name, model, tmp_path / "turned")
    alone = study_of(channels=[STUDY.channels[0].model_dump()])
    with pytest.raises(SegmentationError, match=r"its channels are .*T2.*, and a patient here has one image"):
        adopt_model(alone, name, model, tmp_path / "alone")


def test_annotators_who_share_statistics_share_images_also_inside_a_mask(plain, tmp_path):
    raw = STUDY.model_dump(mode="json")
    raw["plans"]["shared_intensity_statistics"] = True
    study, made = Study.model_validate(raw), []
    for number in (1, 2):  # the second drew half, and something beside the body
        drawn = {}
        for p in TRAINING[:2]:
            label = nib.load(plain / p / "annotation_1.nii.gz")
            voxels = np.asarray(label.dataobj).copy()
            if number == 2:
                voxels[::2] = 0
                voxels[4, 9, 10:14] = 1
            nib.save(nib.Nifti1Image(voxels, label.affine), tmp_path / f"{p}_{number}.nii.gz")
            drawn[p] = [plain / p / "t1.nii.gz", plain / p / "t2.nii.gz", tmp_path / f"{p}_{number}.nii.gz"]
        made.append(drawn)
    everybody = {p: [of[p][2] for of in made] if len(made) > 1 else [] for p in TRAINING[:2]}
    for number, drawn in enumerate(made):
        prepare_dataset(study, f"anno{number}", drawn, tmp_path / str(number), all_annotations=everybody)
    for p in TRAINING[:2]:
        one, other = (blosc2.open(str(tmp_path / n / f"nnUNetPlans_3d_fullres/{p}.b2nd"))[:] for n in ("0", "1"))
        assert one.tobytes() == other.tobytes()


def test_what_channels_change_is_stale_and_a_ct_alone_is_as_before():
    other = study_of(
        channels=[STUDY.channels[0].model_dump(), {"name": "T2", "file": "t2.nii.gz", "normalisation": "none"}]
    )
    changed = [row.name for row in table.ASSETS if row.version(STUDY) != row.version(other)]
    assert changed == ["scan", "training_cases", "preprocessed_dataset", "figures", "report"]
    phantom = load_study("phantom")
    assert (
        table.SCAN.version(phantom) == f"2-{phantom.fingerprint('image', 'annotators', 'organs', 'patients', 'intake')}"
    )
    assert set(images_of(STUDY).values()) == set(CONTRASTS)
