"""Claims proved here.

- `curvas-init` writes a study file and its schema from a folder, tells what it found and what to type next, and replaces
  nothing unless it is told to.
- From a bucket it finds the same as from the folder that was uploaded to it, without downloading whole scans but a few.
- `curvas-validate` tells each mistake as file, line, field and message, and ends with 1; with a folder, also what is
  missing there, as the intake finds it, and who has too few training patients.
- `make study` brings a study's patients into the bucket; a patient who is refused stops it, with the lines that exclude
  this patient.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from curvas_assets.cohort.discovery import survey
from curvas_assets.cohort.discovery.proposal import Options, propose
from curvas_assets.errors import CurvasError, PatientError, StudyError
from curvas_assets.local import init, study, validate
from curvas_assets.local.deployment import ROOT, state_of, typed_as
from curvas_assets.storage.connection import S3Settings
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import load_study
from curvas_assets.study_file import read_study_file
from curvas_assets.study_schema import schema_text
from curvas_assets_tests.cohort.odd import odd_cohort


def silent(_: str) -> None:
    """Progress that nobody reads."""


def run(program, monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Status, output and errors of a command."""
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
    status = 0
    try:
        program.main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
        errors = "" if isinstance(ended.code, int) else str(ended.code)
    else:
        errors = ""
    told = capsys.readouterr()
    return status, told.out, told.err + errors


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohorts") / "My Cohort"
    odd_cohort(folder, patients=[f"CASE{n:03d}" for n in range(1, 6)])
    return folder


