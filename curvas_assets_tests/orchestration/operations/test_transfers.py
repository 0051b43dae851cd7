"""Claims proved here, against a real S3 server.

- A folder of patients is uploaded; one that is damaged is refused before its first byte, and the others go on.
- Whatever a file does to a reader, its patient alone is refused; a table at the end says who and why.
- An upload is resumable: what stands there with the same bytes is not sent again, one changed file is; large files too.
- A patient whose folder in the bucket has another spelling is not doubled.
- A dataset comes down as it went up, and a second download fetches nothing; folder artefacts come down verified.
- A prediction comes down with its label map as NIfTI on the scan's voxels, and with probabilities if they are asked for; made
  again, it brings the new ones. `all` tells once, not for each training patient, that these are not predicted.
- What is not in the bucket is told, and does not stop the rest; neither does what is damaged, or named to lead out of the
  folder, of which nothing is written.
- Names with spaces and letters of other scripts come down as they are.
"""

import shutil
import sys

import nibabel as nib
import numpy as np
import pytest

from curvas_assets.cohort import read_patient
from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.errors import PatientError, StudyError
from curvas_assets.geometry import Grid
from curvas_assets.orchestration.operations.download import download
from curvas_assets.orchestration.operations.transfer import PART, same_content
from curvas_assets.orchestration.operations.upload_patients import upload_patients
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects, ObjectInfo
from curvas_assets.storage.softmax import SoftmaxWriter
from curvas_assets.study import Study, load_study
from curvas_assets_tests.cohort.volumes import edit

STUDY = load_study("phantom")
LAYOUT = Layout()
PATIENTS = ["PHANTOM001", "PHANTOM007", "PHANTOM008"]


@pytest.fixture
def cohort(tmp_path):
    folder = tmp_path / "cohort"
    write_cohort(folder, patients=PATIENTS, shape=(12, 40, 40), spacing_mm=(10, 8, 8), seed=3)
    return folder


@pytest.fixture
def objects(s3_store):
    return MeteredObjects(s3_store)


def upload(objects, folder, *asked):
    told = []
    return upload_patients(objects, LAYOUT, STUDY, folder, asked or ["all"], told.append), told


def test_patients_are_uploaded_and_a_damaged_one_is_refused_whole(objects, cohort):
    broken = cohort / "PHANTOM007/annotation_2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-30])
    done, told = upload(objects, cohort)
    assert done.uploaded == ["PHANTOM001", "PHANTOM008"]
    assert list(done.refused) == ["PHANTOM007"]
    assert "annotation_2.nii.gz" in done.refused["PHANTOM007"]
    assert not list(objects.list("data/PHANTOM007/"))
    assert len(list(objects.list("data/"))) == 8
    assert any("3 of 3, PHANTOM008: 4 of 4 files uploaded" in line for line in told)


