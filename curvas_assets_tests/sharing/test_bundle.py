"""Claims proved here, on a small study from files to a bundle; the last ones in headless Chromium (skipped where there is none).

- A preview agrees with the volumes that it is made of: labels, values in units, risk as the share of annotators who differ.
- A preview that stays too large is stored, and a warning tells.
- Patients stand worst first; where there is no room, the best are left out, and the bundle says so.
- 65 patients of clinical size stay below 200 MB.
- No key, no address of the store and no folder of this machine is in a bundle; one that would hold any is not written.
- Probabilities are NIfTI files on the scan's own voxels, each named after its organ; label maps have the study's own values.
- A further predictor that cannot be shown leaves the patient and the others in the viewer, and is told.
- Without NiiVue's package the error says what to install; with another form of its code, that it cannot be used.
- The viewer opens from the disk: no error on the console, no request to anywhere; layers go on and off, values are the files'.
- Of patients asked for one right after the other, the last is shown: title, scan and labels are all of that one.
- A row and a point of the report lead to the patient in the viewer; a number that looks like an id does not. It speaks French,
  and fits 420 pixels.
- A file that is dropped onto the picture is a further layer; one that is damaged is told, and the viewer goes on.
"""

import base64
import gzip
import json
import os
import zipfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from curvas_assets.errors import MissingArtefactError, PatientError, ReportError, StudyError
from curvas_assets.geometry import Grid
from curvas_assets.orchestration.operations import share as sharing
from curvas_assets.orchestration.operations.share import _tables, share
from curvas_assets.orchestration.operations.sharing import _forbidden
from curvas_assets.report.words import Words
from curvas_assets.sharing import Bundle, Contents, niivue, previews, worst_first, write_zip
from curvas_assets.sharing.bundle import volumes_script
from curvas_assets.stages import preview as stage
from curvas_assets.stages import table
from curvas_assets.stages.preview import MOST_BYTES, RECORD, stored_preview
from curvas_assets.stages.stored import Artefact, Stored
from curvas_assets.storage import directories, tables
from curvas_assets.storage.softmax import open_softmax
from curvas_assets.study import Study
from curvas_assets_tests.sharing.shared import PATIENTS, make_bundle

CELL = "ensemble_all|UKCHLL001"
CONTENTS = Contents("A study", Words("en"), "", {"liver": "#009E73"}, ["anno1"], "by name")
REPORT = "<html><body><p>nothing</p></body></html>"
EMPTY = {"volumes": [], "predictor": "p", "spacing_mm": [], "scan_spacing_mm": [], "organs": {}}
EMPTY |= {"most_uncertain_mm": None, "centre_mm": [], "not_annotated": []}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_bundle(
        tmp_path_factory.mktemp("shared"),
        language="fr",
        predictors=["anno1_init112233_foldall"],
        probabilities=[CELL],
        full_maps=PATIENTS[:1],
    )


@pytest.fixture(scope="module")
def preview(made, tmp_path_factory):
    """The files of the first patient's preview, and its record."""
    folder = tmp_path_factory.mktemp("preview")
    objects, layout = made.study.objects, made.study.layout
    return folder, stored_preview(Artefact(objects, layout.preview(PATIENTS[0]), "folder", "preview"), folder)


def values(folder, name: str) -> np.ndarray:
    return np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj).T


