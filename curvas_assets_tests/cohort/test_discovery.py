"""Claims proved here.

- Patients, scans, channels and annotators are found in the layouts that are met, whatever the files are called: what a file
  is, its voxels tell, and not its name. Sets and groups are read from folders and tables.
- Values and volumes are those of the files; a draw of sets is the same for a seed, holds its shares, and in each group.
- Everything that is wrong is told, of whom, worst first, and patients who cannot be used are excluded with the reason.
- A study file is proposed that is what was found, field by field, and that loads.
"""

import gzip
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from curvas_assets.cohort.discovery import find_layout, survey
from curvas_assets.cohort.discovery.layout import ids_of
from curvas_assets.cohort.discovery.proposal import Options, propose, propose_sets, small_plans, study_name
from curvas_assets.cohort.discovery.tables import read_told
from curvas_assets.cohort.discovery.volumes import BEGINNING, look, read_intensities, read_label_map
from curvas_assets.errors import CurvasError, PatientError, StudyError
from curvas_assets.geometry import Grid
from curvas_assets.local.init import FolderSource
from curvas_assets.study import problems_in
from curvas_assets.study_file import StudyFile, read_study_file
from curvas_assets_tests.cohort.odd import LAYOUTS, SPACING_MM, VALUES, drawn, odd_cohort, save

IDS = [f"CASE_{n:04d}" for n in range(1, 11)]


def silent(_: str) -> None:
    """Progress that nobody reads."""


def look_at(folder: Path, **how):
    return survey(FolderSource(folder), tell=silent, **how)


def as_file(text: str, tmp_path: Path) -> StudyFile:
    path = tmp_path / "proposed.yaml"
    path.write_text(text, encoding="utf-8")
    return read_study_file(path, "proposed", "")


# The layout, from names alone ----------------------------------------------------------------------------------------


def found(images, labels):
    layout = find_layout({**dict.fromkeys(images, "image"), **dict.fromkeys(labels, "labels")})
    channels = {role.name: (role.pattern, len(role.files)) for role in layout.channels}
    return layout, channels, {role.name: (role.pattern, len(role.files)) for role in layout.annotators}


def test_the_challenges_archive_is_recognised_as_it_is_unpacked():
    sets = {"training": range(1, 21), "validation": range(21, 26), "testing": range(30, 95)}
    folders = [f"{name}_set/UKCHLL{n:03d}" for name, numbers in sets.items() for n in numbers]
    labels = [f"{folder}/annotation_{k}.nii.gz" for folder in folders for k in (1, 2, 3)]
    layout, channels, annotators = found([f"{folder}/image.nii.gz" for folder in folders], labels)
    assert list(channels.values()) == [("*_set/{patient}/image.nii.gz", 90)]
    assert annotators == {f"anno{k}": (f"*_set/{{patient}}/annotation_{k}.nii.gz", 90) for k in (1, 2, 3)}
    assert Counter(layout.sets.values()) == {"train": 20, "validation": 5, "test": 65}
    assert layout.groups == {}


@pytest.mark.parametrize("name", ["P{n:02d}", "CASE_{n:04d}"])
@pytest.mark.parametrize("counts", [(3, 2), (4, 4), (5, 3)])
@pytest.mark.parametrize("people", ["A", "AB", "ABC"])
def test_few_patients_in_folders_of_sets_are_not_taken_for_one(name, counts, people):
    """In so few, one word that all ids share explains as many files as the ids do."""
    places = [(("train", "test")[n > counts[0]], name.format(n=n)) for n in range(1, 1 + sum(counts))]
    for scan, label in (("{s}/img/{p}.nii", "{s}/lab_{a}/{p}.nii"), ("{s}/{p}/ct.nii", "{s}/{p}/seg_{a}.nii")):
        labels = [label.format(s=s, p=p, a=a) for s, p in places for a in people]
        layout, channels, annotators = found([scan.format(s=s, p=p) for s, p in places], labels)
        assert layout.patients == tuple(p for _, p in places)
        assert [count for _, count in channels.values()] == [sum(counts)]
        assert [count for _, count in annotators.values()] == [sum(counts)] * len(people)
        assert Counter(layout.sets.values()) == dict(zip(("train", "test"), counts, strict=True))


def test_five_patients_of_the_challenge_are_five():
    sets = ["training", "training", "training", "validation", "testing"]
    folders = [f"{of}_set/UKCHLL{n:03d}" for n, of in enumerate(sets, 1)]
    labels = [f"{folder}/annotation_{k}.nii.gz" for folder in folders for k in (1, 2, 3)]
    _, channels, annotators = found([f"{folder}/image.nii.gz" for folder in folders], labels)
    assert list(channels.values()) == [("*_set/{patient}/image.nii.gz", 5)]
    assert annotators == {f"anno{k}": (f"*_set/{{patient}}/annotation_{k}.nii.gz", 5) for k in (1, 2, 3)}


