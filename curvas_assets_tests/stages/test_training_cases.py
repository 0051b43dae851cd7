"""Claims proved here, of what passes from a patient's scan to the dataset of a training label, without volumes.

- A label takes the image and its annotator's file; a fusion those of all who annotated the patient.
- With shared statistics of intensities each label takes everybody's, and still learns its own annotator's.
- Whom an annotator did not annotate is a case of that label without a file.
- What else a record says, and who else annotates, changes no case of a single annotator.
- An annotator whose files stand elsewhere in the bucket changes no record of what is there of the others.
- A patient whose scan was taken in before an annotator joined is named, and only for the labels that learn from that annotator.
- Training cases that are missing or damaged are of their own label alone.
"""

from contextlib import ExitStack
from typing import Any

import pytest

from benchmarks.prediction import artefacts, tools_of
from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, PatientError
from curvas_assets.stages import table
from curvas_assets.stages.patients import fetch_patient, uploaded
from curvas_assets.stages.prepare import _TrainingPatients, training_case
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.tables import write_json
from curvas_assets.study import Study, load_study

RAW = load_study("phantom").model_dump(mode="json")
STUDY = Study.model_validate(RAW | {"training_labels": ["anno1", "anno2", "anno3", "majority"]})
FOUR = Study.model_validate(
    RAW | {"annotators": [*RAW["annotators"], {"name": "anno4", "file": "annotation_4.nii.gz"}]}
)


def record_of(*annotations: int, **more: Any) -> dict[str, Any]:
    names = ["image.nii.gz", *(f"annotation_{number}.nii.gz" for number in annotations)]
    files = [{"name": name, "key": f"data/P/{name}", "size": 1, "sha256": f"of {name}"} for name in names]
    facts = {"shape": [2, 3, 4], "volumes": "anything"}
    return {"patient": "P", "files": files, "affine": [[1.0]], "facts": facts, "not_annotated": [], **more}


def files_of(case: dict[str, Any]) -> list[str]:
    return [file["name"] for file in case["files"]]


def test_a_label_takes_its_annotators_file_and_a_fusion_those_of_all_who_annotated():
    case = training_case(STUDY, "anno2", record_of(1, 2, 3))
    assert case["annotators"] == ["anno2"]
    assert files_of(case) == ["image.nii.gz", "annotation_2.nii.gz"]
    assert case["facts"] == {"shape": [2, 3, 4]}
    fused = training_case(STUDY, "majority", record_of(1, 2, 3, not_annotated=["anno1"]))
    assert fused["annotators"] == ["anno2", "anno3"]
    assert files_of(fused) == ["image.nii.gz", "annotation_2.nii.gz", "annotation_3.nii.gz"]


def test_shared_statistics_take_everybodys_files():
    shared = Study.model_validate(RAW | {"plans": RAW["plans"] | {"shared_intensity_statistics": True}})
    case = training_case(shared, "anno2", record_of(1, 2, 3, not_annotated=["anno3"]))
    assert case["annotators"] == ["anno2"]
    assert files_of(case) == ["image.nii.gz", "annotation_1.nii.gz", "annotation_2.nii.gz"]


@pytest.mark.parametrize(("label", "blank"), [("anno1", ["anno1"]), ("majority", ["anno1", "anno2", "anno3"])])
def test_who_was_not_annotated_is_a_case_without_files(label, blank):
    case = training_case(STUDY, label, record_of(1, 2, 3, not_annotated=blank))
    assert (case["annotators"], case["files"]) == ([], [])


def test_what_concerns_others_changes_no_case():
    before = training_case(STUDY, "anno1", record_of(1, 2, 3))
    other = record_of(1, 2, 3, 4, not_annotated=["anno2"], set="test", warnings=["odd"], facts={"shape": [2, 3, 4]})
    assert training_case(FOUR, "anno1", other) == before


def test_an_annotator_whose_files_stand_elsewhere_changes_no_record_of_the_others(tmp_path):
    elsewhere = {"name": "zoe", "file": "zoe/{patient}.nii.gz"}
    with_zoe = Study.model_validate(RAW | {"annotators": [*RAW["annotators"], elsewhere]})
    objects, patient = FolderObjects(tmp_path / "bucket"), STUDY.fitting_patients[0]
    for name in STUDY.files:
        objects.put(f"data/{patient}/{name}", name.encode())
    objects.put(f"data/zoe/{patient}.nii.gz", b"zoe")
    records = [
        fetch_patient(
            objects, Layout(), uploaded(objects, Layout(), study), patient, tmp_path / study.annotators[-1].name
        )[1]
        for study in (STUDY, with_zoe)
    ]
    assert records[1] == [*records[0], {**records[1][-1], "name": elsewhere["file"], "path": f"zoe/{patient}.nii.gz"}]
    assert not any("path" in file for file in records[0])


def test_a_patient_who_was_taken_in_before_the_annotator_joined_is_named():
    with pytest.raises(PatientError, match=r"P: selecting training cases .*annotation_4\.nii\.gz was not read"):
        training_case(FOUR, "anno4", record_of(1, 2, 3))
    assert training_case(FOUR, "anno1", record_of(1, 2, 3))["annotators"] == ["anno1"]


def test_damaged_cases_are_of_their_own_label_alone(tmp_path):
    tools, labels = tools_of(STUDY, tmp_path), ["anno1", "anno2", "anno3"]
    cases = {"P": training_case(STUDY, "anno1", record_of(1, 2, 3))}
    write_json(tools.objects, tools.layout.training_cases("anno1"), {"label": "anno1", "cases": cases})
    tools.objects.put(tools.layout.training_cases("anno2"), b"{")
    with ExitStack() as held:
        training = _TrainingPatients(tools, labels, artefacts(tools, table.TRAINING_CASES, labels), held)
        assert training.folder.is_dir()
        assert training.cases("anno1") == cases
        for label, error in (("anno2", CorruptArtefactError), ("anno3", MissingArtefactError)):
            with pytest.raises(error):
                training.cases(label)