def listed(folder) -> dict:
    text = (folder / "viewer/patients.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("window.CURVAS = ").rstrip(";\n"))


def test_a_preview_agrees_with_what_it_is_made_of(made, preview):
    folder, facts = preview
    assert all(isinstance(one, Stored) for one in made.study.outcomes.values())
    assert made.study.checks["previews_are_small"].found == {patient: [] for patient in PATIENTS}
    plan = previews.Plan.of(facts["plan"])
    assert plan.block == (1, 1, 1)  # the phantom's voxels are larger than a preview's finest: nothing is averaged
    volume = open_softmax(made.study.objects, made.study.layout.softmax(PATIENTS[0], "ensemble_all"))
    p = volume.slab(0, plan.scan.shape[0])[(slice(None), *plan.crop)]
    segmentation = values(folder, "segmentation")
    np.testing.assert_array_equal(segmentation, p.argmax(axis=0))
    np.testing.assert_allclose(values(folder, "uncertainty"), 1 - p.max(axis=0), atol=0.003)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=0)
    np.testing.assert_allclose(values(folder, "entropy"), entropy, atol=0.004)
    raw = made.study.folder / "cohort" / PATIENTS[0]
    drawn = [values(raw, f"annotation_{k}")[plan.crop] for k in (1, 2, 3)]
    for k, labels in enumerate(drawn, 1):
        np.testing.assert_array_equal(values(folder, f"annotation_{k}"), labels)
    risk = np.mean([labels != segmentation for labels in drawn], axis=0)
    assert 0 < risk.mean() < 1
    np.testing.assert_allclose(values(folder, "risk"), risk, atol=0.003)
    np.testing.assert_allclose(values(folder, "scan"), np.clip(values(raw, "image")[plan.crop], -200, 300), atol=1.01)
    maps = made.study.layout.ensemble_map(PATIENTS[0], "ensemble_all", "mutual_information")
    stored = nib.Nifti1Image.from_bytes(gzip.decompress(made.study.objects.get(maps))).get_fdata().T
    np.testing.assert_allclose(values(folder, "mutual_information"), stored[plan.crop], atol=0.004)
    for organ, label in made.study.study.labels.items():
        x, y, z = facts["organs"][organ]
        voxel = np.rint(np.linalg.inv(plan.grid.affine) @ [x, y, z, 1]).astype(int)
        assert segmentation[tuple(voxel[2::-1])] == label


def test_a_preview_that_stays_too_large_is_stored_and_told(made, monkeypatch):
    monkeypatch.setattr(stage, "MOST_BYTES", 1000)
    one, study = PATIENTS[0], made.study.study
    volumes = {
        row.name: made.study.of(row, [f"{name}|{one}" for name in map(str, names)])
        for row, names in ((table.SOFTMAX, study.models), (table.ENSEMBLE_SOFTMAX, study.ensemble_ids))
    }
    scan = made.study.of(table.SCAN, [one])
    outcomes, checks = made.study.make(stage.preview_patients, stage.CHECKS, [one], **volumes, scan=scan)
    assert outcomes[one].data_version == made.study.outcomes[one].data_version
    (told,) = checks["previews_are_small"].found[one]
    assert told.startswith("its preview takes")
    assert not checks["previews_are_small"].of_defects  # for a defect would not be stored


def test_patients_stand_worst_first(made):
    scores = made.study
    assert made.done.patients == [one["id"] for one in listed(made.folder)["patients"]]
    dice = [one["value"] for one in listed(made.folder)["patients"]]
    assert dice == sorted(dice)
    assert listed(made.folder)["order"].startswith("ensemble_all, ")
    assert scores.warnings == []
    frame = pd.DataFrame({"patient": ["a", "b", "c"], "predictor": "e", "metric": "ece", "value": [0.1, np.nan, 0.3]})
    assert worst_first(frame, "e", "ece", "lower")["patient"].tolist() == ["c", "a", "b"]
    assert worst_first(frame, "e", "ece", "higher")["patient"].tolist() == ["a", "c", "b"]


def test_the_best_patients_are_left_out_where_there_is_no_room(made, tmp_path):
    script = (made.folder / f"viewer/data/{made.done.patients[0]}.js").stat().st_size
    base = made.done.size - sum(path.stat().st_size for path in (made.folder / "viewer/data").iterdir())
    done = share(made.study.tools, tmp_path / "small", patients=PATIENTS, limit_mb=(base + 1.5 * script) / 1e6)
    assert done.patients == made.done.patients[:1]
    assert done.omitted == made.done.patients[1:]
    assert listed(tmp_path / "small")["omitted"] == done.omitted
    alone = made.done.patients[:1]
    further = ["anno1_init112233_foldall"]
    done = share(made.study.tools, tmp_path / "one", patients=alone, predictors=further, limit_mb=(base + script) / 1e6)
    assert (done.patients, done.omitted, done.no_room) == (alone, [], [f"{further[0]}|{alone[0]}"])
    made.study.warnings.clear()
    with pytest.raises(ReportError, match=r"report, tables and viewer take .* Raise limit_mb"):
        share(made.study.tools, tmp_path / "none", patients=PATIENTS, limit_mb=1)


