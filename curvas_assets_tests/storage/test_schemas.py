"""Claims proved here.

- A table that lacks a column, has one too many, one of another type or one without values is refused where it is written,
  and nothing is stored then.
- The same table, stored by another version, is refused where it is read, with the table, the column and what to do.
- A whole number is a number; a column without any value fits if it may; a table without rows needs the columns alone.
- Every table that the study's own code makes fits its schema.
"""

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError
from curvas_assets.orchestration.ledger import cost_table, materialisation_ledger
from curvas_assets.stages import schemas, table
from curvas_assets.stages.compare import compare_families, split_variance
from curvas_assets.stages.needs import predictor_cost
from curvas_assets.stages.stored import Artefact
from curvas_assets.statistics import PublishedScores, compare_with_published, rank_among_teams
from curvas_assets.storage.directories import write_directory
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.schemas import TableSchema
from curvas_assets.storage.tables import read_table, write_table
from curvas_assets_tests.report.studies import make_intervals, make_scores, make_study

SCHEMA = TableSchema(
    pa.schema(
        [
            pa.field("patient", pa.string(), nullable=False),
            pa.field("voxels", pa.int64(), nullable=False),
            pa.field("value", pa.float64()),
            pa.field("kept", pa.bool_(), nullable=False),
            pa.field("place", pa.string()),
        ]
    ),
    optional=frozenset({"place"}),
)
SOUND = pd.DataFrame({"patient": ["P1", "P2"], "voxels": [1, 2], "value": [0.5, np.nan], "kept": [True, False]})
UNSOUND = {
    "a missing column": (SOUND.drop(columns="value"), "it has no column value"),
    "a column too many": (SOUND.assign(values=1), "its column values is none of patient, voxels, value, kept, place"),
    "text instead of numbers": (SOUND.assign(value=["a", "b"]), "its column value is .*string, not double"),
    "numbers instead of text": (SOUND.assign(patient=[1, 2]), "its column patient is int64, not string"),
    "fractions instead of whole numbers": (SOUND.assign(voxels=[1.5, 2]), "its column voxels is double, not int64"),
    "numbers instead of truths": (SOUND.assign(kept=[0, 1]), "its column kept is int64, not bool"),
    "an absent value": (SOUND.assign(patient=["P1", None]), "its column patient lacks a value in 1 of 2 rows"),
    "an optional column of another type": (SOUND.assign(place=[1, 2]), "its column place is int64, not string"),
}


@pytest.fixture
def store(tmp_path):
    return FolderObjects(tmp_path)


@pytest.mark.parametrize(("unsound", "found"), UNSOUND.values(), ids=UNSOUND)
def test_an_unsound_table_is_not_stored(store, unsound, found):
    with pytest.raises(StorageError, match=f"key: storing a table failed: {found}"):
        write_table(store, "key", unsound, SCHEMA)
    with pytest.raises(MissingArtefactError):
        read_table(store, "key")


@pytest.mark.parametrize(("unsound", "found"), UNSOUND.values(), ids=UNSOUND)
def test_a_table_of_another_version_is_not_read(store, unsound, found):
    write_table(store, "key", unsound)
    with pytest.raises(CorruptArtefactError, match=f"made by another version: {found}. Materialise it again"):
        read_table(store, "key", SCHEMA)


@pytest.mark.parametrize(
    "sound",
    [SOUND, SOUND.assign(value=[1, 2]), SOUND.assign(value=None), SOUND.assign(place=["a", None]), SOUND.iloc[:0]],
    ids=["all columns", "whole numbers", "no value", "an optional column", "no row"],
)
def test_a_sound_table_comes_back_as_it_was(store, sound):
    write_table(store, "key", sound, SCHEMA)
    pd.testing.assert_frame_equal(read_table(store, "key", SCHEMA), sound)


def test_an_artefact_hands_its_tables_out_only_as_its_schemas_say(store, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    SOUND.drop(columns="value").to_parquet(folder / "scores.parquet", index=False)
    write_directory(store, "folder", folder)
    write_table(store, "single", SOUND.drop(columns="value"))
    artefacts = (
        (Artefact(store, "folder", "folder", "scores of P1", {"scores": SCHEMA}), "scores"),
        (Artefact(store, "single", "table", "study_scores", {"study_scores": SCHEMA}), None),
    )
    for artefact, name in artefacts:
        with pytest.raises(CorruptArtefactError, match="made by another version: it has no column value"):
            artefact.table(name)


def test_the_studys_own_tables_fit(store):
    study = make_study()
    scores = make_scores(study)
    board = rank_among_teams(scores, region="body")
    comparisons, *_ = compare_families(study, scores)
    variance, *_ = split_variance(study, scores)
    beside = compare_with_published(scores[scores["metric"] == "dice"], PublishedScores(scores, scores.iloc[:0]))
    ours = scores.assign(group="", unit="", note="")[schemas.SCORES.columns.names]
    for name, made in (
        ("study_scores", ours),
        ("family_comparisons", comparisons),
        ("variance_components", variance),
        ("leaderboard", board),
        ("volume_intervals", make_intervals(study)),
        ("published_comparison", beside),
        ("cost", cost_table(materialisation_ledger(dg.DagsterInstance.ephemeral()), study.prices)),
        ("predictor_cost", predictor_cost(study, materialisation_ledger(dg.DagsterInstance.ephemeral()))),
    ):
        for rows in (made, made.iloc[:0]):
            write_table(store, name, rows, table.asset(name).schemas[name])


def test_schemas_are_of_tables_that_there_are():
    single = {row.name for row in table.ASSETS if row.kind == "table" and row.schemas}
    compared = {"family_comparisons", "variance_components", "leaderboard", "published_comparison", "study_comparison"}
    assert single == {"cohort", "study_scores", "cost", "predictor_cost", "volume_intervals", *compared}
    assert set(table.SCORES.schemas) == {"scores", "reliability", "risk_coverage"}
    assert all(set(row.schemas) == {row.name} for row in table.ASSETS if row.kind == "table" and row.schemas)
    assert schemas.SCORES is table.STUDY_SCORES.schemas["study_scores"]