def test_who_drew_in_the_folder_of_one_set_alone_is_an_annotator():
    folders = [("train" if n < 7 else "test", f"P{n:02d}") for n in range(1, 11)]
    labels = [f"{s}/{p}/seg_{a}.nii.gz" for s, p in folders for a in ("anna", "boris") if a == "anna" or s == "test"]
    layout, _, annotators = found([f"{s}/{p}/ct.nii.gz" for s, p in folders], labels)
    assert annotators == {
        "anna": ("*/{patient}/seg_anna.nii.gz", 10),
        "boris": ("test/{patient}/seg_boris.nii.gz", 4),
    }
    assert layout.unknown == ()


def test_nnunet_has_channels_and_a_folder_of_test_scans():
    images = [f"images{part}/T_{n:03d}_000{c}.nii.gz" for part, of in (("Tr", range(8)), ("Ts", range(8, 11))) for n in of for c in (0, 1)]  # fmt: skip
    layout, channels, annotators = found(images, [f"labelsTr/T_{n:03d}.nii.gz" for n in range(8)])
    assert list(channels.values()) == [(f"images*/{{patient}}_000{c}.nii.gz", 11) for c in (0, 1)]
    assert list(annotators.values()) == [("labelsTr/{patient}.nii.gz", 8)]
    assert Counter(layout.sets.values()) == {"train": 8, "test": 3}


def test_folders_of_sites_are_groups_and_dates_are_no_ids():
    folders = [f"site{'AB'[n % 2]}/p-{n}" for n in range(1, 13)]
    images = [f"{f}/{f[6:]}_{name}.nii.gz" for f in folders for name in ("T1", "T2")]
    layout, channels, annotators = found(
        images, [f"{f}/{f[6:]}_seg_{20200100 + n}.nii.gz" for n, f in enumerate(folders)]
    )
    assert channels == {name: (f"site*/{{patient}}/{{patient}}_{name}.nii.gz", 12) for name in ("T1", "T2")}
    assert annotators == {"anno1": ("site*/{patient}/{patient}_seg_*.nii.gz", 12)}
    assert Counter(layout.groups.values()) == {"A": 6, "B": 6}
    assert layout.patients[:2] == ("p-1", "p-2")


def test_a_folder_of_each_day_is_no_group():
    days = [f"202001{n:02d}/P{n}" for n in range(1, 9)]
    layout, channels, _ = found([f"{one}/ct.nii.gz" for one in days], [f"{one}/seg.nii.gz" for one in days])
    assert list(channels.values()) == [("*/{patient}/ct.nii.gz", 8)]
    assert layout.groups == {}


def test_numbers_that_are_also_annotators_do_not_mislead():
    _, channels, annotators = found(
        [f"{n}/scan.nii.gz" for n in range(1, 8)], [f"{n}/annotation_{k}.nii" for n in range(1, 8) for k in (1, 2)]
    )
    assert list(channels.values()) == [("{patient}/scan.nii.gz", 7)]
    assert annotators == {f"anno{k}": (f"{{patient}}/annotation_{k}.nii", 7) for k in (1, 2)}


@pytest.mark.parametrize("name", ["{n}", "P{n}", "CASE_{n:03d}"])
@pytest.mark.parametrize("scan", ["{p}/ct.nii.gz", "{p}.nii.gz", "ct/{p}.nii.gz"])
def test_as_many_annotators_as_patients_are_not_taken_for_them(name, scan):
    """A folder 2 with a file 3 is of patient 2 where scans have the patient in the folder, else of patient 3."""
    ids = [name.format(n=n) for n in (1, 2, 3)]
    label = "{a}/{b}.nii.gz"
    _, _, annotators = found(
        [scan.format(p=one) for one in ids], [label.format(a=one, b=other) for one in ids for other in ids]
    )
    whose = "{{patient}}/{one}.nii.gz" if scan.startswith("{p}/") else "{one}/{{patient}}.nii.gz"
    assert sorted(annotators.values()) == [(whose.format(one=one), 3) for one in ids]
    assert len({name.lower() for name in annotators}) == 3


def test_names_are_words_and_never_numbers_alone():
    ids = [f"BraTS-GLI-{n:05d}" for n in range(1, 6)]
    _, channels, annotators = found(
        [f"{one}-000/{one}-000-{m}.nii.gz" for one in ids for m in ("t1c", "t2f")],
        [f"{one}-000/{one}-000-seg.nii.gz" for one in ids],
    )
    assert (list(channels), list(annotators)) == (["t1c", "t2f"], ["anno1"])


def test_annotators_who_share_no_patient_stay_two():
    _, _, annotators = found(
        [f"images/C{n}.nii.gz" for n in range(8)], [f"by_{'anna' if n < 4 else 'boris'}/C{n}.nii.gz" for n in range(8)]
    )
    assert annotators == {"anna": ("by_anna/{patient}.nii.gz", 4), "boris": ("by_boris/{patient}.nii.gz", 4)}


def test_what_fits_no_pattern_is_left_aside():
    images = [f"{one}_ct.nii.gz" for one in IDS] + ["mean_ct.nii.gz", "old/atlas.nii.gz"]
    layout, channels, _ = found(images, [f"{one}_ct_mask.nii.gz" for one in IDS])
    assert list(channels.values()) == [("{patient}_ct.nii.gz", 10)]
    assert set(layout.unknown) == {"mean_ct.nii.gz", "old/atlas.nii.gz"}