def test_no_better_patient_takes_the_place_of_one_that_was_left_out(tmp_path):
    (tmp_path / "large").write_bytes(bytes(6000))
    with_volume = EMPTY | {"volumes": [{"file": "large"}]}
    bundle = Bundle(tmp_path / "bundle", CONTENTS, REPORT, {}, limit_bytes=1e8)
    bundle.limit_bytes = bundle.size + 4000
    given = {"P1": EMPTY, "P2": with_volume, "P3": EMPTY}
    assert [bundle.add(patient, "p", facts, tmp_path) for patient, facts in given.items()] == [True, False, False]
    assert (bundle.patients, bundle.omitted) == (["P1"], ["P2", "P3"])
    assert bundle.add("P1", "q", EMPTY, tmp_path)  # of one who is in it
    assert not bundle.add("P1", "r", with_volume, tmp_path)
    assert (bundle.patients, bundle.omitted) == (["P1"], ["P2", "P3"])


def test_65_patients_of_clinical_size_stay_below_200_megabytes(made, tmp_path):
    """A preview at its largest: the noise of a CT after its means, borders of organs that are unsure over a centimetre."""
    shape, rng = (150, 108, 135), np.random.default_rng(0)
    assert 0.98 * previews.MOST_VOXELS < np.prod(shape) <= previews.MOST_VOXELS
    grid = Grid.with_voxels(shape, (2, 2.4, 2.4))
    z, y, x = (
        np.arange(n, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, n in enumerate(shape)
    )
    radius = np.sqrt(((z - 75) / 50) ** 2 + ((y - 54) / 30) ** 2 + ((x - 67) / 40) ** 2)
    noise = rng.normal(0, 6, shape).astype(np.float32)  # 20 HU, averaged over 18 voxels that are not quite independent
    border = np.clip(1 - 10 * np.abs(radius - 1), 0, 1) * (0.7 + 0.1 * rng.random(shape, np.float32))
    found = {"scan": previews.scaled(np.where(radius < 1, 110, 40) + noise, -200, 300)[0]}
    found |= {f"labels_{k}": (radius < 0.96 + 0.02 * k).astype(np.uint8) for k in range(4)}
    found |= {f"map_{k}": previews.scaled(border, 0, 1.4)[0] for k in range(4)}
    facts = {"volumes": [{"file": name} for name in found]}
    facts |= {
        key: [] for key in ("predictor", "spacing_mm", "scan_spacing_mm", "organs", "most_uncertain_mm", "centre_mm")
    }
    for name, stored in found.items():
        (tmp_path / name).write_bytes(previews.nifti(stored, grid))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= MOST_BYTES
    script = len(volumes_script("viewer/data/UKCHLL001.js", facts | {"not_annotated": []}, tmp_path))
    beside = made.done.size - sum(path.stat().st_size for path in (made.folder / "viewer/data").iterdir())
    assert 65 * script + 2 * beside < 200e6


def test_no_key_and_no_address_is_in_a_bundle(made, tmp_path):
    for path in made.folder.rglob("*"):
        if path.is_file():
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            assert os.fsencode(made.study.folder) not in content, path
    for name, told in (("report", "https://store.example.org"), ("preview", "AKIA0123456789")):
        bundle = Bundle(
            tmp_path / name, CONTENTS, REPORT.replace("nothing", told if name == "report" else ""), {}, limit_bytes=1e8
        )
        assert bundle.add("P1", "p", EMPTY | {"not_annotated": [told] if name == "preview" else []}, tmp_path)
        with pytest.raises(ReportError, match=f"{'report.html' if name == 'report' else 'P1.js'} would tell"):
            bundle.finish(["store.example.org", "AKIA0123456789", ""])
        assert not (tmp_path / name).exists()


def test_words_that_are_a_key_or_a_folder_elsewhere_are_no_leak(tmp_path):
    """The package's own code, and ordinary words of a report, hold such words as `test` and `/data`."""
    for name, words, leaks in (
        ("plain", "the test set, viewer/data/P1.js, https://example.org/data/x, /dataset, /database-2", False),
        ("folder", "stored at /data", True),
        ("below", '"/data/instance/x"', True),
    ):
        bundle = Bundle(tmp_path / name, CONTENTS, REPORT.replace("nothing", words), {}, limit_bytes=1e8)
        if leaks:
            with pytest.raises(ReportError, match=r"report\.html would tell"):
                bundle.finish(["test", "/data/"])
        else:
            bundle.finish(["test", "/data"])
            assert (tmp_path / name / "viewer.html").exists()


def test_what_must_not_be_told_is_keys_the_store_and_folders():
    settings = SimpleNamespace(
        endpoint="https://store.example.org:9000/",
        access_key="AKIA0",
        secret_key="s3cret",
        session_token=None,
        bucket="b",
    )
    session = SimpleNamespace(
        bucket=SimpleNamespace(settings=lambda: settings), instance=SimpleNamespace(root_directory="/home/one/.state")
    )
    told = ["AKIA0", "s3cret", "store.example.org:9000", "s3://b", "/scratch", "/home/one/.state"]
    assert _forbidden(session, Path("/scratch/bundle")) == told


def test_label_maps_have_the_studys_own_values(made, tmp_path):
    study, model = made.study.study, "anno1_init112233_foldall"
    own = {organ: [100 * label, 700 + label] for organ, label in study.labels.items()}
    other = Study.model_validate(study.model_dump(mode="json") | {"organs": own})
    tools = replace(made.study.tools, study=other)
    share(tools, tmp_path / "bundle", patients=PATIENTS[:1], probabilities=[f"{model}|{PATIENTS[0]}"])
    folder = tmp_path / "bundle/probabilities" / PATIENTS[0] / model
    first = {organ: values[0] for organ, values in own.items()}
    assert json.loads((folder / "organs.json").read_text())["labels"] == {"background": 0} | first
    volume = open_softmax(made.study.objects, made.study.layout.softmax(PATIENTS[0], model))
    np.testing.assert_array_equal(values(folder, "labels"), 100 * volume.labels(0, volume.shape[1]).astype(int))
    assert {one["id"]: one["value"] for one in listed(tmp_path / "bundle")["organs"]} == first


def test_a_further_predictor_that_cannot_be_shown_is_told_and_leaves_the_others(made, tmp_path, monkeypatch):
    absent, there = "anno1_init112233_foldall", "anno2_init112233_foldall"
    volume_of, odd = sharing._volume, (MissingArtefactError, PatientError)

    def volume(tools, cell):
        if cell.predictor == absent:
            raise odd[PATIENTS.index(cell.patient)]("reading", cell.patient, "it is not as it was", "Make it.")
        return volume_of(tools, cell)

    monkeypatch.setattr(sharing, "_volume", volume)
    done = share(made.study.tools, tmp_path / "bundle", patients=PATIENTS[:2], predictors=[absent, there])
    assert sorted(done.patients) == PATIENTS[:2]
    assert sorted(done.missing) == [f"{absent} of {patient}" for patient in PATIENTS[:2]]
    for one in listed(tmp_path / "bundle")["patients"]:
        assert list(one["files"]) == ["ensemble_all", there]
    made.study.warnings.clear()


def test_probabilities_and_full_maps_are_on_the_scans_own_voxels(made, tmp_path):
    folder = made.folder / "probabilities/UKCHLL001/ensemble_all"
    told = json.loads((folder / "organs.json").read_text())
    volume = open_softmax(made.study.objects, made.study.layout.softmax("UKCHLL001", "ensemble_all"))
    p = volume.slab(0, volume.shape[1])
    scan = nib.load(made.study.folder / "cohort/UKCHLL001/image.nii.gz")
    for organ, label in made.study.study.labels.items():
        image = nib.load(folder / told["files"][organ])
        assert told["labels"][organ] == label
        assert image.get_data_dtype() == np.float32
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
        np.testing.assert_allclose(np.asarray(image.dataobj).T, p[label], atol=1e-6)
    full = made.folder / "full/UKCHLL001"
    assert {path.name for path in full.iterdir()} == {"labels.nii.gz", "entropy.nii.gz", "mutual_information.nii.gz"}
    assert nib.load(full / "entropy.nii.gz").shape == scan.shape
    files = {one["file"] for one in listed(made.folder)["contents"]}
    assert {"full/UKCHLL001/entropy.nii.gz", "probabilities/UKCHLL001/ensemble_all/organs.json"} <= files
    assert [one for one in files if not (made.folder / one).is_file()] == []
    with pytest.raises(StudyError, match=r"Give predictor\|patient"):
        share(made.study.tools, tmp_path / "wrong", patients=PATIENTS, probabilities=["UKCHLL001"])


def test_what_is_missing_is_told(made, tmp_path):
    study, key = made.study, made.study.layout.preview(PATIENTS[2])
    kept = directories.read_directory(study.objects, key, tmp_path / "kept")
    for info in list(study.objects.list(f"{key}/")):
        study.objects.delete([info.key])
    done = share(study.tools, tmp_path / "bundle", patients=PATIENTS)
    assert done.missing == [f"preview of {PATIENTS[2]}"]
    assert PATIENTS[2] not in done.patients
    record = json.loads((kept / RECORD).read_text())
    (kept / RECORD).write_text(json.dumps(record | {"class_names": ["background", "spleen"]}))
    directories.write_directory(study.objects, key, kept)
    assert share(study.tools, tmp_path / "renamed", patients=PATIENTS).missing == [f"preview of {PATIENTS[2]}"]
    assert "other organs than the study" in study.warnings[-1]
    (kept / RECORD).write_text(json.dumps(record))
    directories.write_directory(study.objects, key, kept)
    study.warnings.clear()
    assert json.loads((kept / RECORD).read_text())["patient"] == PATIENTS[2]
    with pytest.raises(ReportError, match="the folder is not empty"):
        share(study.tools, tmp_path / "bundle", patients=PATIENTS)


def test_the_table_of_patients_leaves_out_what_the_intake_noted(made):
    study = made.study
    table = pd.DataFrame({"patient": PATIENTS, "reason": "odd", "exclusions": "[]", "slices": 30})
    tables.write_table(study.objects, study.layout.table("cohort"), table)
    assert list(_tables(study.tools, table)["cohort"]) == ["patient", "slices"]
    study.objects.delete([study.layout.table("cohort")])


def test_a_study_without_a_report_is_refused_before_anything_is_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr(type(made.study.layout), "report", lambda self: "reports/nowhere")
    with pytest.raises(MissingArtefactError, match="Run write_report first"):
        share(made.study.tools, tmp_path / "bundle", patients=PATIENTS)
    assert not (tmp_path / "bundle").exists()


def test_a_zip_holds_every_file_and_is_smaller(made, tmp_path):
    size = write_zip(made.folder, tmp_path / "study.zip")
    with zipfile.ZipFile(tmp_path / "study.zip") as archive:
        assert archive.testzip() is None
        names = {name.removeprefix("study/") for name in archive.namelist()}
    assert names == {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert size < made.done.size + made.done.beside
    write_zip(made.folder, tmp_path / "again" if (tmp_path / "again").mkdir() else tmp_path / "again/study.zip")
    assert (tmp_path / "again/study.zip").read_bytes() == (tmp_path / "study.zip").read_bytes()


def test_niivue_comes_from_its_package_with_its_licence(monkeypatch):
    assert "window.Niivue = (function" in niivue.script()[:60]
    assert "Redistribution" in niivue.licence()
    assert niivue.version()[0].isdigit()
    for code, found in (("var a = 1;", "which class"), ("", "which class")):
        monkeypatch.setattr(niivue, "_code", lambda code=code: code)
        with pytest.raises(ReportError, match=found):
            niivue.script()
    monkeypatch.setattr(
        niivue,
        "_code",
        lambda: 'import a from "b";console.log("Creating new Niivue instance");x=new N(1);export{a as b};',
    )
    with pytest.raises(ReportError, match="imports other modules"):
        niivue.script()

    def absent(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(niivue, "distribution", absent)
    with pytest.raises(ReportError, match=r"pip install 'curvas-assets\[share\]'"):
        niivue.licence()


# In a browser --------------------------------------------------------------------------------------------------------


def opened(chromium, path, hash_: str = "", width: int = 1400):
    """A page from the disk; what it says on the console and asks of anyone is kept."""
    page = chromium.new_page(viewport={"width": width, "height": 860})
    page.set_default_timeout(120_000)  # a loaded machine takes its time
    page.errors, page.requests = [], []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.as_uri() + hash_)
    return page


def ready(page, patient: str) -> None:
    page.wait_for_function(
        "patient => ['ready', 'failed'].includes(document.documentElement.dataset.state) && curvasViewer.patient === patient",
        arg=patient,
    )
    assert page.evaluate("document.documentElement.dataset.state") == "ready"


def closed(page) -> None:
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


def shot(page, name: str) -> bytes:
    if folder := os.environ.get("CURVAS_SCREENSHOTS"):
        page.screenshot(path=os.path.join(folder, f"{name}.png"))
    return page.locator("#canvas").screenshot()


def test_the_viewer_opens_from_the_disk_and_shows_what_is_chosen(chromium, made, preview):
    folder, facts = preview
    page = opened(chromium, made.folder / "viewer.html")
    ready(page, made.done.patients[0])  # the worst one, where nobody is named
    page.evaluate(f"window.location.hash = 'patient={PATIENTS[0]}&organ=liver'")
    ready(page, PATIENTS[0])
    assert page.evaluate("curvasViewer.shown") == ["segmentation"]
    assert page.evaluate("curvasViewer.niivue.volumes.length") == 2
    np.testing.assert_allclose(page.evaluate("curvasViewer.crosshair_mm"), facts["organs"]["liver"], atol=0.05)

    plan = previews.Plan.of(facts["plan"])
    voxel = np.rint(np.linalg.inv(plan.grid.affine) @ [*facts["organs"]["liver"], 1]).astype(int)[2::-1]
    told = page.locator("#values tr").evaluate_all(
        "rows => rows.map(row => Array.from(row.cells, cell => cell.textContent))"
    )
    said = dict(told)
    for name in ("scan", "entropy", "risk"):
        title = {"scan": "Image", "entropy": "Entropie prédictive", "risk": "Risque"}[name]
        number = float(said[title].split("\u00a0")[0].replace(",", ".").replace("−", "-"))
        assert number == pytest.approx(float(values(folder, name)[tuple(voxel)]), rel=0.01, abs=1e-3), name
    assert said["Segmentation : ensemble_all"] == said["anno1"] == "foie"
    assert said["Image"].endswith("HU")

    before = shot(page, "viewer")
    page.locator("[data-layer='map entropy'] input[type=checkbox]").check()
    assert page.evaluate("curvasViewer.shown") == ["segmentation", "map entropy"]
    with_entropy = shot(page, "viewer_entropy")
    assert with_entropy != before
    page.locator("[data-layer='map entropy'] input[type=range]").fill("0.2")
    assert shot(page, "viewer_faint") != with_entropy
    page.keyboard.press("Escape")
    page.locator("#canvas").focus()
    page.keyboard.press("5")  # the entropy again
    assert page.evaluate("curvasViewer.shown") == ["segmentation"]
    page.keyboard.press("c")
    assert page.locator("#contours").is_checked()
    page.keyboard.press("u")
    np.testing.assert_allclose(page.evaluate("curvasViewer.crosshair_mm"), facts["most_uncertain_mm"], atol=0.05)

    scan = page.evaluate("curvasViewer.niivue.volumes[0].name")
    for name in ("labels", "entropy"):
        content = (made.folder / f"full/{PATIENTS[0]}/{name}.nii.gz").read_bytes()
        page.evaluate(DROP, [f"{name}.nii.gz", base64.b64encode(content).decode()])
        page.wait_for_function("name => curvasViewer.shown.includes(`dropped ${name}.nii.gz`)", arg=name)
    assert page.evaluate("curvasViewer.niivue.volumes[0].name") == scan
    assert page.evaluate("curvasViewer.shown") == ["segmentation", "dropped labels.nii.gz", "dropped entropy.nii.gz"]
    page.keyboard.press("o")
    told = page.locator("#values tr").evaluate_all(
        "rows => rows.map(row => Array.from(row.cells, cell => cell.textContent))"
    )
    said = dict(told)
    assert said["labels.nii.gz"] == said["Segmentation : ensemble_all"] != "–"
    shot(page, "viewer_dropped")

    page.locator("#predictor").select_option("anno1_init112233_foldall")
    page.wait_for_function(
        "new URLSearchParams(location.hash.slice(1)).get('predictor') === 'anno1_init112233_foldall'"
    )
    ready(page, PATIENTS[0])
    page.wait_for_function(
        "document.querySelector('#rows').textContent.includes('Segmentation : anno1_init112233_foldall')"
    )
    assert "Information mutuelle" not in page.locator("#rows").inner_text()  # a single model has none
    step = "n" if made.done.patients.index(PATIENTS[0]) < len(PATIENTS) - 1 else "p"
    page.locator("#canvas").focus()
    page.keyboard.press(step)
    at = made.done.patients.index(PATIENTS[0]) + (1 if step == "n" else -1)
    ready(page, made.done.patients[at])
    assert page.locator("#list a[aria-current]").inner_text().startswith(made.done.patients[at])
    closed(page)


DROP = """([name, content]) => {
  const transfer = new DataTransfer(), bytes = Uint8Array.from(atob(content), one => one.charCodeAt(0));
  transfer.items.add(new File([bytes], name));
  document.getElementById('canvas').dispatchEvent(
    new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


def test_of_two_patients_asked_for_at_once_the_last_is_shown_whole(chromium, made):
    page = opened(chromium, made.folder / "viewer.html")
    ready(page, made.done.patients[0])
    shown = """() => ({
      names: curvasViewer.niivue.volumes.map(one => one.name), title: document.title, patient: curvasViewer.patient,
      scan: Array.from(curvasViewer.niivue.volumes[0].img).reduce((sum, one) => sum + one, 0),
      labels: Array.from(curvasViewer.niivue.volumes[1].img).reduce((sum, one) => sum + one, 0),
    })"""
    alone = {}
    for patient in PATIENTS[:2]:
        page.evaluate(f"window.location.hash = 'patient={patient}'")
        ready(page, patient)
        alone[patient] = page.evaluate(shown)
    assert alone[PATIENTS[0]]["scan"] != alone[PATIENTS[1]]["scan"]
    page.evaluate(  # NiiVue takes its time over a scan of clinical size
        """() => {
          const viewer = curvasViewer.niivue, load = viewer.loadFromArrayBuffer.bind(viewer);
          viewer.loadFromArrayBuffer = async (...given) => {
            await new Promise(done => setTimeout(done, 150));
            return load(...given);
          };
        }"""
    )
    for first, last in (PATIENTS[:2], PATIENTS[1::-1]):
        page.evaluate(
            """([first, last]) => new Promise(done => {
              window.location.hash = 'patient=' + first;
              setTimeout(() => { window.location.hash = 'patient=' + last; setTimeout(done, 20); }, 50);
            })""",
            [first, last],
        )
        ready(page, last)
        page.wait_for_timeout(400)  # for a volume that would come late
        assert page.evaluate(shown) == alone[last]
    closed(page)


def test_rows_and_points_of_the_report_lead_to_the_viewer(chromium, made):
    page = opened(chromium, made.folder / "report.html")
    page.wait_for_function("document.documentElement.dataset.links")
    link = page.locator(f"td a[href*='patient={PATIENTS[1]}']").first
    assert page.locator("td a[href^='viewer.html']").count() >= len(PATIENTS)
    link.evaluate("one => one.click()")  # its table may be folded
    ready(page, PATIENTS[1])
    page.go_back()
    page.wait_for_function("document.documentElement.dataset.links")
    page.evaluate(
        """patient => {
          const plot = document.getElementById('plot-values_by_patient');
          const trace = plot.data.find(one => (one.hovertext || []).some(text => text.startsWith(patient)));
          const at = trace.hovertext.findIndex(text => text.startsWith(patient));
          plot.emit('plotly_click', {points: [{data: trace, pointNumber: at, hovertext: trace.hovertext[at], x: at}]});
        }""",
        PATIENTS[2],
    )
    ready(page, PATIENTS[2])
    closed(page)


def test_a_number_is_no_patient_and_a_damaged_file_stops_no_other(chromium, tmp_path):
    table = (
        "<table><thead><tr><th>n</th><th>patient</th></tr></thead><tbody><tr><td>1</td><td>{}</td></tr></tbody></table>"
    )
    report = (
        "<html><body><nav></nav>" + table.format("1") + table.format("2").replace("patient", "of") + "</body></html>"
    )
    bundle = Bundle(tmp_path / "bundle", CONTENTS, report, {}, limit_bytes=1e8)
    for patient in ("1", "2"):
        assert bundle.add(patient, "p", EMPTY, tmp_path)
    bundle.finish()
    page = opened(chromium, tmp_path / "bundle/report.html")
    page.wait_for_function("document.documentElement.dataset.links")
    links = page.locator("td a").evaluate_all(
        "links => links.map(one => [one.getAttribute('href'), one.parentElement.cellIndex])"
    )
    assert links == [["viewer.html#patient=1", 1]]
    closed(page)
    damaged = tmp_path / "bundle/viewer/data/1.js"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (tmp_path / "bundle/viewer/data/2.js").unlink()
    page = opened(chromium, tmp_path / "bundle/viewer.html", "#patient=1")
    for patient, message in (("1", "viewer/data/1.js is damaged"), ("2", "viewer/data/2.js is not beside this page")):
        page.evaluate(f"window.location.hash = 'patient={patient}'")
        page.wait_for_function("text => document.getElementById('message').textContent.startsWith(text)", arg=message)
    page.close()


def test_the_pages_fit_a_narrow_screen_and_say_where_a_file_is_missing(chromium, made):
    page = opened(chromium, made.folder / "viewer.html", "#patient=UKCHLL999", width=420)
    page.wait_for_function("document.documentElement.dataset.state === 'failed'")
    assert page.locator("#message").inner_text() == "UKCHLL999 n'est pas dans ce dossier."
    page.evaluate(f"window.location.hash = 'patient={PATIENTS[0]}'")
    ready(page, PATIENTS[0])
    shot(page, "viewer_narrow")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert "UKCHLL001" in page.title()
    assert page.evaluate("document.documentElement.lang") == "fr"
    closed(page)
    page = opened(chromium, made.folder / "index.html", width=420)
    names = page.locator("#contents a").evaluate_all("links => links.map(link => link.textContent)")
    assert {"report.html", "viewer.html", "tables/scores.csv"} <= set(names)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    closed(page)
