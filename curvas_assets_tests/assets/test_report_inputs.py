"""Claims proved here.

- What ensembles are the mean of is read from their volumes, whatever the study says; a volume that is gone is told.
- How networks came to be is read from their own records; a model that was uploaded may say less, and one that is gone is
  left out.
- What behind the report was out of date is named with its reason; what is missing or made elsewhere is not.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from curvas_assets.geometry import Grid
from curvas_assets.stages.write_up import averaged, curves, networks, out_of_date, trained
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter
from curvas_assets.study import Study, load_study


def test_what_was_averaged_is_read_from_the_volumes(tmp_path):
    raw = load_study("phantom").model_dump(mode="json")
    study = Study.model_validate({**raw, "ensembles": {"all": ["anno1", "anno2", "anno3"]}})
    objects, layout = FolderObjects(tmp_path), Layout()
    voxels = np.full((4, 2, 3, 3), 0.25, np.float32)
    patients = ["PHANTOM007", "PHANTOM008", "PHANTOM009"]
    for patient, members in zip(patients, (["a", "b"], ["a", "b", "c"]), strict=False):
        told = {"patient": patient, "predictor": "ensemble_all", "members": members}
        key = layout.softmax(patient, "ensemble_all")
        names = study.class_names
        grid = Grid.with_voxels(voxels.shape[1:], (1, 1, 1))
        with SoftmaxWriter(objects, key, grid, class_names=names, provenance=told) as writer:
            writer.write(0, voxels)
    found = averaged(study, objects, layout, patients)
    assert found["members"].tolist()[:2] == [2, 3]
    assert pd.isna(found["members"].iloc[2])
    assert found["models"].tolist() == ["a, b", "a, b, c", "not known: the volumes are gone, or do not say"]
    assert found["patients"].tolist() == [1, 1, 1]


def test_what_was_out_of_date_behind_the_report_is_named():
    columns = ["asset", "partitions", "made", "stale", "missing", "elsewhere", "why"]
    rows = [["cohort", 1, 1, 1, 0, 0, "scan has a new data version"], ["scores", 3, 2, 0, 1, 0, ""]]
    state = pd.DataFrame(rows, columns=columns)
    assert out_of_date(state) == ["1 of cohort out of date: scan has a new data version"]
    assert out_of_date(state.assign(stale=0)) == []


def test_how_networks_came_to_be_is_read_from_their_records(tmp_path: Path):
    objects, layout = FolderObjects(tmp_path / "bucket"), Layout()
    planned = {
        "configurations": {
            "3d_fullres": {"patch_size": [8, 16, 16], "spacing": [5.0, 0.78125, 0.78125], "batch_size": 2}
        }
    }
    made = {"epochs": 7, "device": "cuda 0", "curve": {"epoch": [0, 1], "ema_dice": [0.1, 0.2]}}
    for model, record, plans in (("own", made, planned), ("uploaded", {"curve": {}}, {}), ("cut", {"curve": {}}, None)):
        folder = tmp_path / model
        folder.mkdir()
        (folder / "training.json").write_text(json.dumps(record))
        if plans is not None:
            (folder / "plans.json").write_text(json.dumps(plans))
        directories.write_directory(objects, layout.model(model), folder)
    trainings = trained(objects, layout, ["own", "uploaded", "cut", "gone"])
    assert list(curves(trainings)) == ["own"]
    found = networks(objects, layout, trainings, "3d_fullres").set_index("model")
    assert list(found.index) == ["own", "uploaded", "cut"]
    assert found.loc["own"].tolist() == [7, "cuda 0", "8 × 16 × 16", "5 × 0.7812 × 0.7812", 2]
    assert found.loc["uploaded"].isna().all()