def test_one_patient_is_a_layout_and_scans_without_label_maps_are_none():
    layout, _, _ = found(["CASE_0001/ct.nii.gz"], ["CASE_0001/seg-anna.nii.gz"])
    assert layout.patients == ("CASE_0001",)
    with pytest.raises(StudyError, match="no id stands both in a scan's name and in a label map's"):
        found(["a/ct.nii.gz", "b/ct.nii.gz"], ["seg.nii.gz"])


def test_a_form_of_ids_is_one_that_they_have():
    assert ids_of(["UKCHLL001", "UKCHLL020"]) == {"prefix": "UKCHLL", "digits": 3}
    assert ids_of(["a.1-x", "b.22-y"]) == {"pattern": "[A-Za-z]{1}[.][0-9]+-[A-Za-z]{1}"}
    assert ids_of(["a", "1", "a1", "1a", "a_1", "1_a", "a-1"]) == {}


# Volumes and tables --------------------------------------------------------------------------------------------------


def test_a_file_is_told_from_its_voxels(tmp_path):
    scan, (labels, _) = drawn(0)
    noise = np.random.default_rng(0)
    cases = {
        "image": [scan, scan.astype(np.float32) / 3, (np.abs(scan) % 200).astype(np.uint8), noise.random(scan.shape)],
        "labels": [labels, labels.astype(np.float32), labels.astype(np.uint16) * 100, np.zeros_like(labels)],
    }
    for kind, volumes in cases.items():
        for number, voxels in enumerate(volumes):
            path = tmp_path / f"{kind}{number}.nii.gz"
            save(voxels, path)
            assert look(path.read_bytes()[:BEGINNING], path.stat().st_size).kind == kind
            assert (read_label_map(path, "p") is None) == (kind == "image")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda image: image.affine.__setitem__((1, 2), 3.0), "its axes are .* from perpendicular"),
        (lambda image: (image.set_sform(None, 0), image.set_qform(None, 0)), "does not say where the voxels lie"),
        (lambda image: image.header.set_zooms((1.0, 1.0, 1.0)), "its header gives two voxel sizes"),
        (lambda image: image.set_qform(np.diag([10.5, -10.5, 15.0, 1.0]), 1), "and the qform put the same voxel up to"),
    ],
)
def test_a_header_that_the_intake_refuses_is_a_defect_at_the_first_look(change, told):
    image = nib.Nifti1Image(drawn(0)[0].transpose(2, 1, 0), np.diag([-10.5, -10.5, 15.0, 1.0]))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    change(image)
    if image.header["sform_code"]:
        image.header.set_sform(image.affine, 1)
    content = image.to_bytes()
    seen = look(content, len(content))
    assert (seen.grid, seen.kind) == (None, "image")
    assert re.search(told, seen.defect), seen.defect
    assert seen.remedy


def test_a_label_map_says_what_in_it_is_no_number_and_what_is_below_zero(tmp_path):
    labels = drawn(0)[1][0].astype(np.float32)
    for change, told in (
        (np.nan, (False, False)),
        (np.inf, (False, False)),
        (-0.004, (False, True)),
        (-1.0, (True, True)),
    ):
        labels[0, 0, 0] = change
        save(labels, tmp_path / "a.nii.gz")
        found = read_label_map(tmp_path / "a.nii.gz", "p")
        assert (found.negative, found.finite) == told
        assert set(found.voxels) == set(VALUES.values())


def test_a_scan_with_voxels_that_are_no_numbers_is_told_where_it_is_read(tmp_path):
    begin, end = drawn(0)[0].astype(np.float32), drawn(0)[0].astype(np.float32)
    begin[0, 0, 0], end[-1, -1, -1] = np.nan, np.inf
    for name, scan in (("begin", begin), ("end", end)):
        save(scan, tmp_path / f"{name}.nii")
        with pytest.raises(PatientError, match="NaN or infinite"):
            read_intensities(tmp_path / f"{name}.nii", "p")
    seen = look((tmp_path / "begin.nii").read_bytes(), (tmp_path / "begin.nii").stat().st_size)
    assert (seen.grid, seen.kind, seen.defect) == (None, "image", "it holds voxels that are NaN or infinite")


