"""Claims proved here.

- A file without `{patient}` is one of the patient's own folder; with it, it stands anywhere; `*` is any text without a slash.
- The challenge's archive, as it is unpacked, is sorted by patient, and so is a folder like nnU-Net's.
- Whatever layout is made of an id pattern, each file is found again, and is nobody else's.
- A file that several paths fit belongs to the one that says most.
- `*` is no empty name and no dots, so that no path leads out of the folder that it is put in; such files are told.
- Two files in the place of one are refused by name, and so are ids that differ only in case.
- What stands in the place of an id and is none is told, and so is a folder without a file of the study where ids have no form.
"""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from curvas_assets.errors import PatientError
from curvas_assets.file_paths import FilePaths, below_data
from curvas_assets.study import ANY_ID, NO_ENDINGS, NO_IDS, PatientIds

CHALLENGE = PatientIds(prefix="UKCHLL", digits=3)
ANY = PatientIds()


def test_the_challenges_archive_as_it_is_unpacked_is_sorted_by_patient():
    files = ["*/{patient}/image.nii.gz", *(f"*/{{patient}}/annotation_{k}.nii.gz" for k in (1, 2, 3))]
    sets = {"training_set": ["UKCHLL001", "UKCHLL002"], "validation_set": ["UKCHLL021"], "testing_set": ["UKCHLL026"]}
    listing = [
        f"{of}/{patient}/{file.rpartition('/')[2]}" for of, names in sets.items() for patient in names for file in files
    ]
    found = FilePaths(files, CHALLENGE).sort([*listing, "README.md", "training_set/metadata.csv", "__MACOSX/._x"])
    assert found.patients == [patient for names in sets.values() for patient in names]
    assert found.files_of("UKCHLL021") == {
        file: f"validation_set/UKCHLL021/{file.rpartition('/')[2]}" for file in files
    }
    assert found.strange == {}


def test_annotators_folders_and_a_folder_like_nnunets_are_sorted_by_patient():
    files = ["imagesTr/{patient}_0000.nii.gz", "labelsTr/{patient}.nii.gz", "labels_boris/{patient}_seg.nii"]
    listing = [file.replace("{patient}", name) for file in files for name in ("CASE_0001", "a.b-c")]
    found = FilePaths(files, ANY).sort([*listing, "dataset.json", "imagesTr/deep/CASE_0002_0000.nii.gz"])
    assert found.patients == ["CASE_0001", "a.b-c"]
    assert found.files_of("a.b-c") == dict(zip(files, listing[1::2], strict=True))


ids = st.from_regex(ANY_ID, fullmatch=True).filter(lambda one: ANY.has(one) and one.lower() == one)


@given(
    st.sampled_from(
        [
            ("image.nii.gz", "label.nii.gz"),
            ("{patient}/ct.nii.gz", "labels/{patient}.nii.gz"),
            ("*/{patient}/ct.nii.gz", "*/{patient}/l_*.nii.gz"),
            ("images/{patient}_0000.nii.gz", "labels/{patient}.nii.gz"),
            ("{patient}/{patient}_ct.nii.gz", "{patient}/{patient}_l.nii.gz"),
        ]
    ),
    st.lists(ids, min_size=1, max_size=6, unique=True),
    st.text("ab.-_", max_size=4),
)
def test_each_file_of_any_layout_is_found_again_and_is_nobody_elses(files, patients, any_text):
    assume(any_text not in ("", ".", "..") or not files[0].startswith("*/"))
    placed = {
        (patient, file): below_data(file).replace("{patient}", patient).replace("*", any_text)
        for patient in patients
        for file in files
    }
    found = FilePaths(files, ANY).sort(placed.values())
    assert found.patients == sorted(patients)
    assert {(patient, file): path for patient in patients for file, path in found.files_of(patient).items()} == placed


def test_where_numbers_stand_beside_a_star_an_id_ends_where_its_number_does():
    found = FilePaths(["{patient}*.nii.gz"], CHALLENGE).sort(
        ["UKCHLL0011.nii.gz", "UKCHLL001_1.nii.gz", "2.nii.gz", "UKCHLL003b.nii.gz"]
    )
    assert found.files == {
        "UKCHLL001": {"{patient}*.nii.gz": ["UKCHLL001_1.nii.gz"]},
        "UKCHLL002": {"{patient}*.nii.gz": ["2.nii.gz"]},
    }


