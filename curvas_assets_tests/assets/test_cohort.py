"""Claims proved here.

- Folders with and without the prefix are one patient's; two folders of one patient are refused, by name.
- A file that changed after it was taken in is refused, not used.
"""

import pytest

from curvas_assets.assets.cohort import fetch_files, fetch_patient, folder_of, folders_of_patients
from curvas_assets.errors import PatientError
from curvas_assets.orchestration.bucket import Layout
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import load_study

STUDY = load_study("phantom")


def test_folders_with_and_without_the_prefix_are_one_patients():
    folders = folders_of_patients(STUDY, ["1", "PHANTOM002", "thumbs", "002"])
    assert folders == {"PHANTOM001": ["1"], "PHANTOM002": ["PHANTOM002", "002"]}
    assert folder_of("PHANTOM001", folders) == "1"
    assert folder_of("PHANTOM003", folders) == "PHANTOM003"
    with pytest.raises(PatientError, match="PHANTOM002 and 002 are both this patient's"):
        folder_of("PHANTOM002", folders)


def test_a_file_that_changed_since_it_was_taken_in_is_refused(tmp_path):
    objects, layout = FolderObjects(tmp_path / "bucket"), Layout()
    for name in (STUDY.image, *(a.file for a in STUDY.annotators)):
        objects.put(f"data/1/{name}", name.encode())
    folder, files = fetch_patient(objects, layout, STUDY, "1", tmp_path / "scratch")
    assert (folder / STUDY.image).read_bytes() == STUDY.image.encode()
    assert len(files) == 4
    record = {"patient": "PHANTOM001", "files": files}
    fetch_files(objects, record, tmp_path / "again", [STUDY.image])
    assert [p.name for p in (tmp_path / "again").iterdir()] == [STUDY.image]
    objects.put(f"data/1/{STUDY.image}", b"other")
    with pytest.raises(PatientError, match="has changed since it was taken in"):
        fetch_files(objects, record, tmp_path / "later", [STUDY.image])