def test_more_labels_than_any_atlas_has_are_told_by_their_neighbours(tmp_path):
    blocks = np.kron(np.arange(1, 121).reshape(4, 5, 6), np.ones((4, 8, 8))).astype(np.uint8)
    save(blocks, tmp_path / "a.nii.gz")
    save(np.random.default_rng(0).permutation(blocks.ravel()).reshape(blocks.shape), tmp_path / "b.nii.gz")
    assert read_label_map(tmp_path / "a.nii.gz", "p").voxels == dict.fromkeys(range(1, 121), 256)
    assert read_label_map(tmp_path / "b.nii.gz", "p") is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", json.dumps({"labels": {"background": 0, "pancreas": 1, "Left Kidney": 2}})),
        ("dataset.json", json.dumps({"labels": {"0": "background", "1": "pancreas", "2": "Left Kidney"}})),
        ("labels.json", json.dumps({"1": "pancreas", "2": "Left Kidney"})),
        ("snap.txt", '# ITK\n    0 0 0 0 0 0 0 "Clear Label"\n    1 255 0 0 1 1 1 "pancreas"\n 2 0 0 0 0.5 1 1 "Left Kidney"\n'),
        ("my_labels.csv", "value;name\n0;background\n1;pancreas\n2;Left Kidney\n"),
        ("structures.tsv", "label\tstructure\n1\tpancreas\n2\tLeft Kidney\n"),
    ],
)  # fmt: skip
def test_names_of_labels_are_read_where_they_stand(name, content):
    told = read_told({name: content.encode()}, IDS)
    assert told.labels == {1: "pancreas", 2: "Left Kidney"}
    assert told.labels_from == name


@pytest.mark.parametrize("path", ["labelled/1/ct.json", "labels/CASE_0001.json"])
def test_what_a_converter_writes_beside_a_scan_names_no_label(path):
    sidecar = {"Modality": "CT", "SeriesNumber": 5, "EchoNumber": 1, "SliceThickness": 2.5, "ImageType": ["ORIGINAL"]}
    assert read_told({path: json.dumps(sidecar).encode()}, IDS).labels == {}


def test_groups_and_sets_are_read_from_a_table():
    rows = [
        f"{n},{'F' if n % 2 else 'M'},{'Lyon' if n < 6 else 'Paris'},{'test' if n > 7 else 'train'}"
        for n in range(1, 11)
    ]
    told = read_told({"meta.csv": "\n".join(["number,sex,centre,split", *rows]).encode()}, IDS)
    assert Counter(told.groups.values()) == {"Lyon": 5, "Paris": 5}
    assert told.groups_from == "column 'centre' of meta.csv"
    assert told.sets == {one: "test" if int(one[-2:]) > 7 else "train" for one in IDS}
    assert read_told({"meta.csv": b"a,b\n1,2\n"}, IDS).groups == {}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"[1, 2]", b"null", b'"x"', b"a;b\n\n1", b"\0" * 99])
@pytest.mark.parametrize("name", ["a.csv", "b.json", "labels.json", "c.txt", "d.xlsx", "e.tsv"])
def test_other_files_tell_nothing(name, content):
    assert read_told({name: content}, IDS).labels == {}


