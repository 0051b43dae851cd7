"""Claims proved here.

- Folders with and without the prefix are one patient's; two folders of one patient are refused, by name.
- An annotation in another voxel order reaches every reader after the intake in the scan's order.
- A blank map is in nobody's dataset; too few patients are then told. Doubts and exclusions are in the ledger.
- A file that changed after it was taken in is refused, not used.
- Files stand where the study says: the record names each by where it is, and readers find them on the scan's voxels. A patient's
  digest changes when one of these files does, comes or goes, and with nobody else's.
- A missing label map is in nobody's dataset, and in no picture of the intake; when it comes, the digest changes, and the patient is taken in with it.
"""

import hashlib
import json

import dagster as dg
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from curvas_assets.cohort import Patient, read_annotations, read_patient
from curvas_assets.cohort.phantom import make_patient, write_cohort
from curvas_assets.definitions import build_definitions
from curvas_assets.errors import PatientError, SegmentationError
from curvas_assets.file_paths import below_data
from curvas_assets.geometry import Grid
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.segmentation import DatasetFacts
from curvas_assets.stages import cohort
from curvas_assets.stages.cohort import cohort_rows
from curvas_assets.stages.patients import fetch_files, fetch_patient, uploaded
from curvas_assets.stages.prepare import require_enough
from curvas_assets.stages.stored import Artefact
from curvas_assets.stages.table import COHORT
from curvas_assets.stages.write_up import exclusion_ledger
from curvas_assets.storage import tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import Study, load_study
from curvas_assets_tests.cohort.volumes import reorder

STUDY = load_study("phantom")


def test_folders_with_and_without_the_prefix_are_one_patients(tmp_path):
    objects, layout = FolderObjects(tmp_path), Layout()
    for folder in ("1", "PHANTOM002", "thumbs", "002"):
        objects.put(f"data/{folder}/{STUDY.image}", b"x")
    there = uploaded(objects, layout, STUDY)
    assert there.found.patients == ["PHANTOM001", "PHANTOM002"]
    assert there.strange == ["thumbs"]
    assert there.found.files_of("PHANTOM001") == {STUDY.image: f"1/{STUDY.image}"}
    assert there.found.files_of("PHANTOM003") == {}
    assert there.found.folder_of("PHANTOM003") == "PHANTOM003"
    (item,) = objects.list("data/1/")
    as_ever = hashlib.sha256(f"{STUDY.image} {item.size} {item.tag}\n".encode()).hexdigest()[:16]
    assert there.digests["PHANTOM001"] == as_ever  # else every patient of a running study would be stale
    with pytest.raises(PatientError, match="002 and PHANTOM002 are both this patient's"):
        there.found.files_of("PHANTOM002")


def test_the_intakes_picture_has_those_who_annotated(monkeypatch):
    drawn = np.zeros((3, 4, 8, 8), np.uint8)
    drawn[0, 2, 2:5, 2:5], drawn[2, 2, 3:6, 3:6] = 1, 2
    patient = Patient(
        "PHANTOM001",
        np.zeros((4, 8, 8), np.float32),
        drawn,
        Grid.with_voxels((4, 8, 8), (5.0, 1.0, 1.0)),
        facts={"hu_range": [-1000, 900]},
        not_annotated=("anno2",),
    )
    shown = {}
    monkeypatch.setattr(cohort.previews, "preview_scan", lambda *maps, **how: shown.update(maps=maps[1], **how) or b"")
    cohort._preview(STUDY, patient)
    assert shown["annotators"] == ["anno1", "anno3"]
    np.testing.assert_array_equal(shown["maps"], drawn[[0, 2], 2])


def test_a_file_that_changed_since_it_was_taken_in_is_refused(tmp_path):
    objects, layout = FolderObjects(tmp_path / "bucket"), Layout()
    for name in STUDY.files:
        objects.put(f"data/1/{name}", name.encode())
    there = uploaded(objects, layout, STUDY)
    fetched, files = fetch_patient(objects, layout, there, "PHANTOM001", tmp_path / "scratch")
    assert fetched[STUDY.image].read_bytes() == STUDY.image.encode()
    assert [file["name"] for file in files] == list(STUDY.files)
    record = {"patient": "PHANTOM001", "files": files}
    fetch_files(objects, record, tmp_path / "again", [STUDY.image])
    assert [p.name for p in (tmp_path / "again").iterdir()] == [STUDY.image]
    objects.put(f"data/1/{STUDY.image}", b"other")
    with pytest.raises(PatientError, match="has changed since it was taken in"):
        fetch_files(objects, record, tmp_path / "later", [STUDY.image])