def test_no_file_of_one_patient_stops_the_others(tmp_path, monkeypatch):
    folder, store = tmp_path / "cohort", FolderObjects(tmp_path / "bucket")
    names = [f"PHANTOM00{k}" for k in range(1, 8)]
    first, *others = write_cohort(folder, patients=names[:1], shape=(6, 12, 12), spacing_mm=(20, 30, 30), seed=3)
    others = [shutil.copytree(first, folder / name) for name in names[1:]]
    spoilt = dict(zip(names[:6], [first, *others], strict=False))
    image = nib.load(first / "image.nii.gz")
    colours = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, image.affine), spoilt["PHANTOM001"] / "annotation_1.nii.gz")
    edit(spoilt["PHANTOM002"] / "image.nii.gz", ("<3h", 42, 12, -12, 6))
    edit(spoilt["PHANTOM003"] / "image.nii.gz", ("<3h", 42, 30000, 30000, 30000))
    (spoilt["PHANTOM004"] / "annotation_2.nii.gz").write_bytes(b"garbage")
    whole = (spoilt["PHANTOM005"] / "image.nii.gz").read_bytes()
    (spoilt["PHANTOM005"] / "image.nii.gz").write_bytes(whole[: len(whole) // 2])
    known = read_patient

    def reader(files, study):
        if files.patient == "PHANTOM006":
            raise ZeroDivisionError("what nobody thought of")
        return known(files, study)

    monkeypatch.setattr(sys.modules[upload_patients.__module__], "read_patient", reader)
    done, told = upload(store, folder)
    assert done.uploaded == ["PHANTOM007"]
    assert list(done.refused) == names[:6]
    assert {info.key.split("/")[1] for info in store.list("data/")} == {"PHANTOM007"}
    assert "ZeroDivisionError (what nobody thought of)" in done.refused["PHANTOM006"]
    head, _, *rows = told[-1].splitlines()[1:]
    assert told[-1].startswith("6 of 7 patients refused:")
    assert head == "| patient | refused because |"
    assert [row.split(" | ")[0].strip("| ") for row in rows] == names[:6]
    assert "its voxels are colours" in rows[0]


def test_folders_that_are_only_nearly_patients_are_left_aside(tmp_path):
    for name in ("PHANTOM٠٠١", "PHANTOM001\n", "PHANTOM0001", f"PHANTOM{'0' * 200}1", " 001"):
        (tmp_path / name).mkdir()
    with pytest.raises(PatientError, match="no folder in it is named like a patient"):
        upload(FolderObjects(tmp_path / "bucket"), tmp_path)


def _archive(study=STUDY, **changes):
    """The study phantom with files laid out as the challenge's archive is."""
    raw = study.model_dump(mode="json") | {"image": "*/{patient}/image.nii.gz"} | changes
    raw["annotators"] = [{"name": f"anno{k}", "file": f"*/{{patient}}/annotation_{k}.nii.gz"} for k in (1, 2, 3)]
    return Study.model_validate(raw)


def test_an_archive_goes_up_as_it_was_unpacked_and_comes_down_the_same(objects, cohort, tmp_path):
    study, store, unpacked = _archive(), objects, tmp_path / "unpacked"
    for name, of in (("PHANTOM001", "training_set"), ("PHANTOM007", "testing_set"), ("PHANTOM008", "testing_set")):
        shutil.copytree(cohort / name, unpacked / of / name)
    (unpacked / "testing_set/PHANTOM008/annotation_3.nii.gz").unlink()
    (unpacked / "README.md").write_text("read me")
    told = []
    done = upload_patients(store, LAYOUT, study, unpacked, ["all"], told.append)
    assert (done.uploaded, done.refused, done.lacking) == (PATIENTS, {}, {"PHANTOM008": ["anno3"]})
    assert any("PHANTOM008: without a label map of anno3" in line for line in told)
    local = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.nii.gz")}
    assert {info.key.removeprefix("data/") for info in store.list("data/")} == local
    assert len(local) == 11
    again = upload_patients(store, LAYOUT, study, unpacked, ["all"], told.append)
    assert (again.uploaded, again.unchanged) == ([], PATIENTS)

    part = shutil.copytree(unpacked / "testing_set/PHANTOM007", tmp_path / "part/testing_set/PHANTOM007")
    (part / "annotation_1.nii.gz").unlink()
    told.clear()
    some = upload_patients(store, LAYOUT, study, tmp_path / "part", ["all"], told.append)
    assert (some.unchanged, some.lacking) == (["PHANTOM007"], {})  # the bucket has it
    assert not any("without a label map" in line for line in told)

    fetched = download(store, LAYOUT, study, "dataset", PATIENTS, [], tmp_path / "down", told.append)
    assert fetched.fetched == 3
    down = tmp_path / "down/dataset"
    assert {path.relative_to(down).as_posix() for path in down.rglob("*.nii.gz")} == local

    strict = _archive(intake={**study.intake.model_dump(), "missing_annotation": "refused"})
    refused = upload_patients(store, LAYOUT, strict, unpacked, ["8"], told.append).refused
    assert "*/PHANTOM008/annotation_3.nii.gz missing" in refused["PHANTOM008"]
    (unpacked / "training_set/PHANTOM008").mkdir()
    shutil.copy(unpacked / "testing_set/PHANTOM008/image.nii.gz", unpacked / "training_set/PHANTOM008")
    twice = upload_patients(store, LAYOUT, study, unpacked, ["8"], told.append).refused
    assert "are both this patient's */PHANTOM008/image.nii.gz" in twice["PHANTOM008"]


def test_a_file_goes_to_where_the_bucket_has_it_and_a_new_one_to_its_place(cohort, tmp_path):
    raw = STUDY.model_dump(mode="json") | {"image": "images/{patient}_0000.nii.gz"}
    raw["annotators"] = [{"name": f"anno{k}", "file": f"labels_{k}/{{patient}}.nii.gz"} for k in (1, 2, 3)]
    study, store, local = Study.model_validate(raw), FolderObjects(tmp_path / "bucket"), tmp_path / "local"
    names = ["image.nii.gz", *(f"annotation_{k}.nii.gz" for k in (1, 2, 3))]
    for file, name in zip(study.files, names, strict=True):
        path = local / file.replace("{patient}", "7")
        path.parent.mkdir(parents=True)
        shutil.copy(cohort / "PHANTOM007" / name, path)
    store.put("data/labels_2/007.nii.gz", b"an older one")
    done = upload_patients(store, LAYOUT, study, local, ["all"], print)
    assert done.uploaded == ["PHANTOM007"]
    assert {info.key.removeprefix("data/") for info in store.list("data/")} == {
        "images/PHANTOM007_0000.nii.gz",
        "labels_1/PHANTOM007.nii.gz",
        "labels_2/007.nii.gz",
        "labels_3/PHANTOM007.nii.gz",
    }
    with pytest.raises(PatientError, match=r"no file in it has the place of one of this study's \(images/"):
        upload_patients(store, LAYOUT, study, cohort, ["all"], print)


def test_an_upload_sends_only_what_is_not_there_yet(objects, cohort):
    upload(objects, cohort, "test")
    before = objects.bytes_up
    done, _ = upload(objects, cohort, "all")
    assert (done.uploaded, done.unchanged) == (["PHANTOM001"], ["PHANTOM007", "PHANTOM008"])
    assert objects.bytes_up - before == done.size
    objects.delete(["data/PHANTOM008/annotation_3.nii.gz"])
    done, _ = upload(objects, cohort)
    assert done.uploaded == ["PHANTOM008"]
    assert done.size == (cohort / "PHANTOM008/annotation_3.nii.gz").stat().st_size


def test_a_large_file_is_known_again_by_its_parts(objects, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (PART // 256) * 2 + b"end")
    objects.upload("large", path)
    assert same_content(objects.head("large"), path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert not same_content(objects.head("large"), path)


def test_a_patient_of_another_spelling_is_not_doubled(objects, cohort):
    (cohort / "PHANTOM008").rename(cohort / "8")
    objects.put("data/008/image.nii.gz", b"old")
    done, _ = upload(objects, cohort, "PHANTOM008")
    assert done.uploaded == ["PHANTOM008"]
    assert {item.key.split("/")[1] for item in objects.list("data/")} == {"008"}


def test_a_folder_without_patients_and_a_patient_who_is_not_there_are_told(objects, cohort, tmp_path):
    with pytest.raises(PatientError, match="there is no folder"):
        upload(objects, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PatientError, match="no folder in it is named like a patient"):
        upload(objects, tmp_path / "empty")
    (tmp_path / "empty" / "docs").mkdir()
    study = Study.model_validate(STUDY.model_dump(mode="json") | {"patients": {}})
    with pytest.raises(PatientError, match=r"no folder in it holds a file of this study \(image.nii.gz, "):
        upload_patients(objects, LAYOUT, study, tmp_path / "empty", ["all"], print)
    with pytest.raises(StudyError, match="PHANTOM009"):
        upload(objects, cohort, "9")


def test_a_dataset_comes_down_as_it_went_up_and_only_once(objects, cohort, tmp_path):
    (cohort / "PHANTOM008").rename(cohort / "8")
    upload(objects, cohort)
    told = []
    done = download(objects, LAYOUT, STUDY, "dataset", [*PATIENTS, "PHANTOM009"], [], tmp_path / "down", told.append)
    assert done.missing == ("PHANTOM009",)
    assert done.fetched == 3
    for path in cohort.rglob("*.nii.gz"):
        patient = STUDY.patients.normalise(path.parent.name)
        assert (tmp_path / "down/dataset" / patient / path.name).read_bytes() == path.read_bytes()
    before = objects.bytes_down
    assert download(objects, LAYOUT, STUDY, "dataset", PATIENTS, [], tmp_path / "down", told.append).fetched == 3
    assert objects.bytes_down - before < 400  # the description that names the current version, no voxel


def test_models_and_preprocessing_come_down_verified_and_missing_ones_are_told(objects, tmp_path):
    models = [str(m) for m in STUDY.models]
    (tmp_path / "model/fold_all").mkdir(parents=True)
    (tmp_path / "model/fold_all/checkpoint_best.pth").write_bytes(b"weights")
    directories.write_directory(objects, LAYOUT.model(models[0]), tmp_path / "model")
    directories.write_directory(objects, LAYOUT.dataset("anno1"), tmp_path / "model")
    done = download(objects, LAYOUT, STUDY, "models", [], models[:2], tmp_path / "down", print)
    assert done.missing == (models[1],)
    assert (tmp_path / "down/models" / models[0] / "fold_all/checkpoint_best.pth").read_bytes() == b"weights"
    done = download(objects, LAYOUT, STUDY, "preprocessing", [], models, tmp_path / "down", print)
    assert done.missing == ("preprocessing of anno2", "preprocessing of anno3")
    assert (tmp_path / "down/preprocessing/anno1/fold_all/checkpoint_best.pth").is_file()


def volume(objects, patient: str, predictor: str) -> np.ndarray:
    """Store a small prediction; its probabilities."""
    classes, shape = len(STUDY.class_names), (5, 6, 7)
    seed = sum(f"{patient}{predictor}".encode())
    softmax = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), shape).transpose(3, 0, 1, 2).astype("f4")
    affine = np.array([[-2, 0, 0, 5], [0, -1.5, 0, 6], [0, 0, 4, -7], [0, 0, 0, 1.0]])
    with SoftmaxWriter(
        objects,
        LAYOUT.softmax(patient, predictor),
        Grid(shape, affine),
        class_names=STUDY.class_names,
        provenance={"patient": patient},
    ) as writer:
        writer.write(0, softmax)
    return softmax


def files_below(folder) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_predictions_come_down_as_volumes_and_as_label_maps_that_viewers_open(objects, tmp_path):
    model, tests = str(STUDY.models[0]), PATIENTS[1:]
    drawn = {patient: volume(objects, patient, model) for patient in tests}
    done = download(objects, LAYOUT, STUDY, "predictions", tests, [model], tmp_path / "down", print)
    assert (done.fetched, done.missing) == (2, ())
    at = tmp_path / "down/predictions" / tests[0] / model
    assert [p.name for p in at.iterdir() if p.is_file()] == ["labels.nii.gz"]
    image = nib.load(at / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, drawn[tests[0]].argmax(axis=0))
    assert image.header.get_zooms() == (2, 1.5, 4)
    np.testing.assert_array_equal(image.affine[:3, 3], (5, 6, -7))

    before, written = objects.bytes_down, (at / "labels.nii.gz").stat().st_mtime_ns
    ask = {"probabilities": True}
    download(objects, LAYOUT, STUDY, "predictions", tests[:1], [model], tmp_path / "down", print, **ask)
    assert objects.bytes_down - before < 400  # the description that names the current version, no voxel
    assert (at / "labels.nii.gz").stat().st_mtime_ns == written
    organs = STUDY.class_names[1:]
    assert sorted(p.name for p in at.glob("probability_*")) == sorted(f"probability_{o}.nii.gz" for o in organs)
    for c, organ in enumerate(organs, start=1):
        image = nib.load(at / f"probability_{organ}.nii.gz")
        np.testing.assert_allclose(np.asarray(image.dataobj).T, drawn[tests[0]][c], atol=3e-4)


def test_a_prediction_that_was_made_again_brings_its_new_label_map(objects, tmp_path):
    model, patient = str(STUDY.models[0]), PATIENTS[1]
    volume(objects, "another", model)
    volume(objects, patient, model)
    asked = (objects, LAYOUT, STUDY, "predictions", [patient], [model], tmp_path / "down", print)
    download(*asked)
    key = LAYOUT.softmax(patient, model)
    for item in list(objects.list(f"{key}/")):
        objects.delete([item.key])
    for item in objects.list(f"{LAYOUT.softmax('another', model)}/"):
        objects.put(item.key.replace("another", patient), objects.get(item.key))
    download(*asked)
    labels = np.asarray(nib.load(tmp_path / "down/predictions" / patient / model / "labels.nii.gz").dataobj).T
    np.testing.assert_array_equal(labels, volume(objects, "another", model).argmax(axis=0))


def test_an_ensembles_own_maps_come_down_and_stay(objects, tmp_path):
    patient = PATIENTS[1]
    volume(objects, patient, "ensemble_all")
    for name in ("entropy", "labels"):
        objects.put(LAYOUT.ensemble_map(patient, "ensemble_all", name), name.encode())
    asked = (objects, LAYOUT, STUDY, "ensembles", [patient], ["ensemble_all"], tmp_path / "down", print)
    for _ in range(2):
        assert download(*asked).fetched == 1
    at = tmp_path / "down/ensembles" / patient / "ensemble_all"
    assert (at / "entropy.nii.gz").read_bytes() == b"entropy"
    assert (at / "labels.nii.gz").read_bytes() == b"labels"


def test_a_damaged_prediction_is_refused_and_the_others_come_down(objects, tmp_path):
    models = [str(m) for m in STUDY.models[:2]]
    for model in models:
        volume(objects, PATIENTS[1], model)
    (payload,) = [i.key for i in objects.list(f"{LAYOUT.softmax(PATIENTS[1], models[0])}/") if "/c/" in i.key]
    content = bytearray(objects.get(payload))
    content[10] ^= 0xFF
    objects.put(payload, bytes(content))
    done = download(objects, LAYOUT, STUDY, "predictions", PATIENTS[1:2], models, tmp_path / "down", print)
    assert done.fetched == 1
    assert list(done.refused) == [f"{models[0]} of {PATIENTS[1]}"]
    assert not list((tmp_path / "down/predictions" / PATIENTS[1] / models[0]).glob("*.nii.gz"))


def test_all_patients_are_those_the_study_predicts_and_the_others_are_told_once(objects, tmp_path):
    model = str(STUDY.models[0])
    volume(objects, PATIENTS[1], model)
    told = []
    known = sorted(p for members in STUDY.sets.values() for p in members)
    done = download(objects, LAYOUT, STUDY, "predictions", known, [model], tmp_path / "down", told.append)
    assert done.missing == tuple(f"{model} of {p}" for p in STUDY.predicted_patients() if p != PATIENTS[1])
    assert set(done.unscored) == set(known) - set(STUDY.predicted_patients())
    assert not [line for line in told if any(p in line for p in done.unscored)]
    assert len([line for line in told if f"{len(done.unscored)} patients are not predicted" in line]) == 1


def test_names_that_lead_out_of_the_folder_are_refused_and_the_rest_comes_down(objects, tmp_path):
    for patient in PATIENTS:
        objects.put(f"data/{patient}/image.nii.gz", b"scan")
        objects.put(f"data/{patient}/notes, zweite Lesung (é, 肝).txt", b"odd")
    # boto3 normalises nothing; the server may, so the evil key comes from a listing of our own.
    evil = ListsMore(objects, f"data/{PATIENTS[1]}/../../../../evil")
    done = download(evil, LAYOUT, STUDY, "dataset", PATIENTS, [], tmp_path / "down", print)
    assert done.fetched == 2
    assert list(done.refused) == [PATIENTS[1]]
    assert "leads out of the folder" in done.refused[PATIENTS[1]]
    found = sorted(p.relative_to(tmp_path / "down").as_posix() for p in (tmp_path / "down").rglob("*") if p.is_file())
    names = ("image.nii.gz", "notes, zweite Lesung (é, 肝).txt")
    assert found == sorted(f"dataset/{p}/{name}" for p in (PATIENTS[0], PATIENTS[2]) for name in names)


class ListsMore(MeteredObjects):
    """A store whose bucket holds one more key than the server would take."""

    def __init__(self, objects, key):
        super().__init__(objects.objects)
        self.key = key

    def list(self, prefix):
        yield from super().list(prefix)
        if self.key.startswith(prefix):
            yield ObjectInfo(self.key, 4, "tag")

    def download(self, key, path):
        if key == self.key:
            path.write_bytes(b"evil")
        else:
            super().download(key, path)


def test_a_damaged_model_is_refused_and_the_others_come_down(objects, tmp_path):
    models = [str(m) for m in STUDY.models][:2]
    (tmp_path / "model").mkdir()
    (tmp_path / "model/plans.json").write_bytes(b"{}")
    stored, _ = [directories.write_directory(objects, LAYOUT.model(m), tmp_path / "model") for m in models]
    objects.put(f"{LAYOUT.model(models[0])}/{stored.place}/plans.json", b"[]")
    done = download(objects, LAYOUT, STUDY, "models", [], models, tmp_path / "down", print)
    assert done.fetched == 1
    assert list(done.refused) == [models[0]]
    assert [p.name for p in (tmp_path / "down").rglob("*") if p.is_file()] == ["plans.json"]