# From a folder to a study file ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LAYOUTS)
def cohort(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    ids = [one.removeprefix("CASE_") for one in IDS] if request.param == "joined" else IDS
    odd_cohort(folder, request.param, patients=ids)
    (folder / "README.md").write_text("what this is")
    (folder / ".DS_Store").write_bytes(b"\0" * 9)
    return request.param, ids, look_at(folder)


def test_a_folder_is_understood_in_every_layout(cohort):
    layout, ids, seen = cohort
    scans, labels = (name.replace("{p}", "{patient}") for name in LAYOUTS[layout])
    assert list(seen.layout.patients) == ids == seen.usable
    assert [role.pattern for role in seen.layout.channels] == [scans]
    names = ["anna", "boris"] if "{a}" in labels else ["anno1"]
    assert {role.name: role.pattern for role in seen.layout.annotators} == {
        name: labels.replace("{a}", name) for name in names
    }
    assert seen.values == sorted(VALUES.values())
    assert seen.ct
    for number, one in enumerate(ids):
        for name, voxels in zip(names, drawn(number)[1], strict=False):
            for value in VALUES.values():
                ml = (voxels == value).sum() * np.prod(SPACING_MM) / 1000
                assert seen.volumes[name][value].get(one, 0) == pytest.approx(ml)
    assert [one.what for one in seen.findings if one.severity != "note"] == []


def test_the_proposed_file_is_what_was_found(cohort, tmp_path):
    layout, ids, seen = cohort
    fields = as_file(propose(seen, Options(name="odd")), tmp_path).fields
    scans, labels = (name.replace("{p}", "{patient}") for name in LAYOUTS[layout])
    own = {"folder of each patient": ("ct.nii.gz", "seg-{a}.nii.gz")}.get(layout, (scans, labels))
    assert fields["image"] == own[0]
    names = ["anna", "boris"] if "{a}" in labels else ["anno1"]
    assert fields["annotators"] == [{"name": name, "file": own[1].replace("{a}", name)} for name in names]
    assert fields["organs"] == {f"organ-{value}": value for value in VALUES.values()}
    assert fields["patients"] == ({"prefix": "", "digits": 4} if layout == "joined" else {"pattern": "CASE_[0-9]{4}"})
    assert sorted(one for of in fields["sets"].values() for one in of) == ids
    assert fields["evaluation"] == {"region": "body"}


def test_the_pattern_of_ids_of_several_forms_is_that_of_all_of_them(tmp_path):
    ids = ["CASE_0001", "CASE_0212", "p-7.b", "p-12.c", "X9"]
    odd_cohort(tmp_path / "data", patients=ids)
    given = as_file(propose(look_at(tmp_path / "data"), Options()), tmp_path).fields["patients"]
    assert given == {"pattern": "CASE_[0-9]{4}|X[0-9]{1}|p-[0-9]+[.][A-Za-z]{1}"}
    assert all(re.fullmatch(given["pattern"], one) for one in ids)
    many = [one for n in range(4) for one in (f"a{'_-.'[:n]}{n}", f"{n}{'_-.'[:n]}b")]
    odd_cohort(tmp_path / "many", patients=many)
    assert as_file(propose(look_at(tmp_path / "many"), Options()), tmp_path).fields["patients"] == {}


@pytest.mark.parametrize("small", [False, True])
def test_the_proposed_file_loads(cohort, small, tmp_path):
    _, _, seen = cohort
    assert problems_in(as_file(propose(seen, Options(small=small)), tmp_path)) == []


def test_a_proposed_file_of_plain_ids_and_labels_loads(tmp_path):
    folder = tmp_path / "plain"
    patients = odd_cohort(folder, patients=[f"CASE{n:03d}" for n in range(1, 11)])
    asked = {name: [value] for name, value in list(VALUES.items())[:2]}
    seen = look_at(folder)
    fields = as_file(propose(seen, Options(organs=asked)), tmp_path).fields
    assert fields["ignored_labels"] == [5, 7, 9]
    assert fields["patients"] == {"prefix": "CASE", "digits": 3}
    del fields["ignored_labels"]
    assert problems_in(StudyFile(fields, {})) == []
    assert sorted(one for of in fields["sets"].values() for one in of) == patients


def test_a_study_of_a_number_is_called_a_study():
    assert study_name("/data/2024") == "study-2024"
    assert study_name("/data/Liver 2024/data") == "liver-2024"


def test_options_choose_annotators_organs_and_names(tmp_path):
    folder = tmp_path / "data"
    odd_cohort(folder, patients=IDS[:4])
    seen = look_at(folder, annotators={"boris": "reader-b"})
    fields = as_file(propose(seen, Options("mine", {"liver": [2], "rest-of-all": [1, 5]})), tmp_path).fields
    assert fields["annotators"] == [{"name": "reader-b", "file": "seg-boris.nii.gz"}]
    assert fields["organs"] == {"liver": 2, "rest-of-all": [1, 5]}
    assert fields["ignored_labels"] == [7, 9]
    assert fields["name"] == "mine"
    with pytest.raises(StudyError, match="no annotator is called carl; found are anna"):
        look_at(folder, annotators={"carl": "carl"})
    with pytest.raises(StudyError, match=r"no label map holds \[4\]"):
        propose(seen, Options(organs={"stomach": [4]}))


def test_a_proposed_file_of_channels_loads_where_studies_have_channels(tmp_path):
    folder = tmp_path / "mr"
    for number, one in enumerate(IDS[:4]):
        scan, maps = drawn(number)
        for name in ("t1", "t2"):
            save(np.maximum(scan + 1000, 0).astype(np.int16), folder / f"{one}_{name}.nii.gz")
        save(maps[0], folder / f"{one}_seg.nii.gz")
    assert problems_in(as_file(propose(look_at(folder), Options()), tmp_path)) == []


def test_magnetic_resonance_has_channels_and_the_whole_scan_as_its_region(tmp_path):
    folder = tmp_path / "mr"
    for number, one in enumerate(IDS[:4]):
        scan, maps = drawn(number)
        for name in ("t1", "t2"):
            save(np.maximum(scan + 1000, 0).astype(np.int16), folder / one / f"{name}.nii.gz")
        save(maps[0], folder / one / "seg.nii.gz")
    fields = as_file(propose(look_at(folder), Options()), tmp_path).fields
    assert fields["channels"] == [
        {"name": name, "file": f"{name}.nii.gz", "normalisation": "zscore"} for name in ("t1", "t2")
    ]
    assert "image" not in fields
    assert fields["evaluation"] == {"region": "image"}


# What looks wrong ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Twelve patients, each with a fault of its own but the last."""
    folder = tmp_path_factory.mktemp("faulty")
    ids = odd_cohort(folder, patients=[f"CASE_{n:04d}" for n in range(1, 13)])

    def file(number: int, name: str) -> Path:
        return folder / ids[number - 1] / f"{name}.nii.gz"

    save(drawn(0)[1][0], file(1, "seg-anna"), (15.0, 10.5, 9.0))  # another grid
    content = file(2, "ct").read_bytes()
    file(2, "ct").write_bytes(content[:200])  # cut short within the header
    content = file(3, "seg-boris").read_bytes()
    file(3, "seg-boris").write_bytes(content[:-8] + bytes(4) + content[-4:])  # damaged
    save(drawn(3)[1][0] * 0, file(4, "seg-anna"))  # blank
    file(5, "seg-boris").unlink()
    file(6, "seg-anna").unlink()
    file(6, "seg-boris").unlink()  # nobody annotated
    soft = drawn(6)[1][0].astype(np.float32)
    soft[:, 1:] = (soft[:, 1:] + soft[:, :-1]) / 2
    save(soft, file(7, "seg-anna"))  # interpolated
    shutil.copy(file(9, "ct"), file(8, "ct"))
    stray = drawn(8)[1][1].copy()
    stray[0, 0, 0] = 77
    one_voxel_ml = np.prod(SPACING_MM) / 1000
    assert one_voxel_ml > 0.1
    save(stray, file(9, "seg-boris"))
    shutil.copy(file(10, "seg-anna"), file(10, "seg-boris"))
    for name in ("seg-anna", "seg-boris"):
        save(drawn(10)[1][0] * 0, file(11, name))  # blank, of everybody
    save(np.zeros((4, 4, 4), np.int16), folder / "atlas.nii.gz")
    (folder / "notes.docx").write_bytes(b"x")
    return ids, look_at(folder)


@pytest.mark.parametrize(
    ("number", "severity", "what"),
    [
        (1, "stops", "seg-anna.nii.gz: the annotation's spacing is 15 × 10.5 × 9 mm, the image's 15 × 10.5 × 10.5"),
        (2, "stops", "ct.nii.gz: the file is cut short"),
        (3, "stops", "seg-boris.nii.gz: the file is truncated or damaged"),
        (4, "check", "the label map of anna is blank"),
        (7, "stops", "seg-anna.nii.gz: labels are up to 0.5 from a whole number"),
        (8, "check", "CASE_0008 and CASE_0009 have the same scan, byte by byte"),
        (10, "check", "the label maps of anna of CASE_0010 and boris of CASE_0010 are the same, voxel by voxel"),
        (11, "stops", "every label map is blank"),
        (0, "check", "1 patient has a scan and no label map: CASE_0006"),
        (0, "note", "boris has no label map of 1 patient: CASE_0005"),
        (0, "check", "label 77 is drawn by boris and never by anna (1 patient)"),
        (0, "check", "1 NIfTI file has no role: atlas.nii.gz"),
        (0, "note", "1 other file is left aside: notes.docx"),
    ],
)
def test_what_is_wrong_is_told(faulty, number, severity, what):
    ids, seen = faulty
    patient = ids[number - 1] if number else ""
    told = [one for one in seen.findings if one.patient == patient and what in one.what]
    assert len(told) == 1, [str(one) for one in seen.findings]
    assert told[0].severity == severity
    assert told[0].remedy.endswith(".")
    assert str(told[0]).startswith(patient)


def test_the_worst_comes_first_and_who_cannot_be_used_is_excluded_with_the_reason(faulty, tmp_path):
    ids, seen = faulty
    order = [one.severity for one in seen.findings]
    assert order == sorted(order, key=["stops", "check", "note"].index)
    bad = [ids[n - 1] for n in (1, 2, 3, 7, 11)]
    assert list(seen.defects) == bad
    text = propose(seen, Options())
    fields = as_file(text, tmp_path).fields
    assert list(fields["exclusions"]) == bad
    members = [one for of in fields["sets"].values() for one in of]
    assert sorted(members) == sorted(one for one in ids if one != "CASE_0006")
    head = text.partition("\nname:")[0]
    assert all(" ".join(one.what.split()[:4]) in head for one in seen.findings)


def test_a_slip_of_the_brush_is_ignored_and_so_is_255_beside_small_values(tmp_path):
    folder, fine = tmp_path / "data", (2.0, 2.0, 2.0)
    for number, one in enumerate(IDS[:6]):
        scan, maps = drawn(number)
        slip = maps[0].copy()
        slip[0, :2] = 255
        slip[5, 5, 5] = 77 if number == 2 else slip[5, 5, 5]
        save(scan, folder / one / "ct.nii.gz", fine)
        save(slip, folder / one / "seg.nii.gz", fine)
    seen = look_at(folder)
    assert seen.strays == [77, 255]
    fields = as_file(propose(seen, Options()), tmp_path).fields
    assert fields["ignored_labels"] == [77, 255]
    assert list(fields["organs"].values()) == sorted(VALUES.values())
    told = [one for one in seen.findings if one.what.startswith("label 77 occurs only here")]
    assert [one.patient for one in told] == [IDS[2]]


def test_the_same_ids_in_two_hospitals_are_told_and_channels_of_names_of_their_own_are_a_note(tmp_path):
    for number, one in enumerate(IDS[:2]):
        scan, (labels, _) = drawn(number)
        for folder in ("lyon", "nice"):
            save(scan, tmp_path / "ids" / folder / one / "ct.nii")
            save(labels, tmp_path / "ids" / folder / one / "seg.nii")
        for name in ("t1", "t2"):
            save(scan, tmp_path / "mr" / one / f"{name}.nii")
        save(labels, tmp_path / "mr" / one / "seg.nii")
    for folder, severity, remedy in (
        ("ids", "check", "rename the patients' folders."),
        ("mr", "note", "visits of one person take an id each."),
    ):
        told = [one for one in look_at(tmp_path / folder).findings if "taken as channels of one" in one.what]
        assert [one.severity for one in told] == [severity]
        assert told[0].remedy.endswith(remedy)


def test_whom_the_proposed_study_would_take_for_a_patient_is_told(tmp_path):
    """A scan alone is nobody's here, and the ids, of letters alone, do not tell it from a patient's."""
    odd_cohort(tmp_path, "folder of each annotator", patients=("ada", "bert", "carl"))
    shutil.copy(tmp_path / "images" / "ada.nii.gz", tmp_path / "images" / "atlas.nii.gz")
    seen = look_at(tmp_path)
    assert list(seen.layout.patients) == ["ada", "bert", "carl"]
    told = [str(one) for one in seen.findings if "by name and place a patient's" in one.what]
    assert len(told) == 1
    assert told[0].startswith("images/atlas.nii.gz: by name and place a patient's, so that the study has atlas among")
    (tmp_path / "images" / "atlas.nii.gz").rename(tmp_path / "images" / "atlas_1.nii.gz")
    assert not [one for one in look_at(tmp_path).findings if "by name and place" in one.what]


def test_endings_in_upper_case_are_told(tmp_path):
    for number, one in enumerate(IDS[:2]):
        scan, maps = drawn(number)
        save(scan, tmp_path / f"{one}_ct.NII")
        save(maps[0], tmp_path / f"{one}_seg.nii")
    told = [one for one in look_at(tmp_path).findings if "in lower case" in one.what]
    assert [(one.severity, one.what.partition(":")[0]) for one in told] == [("stops", "{patient}_ct.NII")]


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path):
    odd_cohort(tmp_path, patients=IDS[:3])
    (tmp_path / "notes.json").write_text("{}")
    source = FolderSource(tmp_path)
    begin = source.beginning

    def closed(path, length):
        if path in (f"{IDS[0]}/ct.nii.gz", "notes.json"):
            raise PermissionError(13, "Permission denied")
        return begin(path, length)

    source.beginning = closed
    seen = survey(source, tell=silent)
    assert seen.usable == IDS[1:3]
    assert seen.defects == {IDS[0]: f"{IDS[0]}/ct.nii.gz: it cannot be read (Permission denied)"}


