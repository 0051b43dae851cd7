"""Claims proved here.

- The table of scores holds whom the study scores now, with the predictors, families and groups it has now, whatever is stored.
- Without any score there is an error that says what to do, and what is stored stays.
- An ensemble that is the mean of others than its members now is not scored; the error names who left and who came.
- Under cross-validation a patient's rows are those of the models that did not see it.
"""

from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from curvas_assets.assets import scores
from curvas_assets.errors import MissingArtefactError, ScoringError
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.stages.score import require_members
from curvas_assets.stages.stored import Artefact, Artefacts
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import Study, load_study

PLAIN = load_study("phantom")


class Store:
    """A bucket in a folder."""

    layout = Layout()

    def __init__(self, folder: Path):
        self.objects = MeteredObjects(FolderObjects(folder))

    def checked_objects(self, hours: float = 0) -> MeteredObjects:
        return self.objects

    def keep(self, folder: Path, patient: str, predictors: list[str]) -> None:
        rows = [
            {"patient": patient, "predictor": p, "family": "as it was", "group": "as it was", "metric": "dice"}
            | {"organ": organ, "annotator": "", "value": 0.5, "unit": "", "note": ""}
            for p in predictors
            for organ in PLAIN.organs
        ]
        (folder / patient).mkdir()
        pd.DataFrame(rows).to_parquet(folder / patient / "scores.parquet", index=False)
        directories.write_directory(self.objects, self.layout.scores(patient), folder / patient)


def edited(**changes) -> Study:
    return Study.model_validate({**PLAIN.model_dump(mode="json"), **changes})


def merged(study: Study, store: Store, patients: list[str]) -> pd.DataFrame:
    _, study_scores = scores.build(study, Partitions.of(study))
    handed = Artefacts({p: Artefact(store.objects, store.layout.scores(p), "folder", p) for p in patients})
    with dg.DagsterInstance.ephemeral() as instance:
        return study_scores(dg.build_asset_context(instance=instance), bucket=store, scores=handed).value


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "store")
    for patient in PLAIN.sets["test"]:
        store.keep(tmp_path, patient, PLAIN.predictors)
    return store


@pytest.mark.parametrize(
    "changes",
    [
        {"exclusions": {"PHANTOM008": "consent withdrawn"}},
        {"sets": {"train": [1, 2, 3, 4, 5, 8], "test": [7, 9]}},
        {"sets": {"train": [1, 2, 3, 4, 5], "test": [7, 9]}},
    ],
)
def test_whoever_is_not_scored_any_more_is_not_in_the_table(store, changes):
    table = merged(edited(**changes), store, list(PLAIN.sets["test"]))
    assert list(table["patient"].unique()) == ["PHANTOM007", "PHANTOM009"]
    assert directories.exists(store.objects, store.layout.scores("PHANTOM008"))  # kept


def test_predictors_families_and_groups_are_those_of_the_study_now(store):
    study = edited(seeds=[112233, 445566], groups={"Z": [7, 8]}, in_distribution_group=None, annotators=[
        a.model_dump() for a in PLAIN.annotators[:1]])  # fmt: skip
    table = merged(study, store, list(PLAIN.sets["test"]))
    families = dict(zip(table["predictor"], table["family"], strict=True))
    models = {"anno1_init112233_foldall": "individual", "anno1_init445566_foldall": "individual"}
    assert families == {**models, "ensemble_all": "general"}
    groups = dict(zip(table["patient"], table["group"], strict=True))
    assert groups == {"PHANTOM007": "Z", "PHANTOM008": "Z", "PHANTOM009": ""}


def test_without_any_score_the_error_says_what_to_do(tmp_path):
    with pytest.raises(MissingArtefactError, match=r"none of 3 patients is scored\. Materialise scores first"):
        merged(PLAIN, Store(tmp_path / "store"), list(PLAIN.sets["test"]))


def test_under_cross_validation_rows_are_of_the_models_that_did_not_see_the_patient(tmp_path):
    study = edited(sets={"train": [1, 2, 3]}, folds=[0, 1, 2], groups={}, in_distribution_group=None)
    store = Store(tmp_path / "store")
    for patient in study.scored_patients():
        store.keep(tmp_path, patient, study.predictors)
    table = merged(study, store, study.scored_patients())
    for patient, rows in table.groupby("patient"):
        assert set(rows["predictor"]) == set(study.predictors_of(str(patient)))
        assert not [
            m for m in study.models if str(m) in set(rows["predictor"]) and patient not in study.held_out(m.fold)
        ]
    assert set(table["patient"]) == set(study.training_patients())


def test_an_ensemble_of_others_than_its_members_now_is_not_scored():
    cell = "ensemble_all|PHANTOM007"
    require_members(["b", "a"], ["a", "b"], cell)
    require_members(None, ["a", "b"], cell)  # a volume from before they said it
    with pytest.raises(
        ScoringError, match=r"the mean of 3 models, without d and with b, c, no members any more\. Materialise"
    ):
        require_members(["a", "b", "c"], ["a", "d"], cell)
    with pytest.raises(ScoringError, match="the mean of 1 models, without b"):
        require_members(["a"], ["a", "b"], cell)
