"""Claims proved here.

- The demo makes the patients of any synthetic study, under the names that the study reads, with its organs and groups, and
  only those that are not in the bucket yet.
- A study whose patients are real is refused before anything is made.
- Each study has a state of its own, in the Makefile as in the modules, and what the user is told to type names the study.
- A Dagster that ends while it starts, or does not answer, is told in our own words.
- `make study` without a study says what to type, and never takes the demo's. The UI of a named study shows that study,
  whatever the shell's `CURVAS_STUDY` says.
"""

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from curvas_assets.cohort import find_patients, read_patient
from curvas_assets.errors import CurvasError, StorageError, StudyError
from curvas_assets.file_paths import below_data
from curvas_assets.local import demo
from curvas_assets.local.demo import Progress, cohort_of, run, upload_cohort
from curvas_assets.local.deployment import ROOT, LocalDeployment, require_port, state_of, typed_as
from curvas_assets.storage.connection import S3Settings
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import Study, load_study


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> FolderObjects:
    objects = FolderObjects(tmp_path / "bucket")
    monkeypatch.setattr(demo, "connect", lambda _: objects)
    monkeypatch.setattr(demo, "COHORT", {"shape": (20, 40, 40), "spacing_mm": (12.0, 8.4, 8.4), "seed": 1})
    return objects


@pytest.mark.parametrize(
    ("name", "image", "key"),
    [
        ("phantom-full", "image.nii.gz", "data/KNOWN002/image.nii.gz"),
        ("phantom-pdacvi", "*/{patient}_ct.nii.gz", "data/phantoms/TUMOUR002_ct.nii.gz"),
    ],
)
def test_the_demo_makes_the_patients_of_a_synthetic_study(bucket, tmp_path, name, image, key):
    raw = load_study(name).model_dump(mode="json")
    few = {"sets": {"train": [1], "validation": [2], "test": [3]}, "folds": ["all"], "groups": {"C": [3], "A": [1, 2]}}
    none = {"cheap_ensembles": {}, "calibrated": {}, "conformal": {}, "in_distribution_group": None}
    study, told = Study.model_validate(raw | few | none | {"image": image}), list[str]()
    upload_cohort(study, S3Settings("bucket"), tmp_path / "made", told.append)
    keys = {item.key for item in bucket.list("")}
    patients = [study.patients.normalise(n) for n in (1, 2, 3)]
    assert key in keys
    assert {k for k in keys if k.startswith("data/")} - {
        f"data/{patient}/{one.file}" for patient in patients for one in study.annotators
    } == {"data/" + below_data(image).replace("{patient}", p).replace("*", "phantoms") for p in patients}
    noise = {}
    for patient in patients:
        read = read_patient(find_patients(tmp_path / "bucket" / "data", study).files(patient), study)
        assert set(read.annotations[0].ravel().tolist()) == {0, *study.organs.values()}
        noise[patient] = read.scan[:, -3:, :].std()  # air
    assert noise[patients[2]] > 1.5 * noise[patients[0]]  # group C is scanned with a low dose
    upload_cohort(study, S3Settings("bucket"), tmp_path / "made", told.append)
    assert told[-1] == "cohort: 3 phantom patients are in the bucket"


@pytest.mark.parametrize("name", ["curvas", "curvas-medig", "curvas-pdacvi"])
def test_a_study_with_real_patients_is_refused(tmp_path, name):
    with pytest.raises(StudyError, match="its patients are not synthetic, and the demo makes them up"):
        run(tmp_path / "state", 3000, Progress(), name)
    assert not (tmp_path / "state").exists()


def test_only_the_demos_own_annotators_have_habits():
    assert cohort_of(load_study("phantom"))["disagreement"] is None
    assert cohort_of(load_study("demo"))["disagreement"] is None
    assert (
        cohort_of(load_study("phantom-full"))["disagreement"] == cohort_of(load_study("phantom-pdacvi"))["disagreement"]
    )
    assert cohort_of(load_study("phantom-pdacvi"))["annotators"] == 5


@pytest.mark.parametrize("program", ["demo", "ui"])
@pytest.mark.parametrize("study", ["demo", "phantom-full", "somewhere/my-study.yaml"])
def test_each_study_has_a_state_of_its_own_and_is_named_in_what_to_type(program, study, monkeypatch, tmp_path):
    typed = typed_as(program, state_of(study), study)
    assert typed == f"make {program}" + ("" if study == "demo" else f" STUDY={study}")
    line = [*typed.split(), "-n", f"VENV={Path(sys.executable).parents[1]}"]
    planned = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"curvas_assets.local.{program} --study {study} --state {state_of(study)} --port" in planned
    monkeypatch.setattr("curvas_assets.local.deployment.ROOT", tmp_path)  # no checkout
    elsewhere = typed_as(program, state_of(study), study)
    assert elsewhere.startswith(f"python -m curvas_assets.local.{program} --state {state_of(study)}")
    assert (f"--study {study}" in elsewhere) == (study != "demo")


def test_make_study_asks_for_a_study():
    line = ["make", "-n", "study", "DATA=cohort", f"VENV={Path(sys.executable).parents[1]}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "name the study file: make study STUDY=file.yaml DATA=folder" in done.stderr
    assert subprocess.run([*line, "STUDY=mine.yaml"], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("named", "shown"), [("demo", "curvas"), ("phantom-full", "phantom-full")])
def test_a_named_study_is_shown_whatever_the_shell_says(tmp_path, monkeypatch, named, shown):
    monkeypatch.setenv("CURVAS_STUDY", "curvas")
    assert LocalDeployment(tmp_path / "state", study=named).environment()["CURVAS_STUDY"] == shown


def test_a_port_that_is_taken_is_told_with_one_that_leaves_room_for_the_report():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StorageError, match=rf"port {port}: .*another program listens there.*PORT={port + 10} "):
            require_port(port)


@pytest.mark.parametrize(("ended", "says"), [(True, "it ended while starting"), (False, "it did not answer for 0 s")])
def test_a_dagster_that_does_not_start_is_told(monkeypatch, ended, says):
    monkeypatch.setattr(demo, "START_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(CurvasError, match=rf"{says}.*See logs/dagster\.log in the state folder, and start again"):
        demo.launch(SimpleNamespace(has_ended=ended), port)