def test_scans_of_one_size_are_read_whole_only_where_they_begin_alike(tmp_path):
    for number, one in enumerate(IDS[:6]):
        scan, maps = drawn(0 if number == 5 else number)
        save(scan, tmp_path / f"{one}_ct.nii")
        save(maps[0], tmp_path / f"{one}_seg.nii.gz")
    source, opened = FolderSource(tmp_path), Counter()
    whole = source.whole
    source.whole = lambda path: (opened.update([path]), whole(path))[1]
    told = [one.what for one in survey(source, tell=silent).findings if "the same scan" in one.what]
    assert told == ["CASE_0001 and CASE_0006 have the same scan, byte by byte"]
    assert sum(count for path, count in opened.items() if path.endswith("_ct.nii")) == 4 + 2  # intensities, then alike


def test_who_drew_no_training_patient_is_not_trained_on(tmp_path):
    rows = [f"{one},{'train' if n < 4 else 'test'}" for n, one in enumerate(IDS[:6])]
    odd_cohort(tmp_path, patients=IDS[:6])
    (tmp_path / "sets.csv").write_text("\n".join(["id,split", *rows]))
    for one in IDS[:3]:
        (tmp_path / one / "seg-boris.nii.gz").unlink()
    assert (
        "training_labels" not in as_file(propose(look_at(tmp_path), Options()), tmp_path).fields
    )  # boris drew the fourth
    save(drawn(3)[1][1] * 0, tmp_path / IDS[3] / "seg-boris.nii.gz")
    text = propose(look_at(tmp_path), Options())
    assert "boris drew no training patient" in text
    file = as_file(text, tmp_path)
    assert file.fields["training_labels"] == ["anna"]
    assert problems_in(file) == []


