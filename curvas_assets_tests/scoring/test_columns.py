"""Claims proved here.

- The wide table has a row per patient and predictor and a column per score, in the order in which they stand in the long one.
- Organs that share their first four letters, or begin with `mean`, keep their whole names, so that no two scores share a column.
- Dice and confidence against another reference than the consensus are in no column of the study's, and are not read back as such.
- The published annotators have their numbers in columns' names, all others their own names; both are read back by name.
- A score that stands there twice is refused with its place and its values, not averaged.
"""

import numpy as np
import pandas as pd
import pytest

from curvas_assets.errors import ScoringError
from curvas_assets.scoring import study_columns
from curvas_assets.scoring.registry import REFERENCES
from curvas_assets.statistics.published import column_meaning

LONG = pd.DataFrame(
    [
        ("P2", "model", "dice", "liver", "", 0.9),
        ("P2", "model", "dice", "kidney-right", "", np.nan),
        ("P2", "model", "dice", "kidney-left", "", 0.8),
        ("P2", "model", "ece", "", "1", 0.1),
        ("P2", "model", "ece", "", "mean", 0.2),
        ("P1", "model", "dice", "liver", "", 0.7),
    ],
    columns=["patient", "predictor", "metric", "organ", "annotator", "value"],
)


def test_every_score_has_a_cell_of_its_own_in_the_order_of_the_long_table():
    wide = study_columns(LONG)
    expected = pd.DataFrame(
        {
            "Patient_ID": ["P2", "P1"],
            "CT": ["model", "model"],
            "DICE_livr": [0.9, 0.7],
            "DICE_kidney-right": [np.nan, np.nan],
            "DICE_kidney-left": [0.8, np.nan],
            "ECE_1": [0.1, np.nan],
            "ECE_mean": [0.2, np.nan],
        }
    )
    pd.testing.assert_frame_equal(wide, expected)


def test_an_organ_whose_name_begins_with_mean_keeps_it():
    rows = [("P", "m", "dice", organ, "", value) for organ, value in (("meaninges", 0.5), ("aorta", 0.25))]
    rows.append(("P", "m", "dice", "", "mean", 0.75))
    wide = study_columns(pd.DataFrame(rows, columns=LONG.columns)).iloc[0]
    assert (wide["DICE_meaninges"], wide["DICE_aort"], wide["DICE_mean"]) == (0.5, 0.25, 0.75)


@pytest.mark.parametrize("reference", [name for name in REFERENCES if name != "consensus"])
def test_another_reference_than_the_consensus_stands_in_the_columns_names(reference):
    confidence = LONG[LONG["metric"] == "dice"].assign(metric="confidence")
    scores = pd.concat([LONG, confidence])
    wide, named = study_columns(scores), study_columns(scores, reference=reference)
    pd.testing.assert_frame_equal(wide, study_columns(scores, reference="consensus"))
    renamed = {name for name in wide.columns if name.startswith(("DICE", "CONF"))}
    assert len(renamed) == 6
    assert not renamed & set(named.columns)
    assert named[f"DICE_{reference}_livr"].tolist() == wide["DICE_livr"].tolist()
    assert named[f"CONF_{reference}_livr"].tolist() == wide["CONF_livr"].tolist()
    assert set(wide.columns) - renamed <= set(named.columns)
    assert column_meaning("DICE_livr") is not None
    assert column_meaning(f"DICE_{reference}_livr") is None


@pytest.mark.parametrize("value", [0.9, 0.5, np.nan])
def test_a_score_that_stands_there_twice_is_refused(value):
    twice = pd.concat([LONG, LONG.iloc[:1].assign(value=value)])
    with pytest.raises(
        ScoringError,
        match=r"P2: making the study's wide table failed: model has 2 scores for DICE_livr: \[0\.9, (0\.9|0\.5|nan)\]",
    ):
        study_columns(twice)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["anno1", "anno2", "anno3"], ["ECE_1", "ECE_2", "ECE_3"]),  # the published table's
        (["zoe-anna", "1", "boris"], ["ECE_zoe-anna", "ECE_1", "ECE_boris"]),
        (["anno1", "1"], ["ECE_anno1", "ECE_1"]),
    ],
)
def test_columns_of_annotators_are_the_studys_numbers_or_their_names_and_are_read_back(names, columns):
    row = {"patient": "P1", "predictor": "model", "metric": "ece", "organ": ""}
    scores = pd.DataFrame([row | {"annotator": name, "value": place} for place, name in enumerate([*names, "mean"])])
    wide = study_columns(scores)
    assert list(wide.columns) == ["Patient_ID", "CT", *columns, "ECE_mean"]
    assert wide.iloc[0, 2:].tolist() == list(range(len(names) + 1))
    meanings = [column_meaning(column, names) for column in columns]
    assert [meaning.annotator for meaning in meanings if meaning is not None] == names