def test_init_writes_a_study_file_and_tells_what_to_type(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, told, _ = run(init, monkeypatch, capsys, cohort, "--small", "--organs", "1=spleen,2+5=both")
    assert status == 0
    text = Path("my-cohort.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=study.schema.json\n")
    assert Path("study.schema.json").read_text() == schema_text()
    assert yaml.safe_load(text)["organs"] == {"spleen": 1, "both": [2, 5]}
    assert "5 patients, 5 usable" in told
    assert "anna        {patient}/seg-anna.nii.gz (5 patients)" in told
    assert "Nothing looks wrong." in told
    assert f"make study STUDY=my-cohort.yaml DATA='{cohort}'" in told
    status, _, errors = run(init, monkeypatch, capsys, cohort)
    assert status == 1
    assert "my-cohort.yaml: writing the study file failed: it is there already" in errors
    assert Path("my-cohort.yaml").read_text() == text
    assert run(init, monkeypatch, capsys, cohort, "--force")[0] == 0
    assert "epochs: 300" in Path("my-cohort.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere"),
        ([], "give a folder, or --bucket"),
        ([".", "--quick", "0"], "--quick takes a number of patients"),
        ([".", "--organs", "liver"], "it is not values and a name of their own"),
        ([".", "--organs", "1=a,1=b"], "it is not values and a name of their own"),
        ([".", "--annotators", "a b"], "it is no name, or stands twice"),
        ([".", "--out", "no/such/x.yaml"], "there is no such folder"),
        (["."], "0 files, none of them NIfTI"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_in_our_own_words(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(init, monkeypatch, capsys, *arguments)
    assert status
    assert told in errors
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_does_not_load_yet_says_so_before_what_is_typed_then(tmp_path, monkeypatch, capsys):
    odd_cohort(tmp_path / "one", patients=["CASE001"])
    monkeypatch.chdir(tmp_path)
    status, told, _ = run(init, monkeypatch, capsys, "one")
    assert status == 0
    assert "one: 1 patient, 1 usable" in told
    assert "STOPS  1 patient can be used" in told
    assert re.search(r"It does not load yet:\n  one.yaml:\d+: sets: .*\nThen:    make study", told)


def test_a_bucket_is_understood_like_the_folder_that_was_uploaded_to_it(cohort, tmp_path):
    objects = FolderObjects(tmp_path / "bucket")
    for path in sorted(cohort.rglob("*.nii.gz")):
        objects.upload(f"data/{path.relative_to(cohort).as_posix()}", path)
    objects.put("data/.DS_Store", b"x")
    objects.put("other/CASE009/ct.nii.gz", b"x")
    downloaded = list[str]()
    download = objects.download
    objects.download = lambda key, path: (downloaded.append(key), download(key, path))[1]
    source = init.BucketSource(objects, "data", tmp_path)
    there = survey(source, tell=silent)
    here = survey(init.FolderSource(cohort), tell=silent)
    for one in (there, here):
        assert one.layout == here.layout
        assert one.volumes == here.volumes
        assert list(one.findings) == list(here.findings)
    texts = [propose(one, Options("x")) for one in (there, here)]
    assert texts[0].partition("\n#\n")[2] == texts[1].partition("\n#\n")[2] != ""  # all but the folder's name
    assert sum("seg-" in key for key in downloaded) == 10
    assert sum("ct" in key.rpartition("/")[2] for key in downloaded) <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_hidden_files_and_circles_of_links_are_left_out(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.nii").write_bytes(b"1")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "y.nii").write_bytes(b"2")
    (tmp_path / "a" / "._x.nii").write_bytes(b"3")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert [one.path for one in init.FolderSource(tmp_path).files()] == ["a/x.nii"]


def test_what_cannot_be_listed_is_told_and_does_not_stop_the_rest(tmp_path):
    (tmp_path / "x.nii").write_bytes(b"1")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es.nii")).write_bytes(b"2")
    except OSError:
        pytest.skip("this disk takes names of UTF-8 only")
    source = init.FolderSource(tmp_path)
    source._note(PermissionError(13, "Permission denied", str(tmp_path / "closed")))
    assert [one.path for one in source.files()] == ["x.nii"]
    assert source.unreadable() == ["donn\\xe9es.nii"]
    source._note(PermissionError(13, "Permission denied", str(tmp_path / "closed")))
    assert source.unreadable() == ["donn\\xe9es.nii", "closed"]


# curvas-validate -----------------------------------------------------------------------------------------------------

PLAIN = """\
name: mine
title: Mine
patients: {prefix: CASE, digits: 3}
image: ct.nii.gz
annotators:
  - {name: anna, file: seg-anna.nii.gz}
  - {name: boris, file: seg-boris.nii.gz}
organs: {spleen: 1, liver: 2}
sets: {train: ["001", "002", "003"], test: ["004", "005"]}
seeds: [1]
"""


def test_mistakes_are_told_by_file_line_and_field(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(PLAIN)
    Path("bad.yaml").write_text(
        PLAIN.replace("seeds: [1]", "seeds: [-1]\nepochs: 3").replace("name: anna", "name: an na")
    )
    Path("broken.yaml").write_text("name: x\ntitle: [\n")
    status, told, _ = run(validate, monkeypatch, capsys, "good.yaml", "curvas")
    assert (status, told) == (0, "good.yaml: nothing is wrong\ncurvas: nothing is wrong\n")
    status, told, _ = run(validate, monkeypatch, capsys, "bad.yaml")
    assert status == 1
    lines = told.splitlines()
    assert [re.match(r"bad\.yaml:(\d+): ([\w.]+)", line).groups() for line in lines] == [
        ("6", "annotators.0.name"),
        ("10", "seeds.0"),
        ("11", "epochs"),
    ]
    status, told, _ = run(validate, monkeypatch, capsys, "broken.yaml", "nowhere.yaml")
    assert status == 1
    assert told.startswith("broken.yaml:3: it is not YAML")
    assert "nowhere.yaml: there is neither a file nor a built-in study of that name" in told
    status, told, _ = run(validate, monkeypatch, capsys, "--schema")
    assert (status, told) == (0, schema_text())


def test_files_that_are_not_there_are_told(cohort, tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(PLAIN.replace('"005"', '"005", "017"'))
    status, told, _ = run(validate, monkeypatch, capsys, path, "--data", cohort)
    assert status == 1
    assert told.splitlines() == [
        f"{path}: image: ct.nii.gz is not there for CASE017 in {cohort}",
        f"{path}: annotators: no label map is there for CASE017 in {cohort}",
    ]
    path.write_text(PLAIN.replace("seg-boris", "seg-carl"))
    told = validate.told_of(path, cohort)
    assert told == [f"{path}: annotators: boris has no file seg-carl.nii.gz of any patient in {cohort}"]
    path.write_text(PLAIN)
    assert validate.told_of(path, cohort) == []
    with pytest.raises(StudyError):
        validate.told_of(path, tmp_path / "nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert validate.told_of("~/mine.yaml") == []  # as make passes it where the shell leaves it alone
    status, told, _ = run(validate, monkeypatch, capsys, "--help")
    assert (status, "curvas-validate --schema  " in told) == (0, True)


def test_two_files_in_the_place_of_one_are_told(tmp_path):
    for place in ("one/CASE001", "two/CASE001", "one/CASE002"):
        (tmp_path / place).mkdir(parents=True)
        for name in ("ct", "seg-anna"):
            (tmp_path / place / f"{name}.nii.gz").touch()
    fields = {
        **yaml.safe_load(PLAIN),
        "image": "*/{patient}/ct.nii.gz",
        "annotators": [{"name": "anna", "file": "*/{patient}/seg-anna.nii.gz"}],
        "sets": {"train": ["001"], "test": ["002"]},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(fields))
    (told,) = validate.told_of(path, tmp_path)
    assert "CASE001: looking for the files failed: one/CASE001/ct.nii.gz and two/CASE001/ct.nii.gz are both" in told


def test_linked_folders_and_files_that_several_paths_fit_are_found_as_the_intake_finds_them(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("A_1", "A_2"):
        for ending in (".nii.gz", "_seg.nii.gz"):
            (flat / f"{name}{ending}").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "all").symlink_to(flat, target_is_directory=True)
    path = tmp_path / "mine.yaml"
    fields = {
        **yaml.safe_load(PLAIN),
        "patients": {},
        "image": "all/{patient}.nii.gz",
        "annotators": [{"name": "anna", "file": "all/{patient}_seg.nii.gz"}],
        "sets": {"train": ["A_1"], "test": ["A_2"]},
    }
    path.write_text(yaml.safe_dump(fields))
    assert validate.told_of(path, tmp_path / "linked") == []
    (flat / "A_2_seg.nii.gz").unlink()
    assert validate.told_of(path, tmp_path / "linked") == [
        f"{path}: annotators: no label map is there for A_2 in {tmp_path / 'linked'}"
    ]


def test_an_annotator_of_too_few_training_patients_is_told(tmp_path):
    for number in range(1, 6):
        for name in ("ct", "seg-anna", *(["seg-boris"] if number > 3 else [])):
            (tmp_path / f"CASE00{number}").mkdir(exist_ok=True)
            (tmp_path / f"CASE00{number}" / f"{name}.nii.gz").touch()
    path = tmp_path / "mine.yaml"
    path.write_text(PLAIN)
    (told,) = validate.told_of(path, tmp_path)
    assert "training_labels: boris has label maps of 0 training patients" in told
    assert "1 are needed (folds all): add them, name the others in training_labels" in told
    path.write_text(PLAIN + "training_labels: [anna]\n")
    assert validate.told_of(path, tmp_path) == []
    path.write_text(PLAIN + "training_labels: [anna, majority]\nfolds: [0, 2]\n")
    assert validate.told_of(path, tmp_path) == []
    (tmp_path / "CASE002" / "seg-anna.nii.gz").unlink()
    assert [one.split("training_labels: ")[1][:30] for one in validate.told_of(path, tmp_path) if "folds" in one] == [
        "anna has label maps of 2 train",
        "majority has label maps of 2 t",
    ]


# make study ----------------------------------------------------------------------------------------------------------

ALL = PLAIN.replace("{spleen: 1, liver: 2}", "{spleen: 1, liver: 2, kidney: 5}") + "ignored_labels: [7, 9]\n"


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> FolderObjects:
    objects = FolderObjects(tmp_path / "bucket")
    monkeypatch.setattr(study, "connect", lambda _: objects)
    return objects


@pytest.fixture
def folder(tmp_path) -> Path:
    odd_cohort(tmp_path / "five", patients=[f"CASE{n:03d}" for n in range(1, 6)])
    return tmp_path / "five"


def test_the_patients_of_a_study_are_brought(folder, bucket, tmp_path):
    path, told = tmp_path / "mine.yaml", list[str]()
    path.write_text(ALL)
    mine = load_study(path)
    study.bring_patients(mine, S3Settings("bucket"), folder, told.append)
    keys = {item.key for item in bucket.list("")}
    assert keys == {f"data/CASE00{n}/{name}.nii.gz" for n in range(1, 6) for name in ("ct", "seg-anna", "seg-boris")}
    assert told[-1] == "data: 5 patients are in the bucket"
    study.bring_patients(mine, S3Settings("bucket"), folder, told.append)
    assert {item.key for item in bucket.list("")} == keys


def test_a_patient_who_is_refused_or_absent_stops_the_study_with_what_to_write(folder, bucket, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(ALL.replace('"005"', '"005", "017"'))
    (folder / "CASE002" / "seg-anna.nii.gz").write_bytes(b"nothing")
    with pytest.raises(PatientError, match="2 of 6 were refused or are not there") as stopped:
        study.bring_patients(load_study(path), S3Settings("bucket"), folder, silent)
    lines = stopped.value.remedy.partition("exclusions:")[2]
    excluded = yaml.safe_load(lines)
    assert list(excluded) == ["CASE002", "CASE017"]
    path.write_text(path.read_text() + f"exclusions:{lines}\n")
    study.bring_patients(load_study(path), S3Settings("bucket"), folder, silent)
    with pytest.raises(CurvasError, match="nowhere"):
        study.run(str(path), str(tmp_path / "nowhere"), tmp_path / "state", 3000, silent, "make study")


def test_the_lines_that_exclude_patients_of_mere_numbers_are_read_as_they_are_meant(bucket, tmp_path):
    (tmp_path / "data" / "001").mkdir(parents=True)
    (tmp_path / "data" / "001" / "ct.nii.gz").touch()
    path = tmp_path / "mine.yaml"
    path.write_text(PLAIN.replace("prefix: CASE", 'prefix: ""'))
    with pytest.raises(PatientError) as stopped:
        study.bring_patients(load_study(path), S3Settings("bucket"), tmp_path / "data", silent)
    (tmp_path / "lines.yaml").write_text(stopped.value.remedy.partition("study file:\n")[2])
    excluded = read_study_file(tmp_path / "lines.yaml", "lines", "").fields["exclusions"]
    assert list(excluded) == ["001", "002", "003", "004", "005"]


def test_a_wrong_study_file_is_told_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(PLAIN.replace("seeds", "seed"))
    status, _, errors = run(study, monkeypatch, capsys, "mine.yaml", "--data", ".")
    assert status == 1
    assert "mine.yaml:10: seed = [1] is not a field" in errors
    assert "`make study STUDY=mine.yaml DATA=.` starts again" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_what_is_typed_is_what_make_runs():
    typed = typed_as("study", state_of("a b/my-study.yaml"), "my-study.yaml", data="/some where/data")
    assert typed == "make study STUDY=my-study.yaml DATA='/some where/data'"
    assert typed_as("study", Path("else where"), "a.yaml") == "make study STUDY=a.yaml STATE='else where'"
    bin_folder = f"VENV={Path(sys.executable).parents[1]}"

    def planned(*line: str) -> str:
        done = subprocess.run(["make", *line, "-n", bin_folder], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout

    assert 'local.study --study "my.yaml" --data "/a b" --state .state-my --port 3000' in planned(
        "study", "STUDY=my.yaml", "DATA=/a b"
    )
    assert 'local.init "/a b" --small --seed 4' in planned("init", "DATA=/a b", "SMALL=1", "ARGS=--seed 4")
    assert 'local.validate "my.yaml" --data "/a b"' in planned("validate", "STUDY=my.yaml", "DATA=/a b")