def test_left_and_right_are_told_and_one_file_per_organ_too(tmp_path):
    folder = tmp_path / "sides"
    for number, one in enumerate(IDS[:3]):
        scan, _ = drawn(number)
        sides = np.zeros(scan.shape, np.uint8)
        sides[6:10, 14:18, 4:9], sides[6:10, 14:18, 23:28], sides[2:4, 4:8, 14:18] = 3, 8, 1
        save(scan, folder / one / "ct.nii.gz")
        save(sides, folder / one / "seg.nii.gz")
    assert look_at(folder).left_and_right() == [(3, 8)]
    folder = tmp_path / "organs"
    for number, one in enumerate(IDS[:3]):
        scan, (labels, _) = drawn(number)
        save(scan, folder / one / "ct.nii.gz")
        for name in ("liver", "pancreas"):
            save((labels == VALUES[name]).astype(np.uint8), folder / one / f"{name}.nii.gz")
    told = [one.what for one in look_at(folder).findings]
    assert "each of liver, pancreas draws a single label, of very different volumes: one file per organ?" in told


def test_a_padded_scan_is_no_label_map_and_a_folder_without_volumes_is_refused(tmp_path):
    """A first look that sees only padding takes a scan for a blank label map; reading it whole corrects that."""
    folder = tmp_path / "padded"
    for number, one in enumerate(IDS[:2]):
        inside = np.random.default_rng(number).normal(300, 90, (4, 100, 100))
        scan = np.concatenate([np.zeros((106, 100, 100)), np.maximum(inside, 1)])  # 8.1 MiB of padding
        save(scan, folder / "mr" / f"{one}.nii.gz", (1.0, 1.0, 1.0))
        labels = np.zeros(scan.shape, np.uint8)
        labels[107:109, 50:90, 50:90] = 4
        save(labels, folder / "drawn" / f"{one}.nii.gz", (1.0, 1.0, 1.0))
        path = folder / "mr" / f"{one}.nii.gz"
        assert look(path.read_bytes()[:BEGINNING], path.stat().st_size).kind == "labels"
    seen = look_at(folder)
    assert [role.pattern for role in seen.layout.channels] == ["mr/{patient}.nii.gz"]
    assert (seen.values, seen.ct) == ([4], False)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "1.dcm").write_bytes(b"x")
    with pytest.raises(PatientError, match=r"1 file, none of them NIfTI.*1 DICOM file\..*Convert DICOM first"):
        look_at(empty)