def test_a_file_belongs_to_the_path_that_says_most():
    files = ["all/{patient}.nii.gz", "all/{patient}_label.nii.gz"]
    found = FilePaths(files, ANY).sort(["all/A_1.nii.gz", "all/A_1_label.nii.gz"])
    assert found.patients == ["A_1"]
    assert found.files_of("A_1") == dict(zip(files, ["all/A_1.nii.gz", "all/A_1_label.nii.gz"], strict=True))


@pytest.mark.parametrize(
    ("files", "listing", "told"),
    [
        (["*/{patient}/ct.nii.gz"], ["a/1/ct.nii.gz", "b/UKCHLL001/ct.nii.gz"], "a/1/ct.nii.gz and b/UKCHLL001/ct.nii.gz"),
        (["ct.nii.gz"], ["1/ct.nii.gz", "UKCHLL001/other"], "1 and UKCHLL001 are both this patient's"),
        (["c*.nii.gz"], ["1/ct.nii.gz", "1/c.nii.gz"], "1/c.nii.gz and 1/ct.nii.gz are both|1/ct.nii.gz and 1/c.nii.gz are both"),
    ],
)  # fmt: skip
def test_two_files_in_the_place_of_one_are_refused(files, listing, told):
    with pytest.raises(PatientError, match=told) as refused:
        FilePaths(files, CHALLENGE).sort(listing).files_of("UKCHLL001")
    assert refused.value.subject == "UKCHLL001"


def test_ids_that_differ_only_in_case_are_refused_both():
    found = FilePaths(["ct.nii.gz"], ANY).sort(["case1/ct.nii.gz", "Case1/ct.nii.gz", "case2/ct.nii.gz"])
    for one, other in (("case1", "Case1"), ("Case1", "case1")):
        with pytest.raises(PatientError, match=f"{other} differs from it in upper and lower case only"):
            found.files_of(one)
    assert found.files_of("case2") == {"ct.nii.gz": "case2/ct.nii.gz"}


def test_what_stands_in_the_place_of_an_id_and_is_none_is_told():
    cases = PatientIds(pattern="CASE_[0-9]{4}")
    assert list(FilePaths(["ct.nii.gz"], cases).sort(["CASE_1/ct.nii.gz", "notes.txt"]).strange) == ["CASE_1"]
    found = FilePaths(["images/{patient}.nii.gz"], cases).sort(
        ["images/CASE_00001.nii.gz", "images/CASE_0001.nii.gz", "x/y"]
    )
    assert (found.patients, list(found.strange)) == (["CASE_0001"], ["CASE_00001"])


def test_a_star_is_a_name_and_leads_nowhere_else():
    """A bucket may have an empty name between two slashes, or dots; on a disk these lead out of the folder that files are put in."""
    listing = ["/UKCHLL001/ct.nii.gz", "../UKCHLL002/ct.nii.gz", "./UKCHLL003/ct.nii.gz", "..a/UKCHLL004/ct.nii.gz"]
    found = FilePaths(["*/{patient}/ct.nii.gz"], CHALLENGE).sort(listing)
    assert found.patients == ["UKCHLL004"]
    assert list(found.strange) == listing[:3]


def test_where_ids_have_no_form_a_folder_without_a_file_of_the_study_is_no_patients():
    listing = ["A.1/ct.nii.gz", "A.1/notes.txt", "atlas/mean.nii.gz", "docs/", "B_2/seg.nii.gz"]
    found = FilePaths(["ct.nii.gz", "seg.nii.gz"], ANY).sort(listing)
    assert found.patients == ["A.1", "B_2"]
    assert list(found.strange) == ["atlas", "docs"]
    assert found.shown("A.1") == ["ct.nii.gz", "notes.txt"]
    assert found.shown("atlas") == ["mean.nii.gz"]  # so that a study that names it learns what is there
    cases = FilePaths(["ct.nii.gz"], PatientIds(pattern="[a-z]+")).sort(listing)
    assert (cases.patients, list(cases.strange)) == (["atlas", "docs"], ["A.1", "B_2"])


@given(st.text(max_size=100) | st.integers())
def test_an_id_that_is_taken_is_safe_in_keys_paths_and_partitions(name):
    if ANY.has(str(name)):
        assert ANY.normalise(name) == str(name)
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,78}[A-Za-z0-9_-])?", str(name))
        assert ".." not in str(name)
        assert str(name).lower() not in NO_IDS
        assert not str(name).lower().endswith(NO_ENDINGS)