@pytest.fixture
def platform(bucket_environment, tmp_path, monkeypatch):
    """Five training patients in the bucket: one with a reordered annotation, one coronal, one with a blank map, one in 8
    bits, one without the third annotator's file."""
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    patients = write_cohort(
        tmp_path / "cohort", patients=STUDY.training_patients(), shape=(12, 24, 28), spacing_mm=(20, 14, 12), seed=3
    )
    reorder(patients[0] / "annotation_1.nii.gz", "SAR")
    for path in patients[1].iterdir():
        reorder(path, "LSA")
    blank = nib.load(patients[2] / "annotation_1.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(blank.shape, np.uint8), blank.affine), patients[2] / "annotation_1.nii.gz")
    scan = nib.load(patients[3] / "image.nii.gz")
    grey = np.interp(np.asarray(scan.dataobj), (-1000, 1000), (0, 255)).astype(np.uint8)
    nib.save(nib.Nifti1Image(grey, scan.affine), patients[3] / "image.nii.gz")
    objects = Bucket().objects()
    for folder in patients:
        for path in folder.iterdir():
            if (folder, path.name) != (patients[4], "annotation_3.nii.gz"):
                objects.upload(f"data/{folder.name}/{path.name}", path)
    return objects


def _loaded(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def _run(definitions, instance, job, partitions):
    ends = {"dagster/asset_partition_range_start": partitions[0], "dagster/asset_partition_range_end": partitions[-1]}
    return definitions.resolve_job_def(job).execute_in_process(instance=instance, tags=ends)


def test_what_the_intake_found_reaches_dataset_ledger_and_readers(platform, tmp_path, monkeypatch):
    patients, taken, shared = STUDY.training_patients(), {}, set()

    def prepared(study, annotator, scans, folder, *, all_annotations, on_progress, read, **_):
        shared.add(read)
        taken[annotator] = {p: tuple(_loaded(path) for path in files) for p, files in scans.items()}
        assert {p: len(files) for p, files in all_annotations.items()} == dict.fromkeys(scans, 1)  # this label's alone
        (folder / "dataset.json").write_text("{}")
        return DatasetFacts(len(scans), [], [8, 6, 6], [24, 40, 40], 2, "none", "3d_fullres", {}, 0.0, annotator)

    monkeypatch.setattr("curvas_assets.stages.prepare.prepare_dataset", prepared)
    definitions = build_definitions(STUDY, executor="in_process")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("patient", patients)
        done = _run(definitions, instance, "take_in_scans", patients)
        _run(definitions, instance, "select_training_cases", STUDY.annotator_names)
        _run(definitions, instance, "prepare_datasets", STUDY.annotator_names)
    assert len(shared) == 1  # scans are read once for all annotators of a step
    records = {p: tables.read_json(platform, Layout().scan(p)) for p in patients}
    assert records[patients[0]]["facts"]["reordered"] == {"anno1": "SAR"}
    assert records[patients[1]]["facts"]["orientation"] == "LSA"
    blank = {p: records[p]["not_annotated"] for p in patients if records[p]["not_annotated"]}
    assert blank == {patients[2]: ["anno1"], patients[4]: ["anno3"]}
    assert [p for p in patients if records[p]["doubts"]] == [patients[3]]
    warned = {(e.check_name, e.partition) for e in done.get_asset_check_evaluations() if not e.passed}
    assert {p for name, p in warned if name == "intensities_are_plausible"} == {patients[3]}
    assert {p for name, p in warned if name == "labels_are_complete"} == {patients[0], patients[2], patients[4]}
    # datasets: neither the blank one nor the missing one, and every label map on its scan's voxels
    assert {a: sorted(scans) for a, scans in taken.items()} == {
        "anno1": [p for p in patients if p != patients[2]],
        "anno2": patients,
        "anno3": patients[:4],
    }
    scan, annotation = taken["anno1"][patients[0]]
    _, drawn = make_patient(patients[0], shape=(12, 24, 28), spacing_mm=(20, 14, 12), seed=3)
    np.testing.assert_array_equal(annotation[0].transpose(2, 1, 0), drawn[0])
    np.testing.assert_allclose(annotation[1], scan[1])
    # scoring and report
    fetch_files(platform, records[patients[0]], tmp_path / patients[0], [a.file for a in STUDY.annotators])
    np.testing.assert_array_equal(read_annotations(tmp_path / patients[0], STUDY), drawn)
    table = pd.DataFrame(
        [
            {
                "patient": p,
                "status": "taken in",
                "reason": "",
                "exclusions": json.dumps(record["exclusions"]),
                "doubts": "; ".join(record["doubts"]),
            }
            for p, record in records.items()
        ]
    )
    scores = pd.DataFrame(columns=["patient", "predictor", "metric", "organ", "annotator", "value", "note"])
    ledger = exclusion_ledger(table, scores)
    assert list(zip(ledger["patient"], ledger["annotator"], strict=True)) == [
        (patients[2], "anno1"),
        (patients[4], "anno3"),
        (patients[3], ""),
    ]
    assert "the annotation of anno1 is blank: not annotated" in ledger["reason"][0]
    assert "the annotation of anno3 is missing: not annotated" in ledger["reason"][1]
    assert "8-bit grey values" in ledger["reason"][2]


def _placed(folder, objects, study, patients, leave_out=()):
    """Upload made-up patients to where a study's files stand."""
    names = ["image.nii.gz", "annotation_1.nii.gz", "annotation_2.nii.gz"]
    for path in write_cohort(folder, patients=patients, shape=(8, 16, 16), spacing_mm=(20, 20, 20), annotators=2):
        for file, name in zip(study.files, names, strict=True):
            key = "data/" + below_data(file).replace("{patient}", path.name).replace("*", "training_set")
            if key not in leave_out:
                objects.upload(key, path / name)


LAYOUTS = {
    "own folders": ("ct.nii.gz", "a/anna.nii.gz", "b.nii.gz"),
    "annotators' folders": ("images/{patient}_0000.nii.gz", "anna/{patient}.nii.gz", "boris/{patient}.nii.gz"),
    "the challenge's archive": ("*/{patient}/image.nii.gz", "*/{patient}/l1.nii.gz", "*/{patient}/l2.nii.gz"),
    "own folders and others": ("{patient}/c*.nii.gz", "anna.nii.gz", "labels/{patient}.nii.gz"),
}


@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_files_are_taken_from_where_the_study_says(tmp_path, layout_name):
    image, *labels = LAYOUTS[layout_name]
    raw = STUDY.model_dump(mode="json")
    raw |= {"patients": {}, "image": image, "groups": {}, "in_distribution_group": None}
    raw["annotators"] = [{"name": f"a{k}", "file": file} for k, file in enumerate(labels, 1)]
    raw["sets"] = {"train": ["CASE_0001", "x.2-b", "T3"], "test": ["Z4"]}
    study, objects, layout = Study.model_validate(raw), FolderObjects(tmp_path / "bucket"), Layout()
    late = "data/" + below_data(labels[1]).replace("{patient}", "x.2-b").replace("*", "training_set")
    _placed(tmp_path / "cohort", objects, study, ["CASE_0001", "x.2-b"], leave_out=[late])
    objects.put("data/README.txt", b"not a patient's")
    before = uploaded(objects, layout, study)
    assert before.found.patients == ["CASE_0001", "x.2-b"]
    assert before.lacking == {"x.2-b": ["a2"]}
    fetched, files = fetch_patient(objects, layout, before, "CASE_0001", tmp_path / "scratch")
    found = read_patient(fetched, study)
    record = {"patient": "CASE_0001", "files": files, "facts": found.facts, "affine": found.affine.tolist()}
    again = fetch_files(objects, record, tmp_path / "again", study.files)
    np.testing.assert_array_equal(read_annotations(again, study), found.annotations)
    assert [file["key"] for file in files] == [
        layout.data_file(before.found.files_of("CASE_0001")[f]) for f in study.files
    ]

    half, files = fetch_patient(objects, layout, before, "x.2-b", tmp_path / "half")
    assert read_patient(half, study).not_annotated == ("a2",)
    assert len(files) == 2
    objects.upload(late, fetched[study.files[2]])
    after = uploaded(objects, layout, study)
    assert after.lacking == {}
    assert {p for p in after.digests if after.digests[p] != before.digests[p]} == {"x.2-b"}
    whole, _ = fetch_patient(objects, layout, after, "x.2-b", tmp_path / "whole")
    assert read_patient(whole, study).not_annotated == ()
    objects.put("data/elsewhere.txt", b"another file")
    assert uploaded(objects, layout, study).digests == after.digests


@pytest.mark.parametrize(("folds", "enough"), [(("all",), 1), ((0,), 2), ((0, 1, 2), 3), (("all", 4), 5)])
def test_folds_that_blank_maps_leave_too_few_patients_for_are_told(folds, enough):
    study = STUDY.model_copy(update={"folds": folds})
    held_out = [study.held_out(fold)[0] for fold in folds if fold != "all"]
    drawn = [*held_out, *(one for one in study.training_patients() if one not in held_out)][:enough]
    require_enough(study, "anno1", drawn, ["P9"])
    with pytest.raises(
        SegmentationError, match=rf"{enough - 1} training patients are left, {enough} are needed"
    ) as told:
        require_enough(study, "anno1", drawn[1:], ["P9"])
    assert "name the others in training_labels" in told.value.remedy


def test_folds_of_which_one_side_was_not_annotated_are_told():
    raw = STUDY.model_dump(mode="json") | {"folds": [0, 1], "sets": {"train": list(range(1, 11)), "test": [11]}}
    study = Study.model_validate(raw | {"groups": {}, "in_distribution_group": None})
    first, second = study.held_out(0), study.held_out(1)
    rest = [one for one in study.training_patients() if one not in (*first, *second)]
    require_enough(study, "anno1", [first[0], second[0]], ["P9"])
    with pytest.raises(SegmentationError, match="fold 0 leaves none to train on"):
        require_enough(study, "anno1", first, ["P9"])
    with pytest.raises(SegmentationError, match="fold 1 holds none out"):
        require_enough(study, "anno1", [first[0], *rest], ["P9"])
    crossed = Study.model_validate(
        raw | {"groups": {}, "in_distribution_group": None, "sets": {"train": raw["sets"]["train"]}}
    )
    require_enough(crossed, "anno1", [first[0], *rest], ["P9"])  # nothing is chosen on whom it scores


def test_the_cohort_tells_whose_folder_is_gone(tmp_path):
    objects, layout = FolderObjects(tmp_path), Layout()
    facts = {"shape": [4, 5, 6], "spacing_mm": [1.0, 1.0, 1.0]}
    record = {"facts": facts, "warnings": ["thick slices"], "exclusions": []}
    for patient in ("PHANTOM001", "PHANTOM002"):
        tables.write_json(objects, layout.scan(patient), record)
    objects.put(layout.patient_file("1", "image.nii.gz"), b"a scan")
    scans = {p: Artefact(objects, layout.scan(p), "record", p) for p in ("PHANTOM001", "PHANTOM002")}
    rows = {row["patient"]: row for row in cohort_rows(STUDY, objects, layout, scans)}
    assert rows["PHANTOM001"]["reason"] == "thick slices"
    assert rows["PHANTOM002"]["reason"] == "thick slices; its files are gone from the bucket since it was taken in"
    assert rows["PHANTOM003"]["status"] == "missing"


@pytest.mark.parametrize("taken_in", [(), ("PHANTOM001",)], ids=["nobody is taken in", "one is"])
def test_the_cohort_fits_its_schema(tmp_path, taken_in):
    objects, layout = FolderObjects(tmp_path), Layout()
    facts = {"shape": [4, 5, 6], "spacing_mm": [1.0, 1.0, 1.0]}
    for patient in taken_in:
        tables.write_json(objects, layout.scan(patient), {"facts": facts, "warnings": [], "exclusions": []})
    scans = {p: Artefact(objects, layout.scan(p), "record", p) for p in taken_in}
    found = pd.DataFrame(cohort_rows(STUDY, objects, layout, scans))
    tables.write_table(objects, "cohort", found, COHORT.schemas["cohort"])
    assert len(tables.read_table(objects, "cohort", COHORT.schemas["cohort"])) == len(found) > 1