@pytest.mark.parametrize(
    "content", [b"", b"x", gzip.compress(b""), gzip.compress(b"\0" * 400), b"\x1f\x8b", b"\0" * 352]
)
def test_no_content_stops_a_look(content):
    seen = look(content, len(content))
    assert seen.kind is None
    assert seen.defect
    assert seen.remedy


def test_a_quick_look_reads_as_many_patients_as_asked(tmp_path):
    odd_cohort(tmp_path)
    seen = look_at(tmp_path, quick=3, seed=1)
    assert len({path.partition("/")[0] for path in seen.maps}) == 3
    assert len(seen.usable) == 10
    assert [one.what for one in seen.findings] == ["14 label maps were not read (--quick)"]


# Sets ----------------------------------------------------------------------------------------------------------------


def test_sets_hold_their_shares_in_each_group_and_depend_on_the_seed(tmp_path):
    ids = odd_cohort(tmp_path, "flat", patients=[f"P{n:02d}" for n in range(1, 31)])
    rows = [f"{one},{'Lyon' if n % 3 else 'Paris'}" for n, one in enumerate(ids)]
    (tmp_path / "meta.csv").write_text("\n".join(["patient,centre", *rows]))
    seen = look_at(tmp_path, quick=1)
    sets, origin = propose_sets(seen, Options(seed=5))
    assert {name: len(of) for name, of in sets.items()} == {"train": 18, "test": 9, "validation": 3}
    assert origin == "a draw with the seed 5, in each group"
    paris = {name: sum(seen.told.groups[one] == "Paris" for one in of) for name, of in sets.items()}
    assert paris == {"train": 6, "test": 3, "validation": 1}
    assert propose_sets(seen, Options(seed=5))[0] == sets
    assert propose_sets(seen, Options(seed=6))[0] != sets
    small, _ = propose_sets(seen, Options(small=True))
    assert sum(map(len, small.values())) == 15
    few = "\n".join(["patient,split", *(f"{one},{'test' if n < 9 else 'train'}" for n, one in enumerate(ids))])
    (tmp_path / "meta.csv").write_text(few)
    told, origin = propose_sets(look_at(tmp_path, quick=1), Options())
    assert (told["test"], len(told["train"]), told["validation"]) == (ids[:9], 21, [])
    assert origin == "column 'split' of meta.csv"


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 0)), (2, (1, 1)), (3, (2, 1)), (5, (3, 2))])
def test_small_cohorts_have_a_test_patient_as_soon_as_there_are_two(count, sizes, tmp_path):
    odd_cohort(tmp_path, patients=IDS[:count])
    seen = look_at(tmp_path)
    sets, _ = propose_sets(seen, Options())
    assert (len(sets["train"]), len(sets["test"])) == sizes
    assert any(one.what == "1 patient can be used" for one in seen.findings) == (count == 1)


def test_plans_of_a_small_run_fit_the_scans_whatever_their_voxel_order():
    axial = Grid((200, 512, 512), np.diag([-0.8, -0.8, 2.0, 1.0]))
    turned = Grid((200, 512, 512), np.array([[0, 0, 2.0, 0], [0.8, 0, 0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1.0]]))
    spacing, patch = small_plans([axial] * 3)
    assert spacing == (10.0, 6.4, 6.4)
    assert patch == (24, 40, 40)
    assert small_plans([turned])[0] == (10.3, 6.4, 6.3)
    thin = Grid((9, 512, 512), np.diag([-0.8, -0.8, 5.0, 1.0]))
    assert small_plans([thin]) == ((5.0, 6.4, 6.4), (16, 40, 40))


def test_a_survey_raises_errors_of_the_platforms_own_only(tmp_path):
    (tmp_path / "a").mkdir()
    for number, name in enumerate(("x.nii.gz", "y.nii", "z.nii.gz")):
        (tmp_path / "a" / name).write_bytes(bytes([number]) * 500)
    with pytest.raises(CurvasError, match="3 unreadable files"):
        look_at(tmp_path)
