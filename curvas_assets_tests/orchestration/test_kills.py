"""Claim proved here: a study that is killed, in a step, in its runs and in what these are forked from, ends by itself as if nothing had been.

The short form of `python -m benchmarks.kills`: one annotator, one seed, as far as the training, cheap work, everything else real.
"""

import pyarrow as pa
import pytest
import yaml

from benchmarks.kills import campaign
from curvas_assets.stages import table
from curvas_assets.study import load_study
from curvas_assets_tests.orchestration import kill_location

KILLS = {"step": 1, "run worker": 1, "fork server": 1}
WRONG = ("torn", "lost", "stuck", "trained twice", "unfinished studies")


@pytest.mark.slow
def test_a_study_that_is_killed_ends_by_itself_as_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setenv("KILL_UNIT_SECONDS", "0.2")
    study = {
        "name": "killed",
        "title": "A study that is killed",
        "annotators": [{"name": "anno1", "file": "annotation_1.nii.gz"}],
        "organs": {"liver": 1},
        "patients": {"prefix": "P", "digits": 3},
        "sets": {"train": ["001", "002"], "test": ["003"]},
        "seeds": [1],
    }
    path = tmp_path / "killed.yaml"
    path.write_text(yaml.safe_dump(study))
    load_study(path)
    stages = ["scan", "training_cases", "preprocessed_dataset", "trained_model"]
    found = campaign(
        sum(KILLS.values()), tmp_path, study=str(path), stages=stages, weights=KILLS, pause_s=(0, 2), seed=5
    )
    assert sum(found["kills"].values()) == sum(KILLS.values())
    assert {name: found[name] for name in WRONG} == {name: [] for name in WRONG}
    assert found["epochs"] > 0


def test_the_campaigns_cheap_tables_have_the_columns_of_the_real_ones():
    for name in kill_location.TABLES:
        for schema in table.asset(name).schemas.values():
            schema.require_written(pa.Table.from_pandas(kill_location._rows(name)), name)
