"""Claims proved here.

- Every fixed sentence of the registry, the leaderboard and the published table's flaws has its French.
- So has every note that scoring and statistics write about undefined, infinite, few and equal values, and every reason and doubt
  of the intake; numbers and names are taken over, and what is not known stays as it is.
- A French report shows none of these sentences in English, and its words do not collide: `jeu` of patients, `ensemble` of models.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from curvas_assets.cohort import implausible_intensities
from curvas_assets.report import build_report
from curvas_assets.report.words import Words, spoken
from curvas_assets.scoring import METRICS, PatientReference, metric_table
from curvas_assets.scoring.registry import REFERENCES
from curvas_assets.statistics import (
    compare_all_families,
    dice_against_entropy,
    non_inferiority,
    rank_among_teams,
    read_published_scores,
    variance_components,
)
from curvas_assets.statistics.challenge import CHALLENGE_CITATION, STANDINGS
from curvas_assets.statistics.pairs import Pair
from curvas_assets.statistics.published import DEFECTS, published_comparability
from curvas_assets_tests.report.studies import make_inputs, make_scores, make_study, written
from curvas_assets_tests.statistics.test_published import as_csv, wide_table

in_french = Words("fr").told
SAME = {"", "calibration", "image", "validation", "test"}
"""What both languages spell alike."""


def unsaid(sentences) -> set[str]:
    """Sentences that stay English."""
    return {text for text in map(str, sentences) if text not in SAME and in_french(text) == text}


def fixed() -> Iterator[str]:
    for metric in METRICS.values():
        yield from (metric.definition, metric.when_empty, metric.per, metric.family, metric.direction)
    yield from (m.oracle for m in METRICS.values() if "definition" in m.oracle or "over all" in m.oracle)
    for compared in REFERENCES.values():
        yield from compared
    for standing in STANDINGS.values():
        yield from (standing.definition, standing.comparability)
    yield CHALLENGE_CITATION
    yield from DEFECTS.values()
    for reference in REFERENCES:
        yield from (
            part for one in ("dice", "confidence") for part in published_comparability(one, reference).split("; ")
        )


def test_every_fixed_sentence_has_its_french():
    assert unsaid(fixed()) == set()
    assert len(set(fixed())) > 60


def test_notes_of_statistics_are_french():
    study = make_study(patients=4)
    scores = make_scores(study)
    notes: list[str] = []
    for change in (None, np.nan, np.inf, 0.5):
        changed = scores.copy()
        hit = changed["metric"].isin(["dice", "ece", "hd95"])
        if change is not None:
            changed.loc[hit & (changed["patient"] != "UKCHLL001"), "value"] = change
        settings = study.statistics.model_copy(update={"draws": 100})
        for table in (compare_all_families(changed, settings), non_inferiority(changed, settings)):
            notes += list(table["note"])
        notes += list(dice_against_entropy(changed)["note"])
        notes += list(variance_components(changed, settings)["note"])
    model = "anno1_init112233_foldall"
    both = [Pair(model, "individual"), Pair("general", "ensemble_all"), Pair("isotonic_ensemble_all", "general")]
    notes += list(compare_all_families(scores, study.statistics.model_copy(update={"draws": 100}), pairs=both)["note"])
    for other in (
        scores.assign(family="general"),
        scores[scores["predictor"] == model],
        scores[scores["predictor"] != model],
        scores[scores["predictor"].str.contains("112233")],
        scores[scores["patient"] == "UKCHLL001"],
        scores.assign(predictor=scores["predictor"].str.replace("foldall", "fold") + scores["patient"].str[-1]),
        scores[(scores["predictor"] != model) | (scores["patient"] != "UKCHLL002")],
    ):
        notes += list(variance_components(other[other["family"] != "annotator"], study.statistics)["note"])
    many = make_scores(make_study(patients=7))
    many.loc[many["metric"] == "dice", "value"] = 0.5
    notes += list(compare_all_families(many, study.statistics.model_copy(update={"draws": 100}))["note"])
    unnamed = scores[(scores["metric"] == "dice") & (scores["organ"] == "liver")].assign(metric="dice_annotator")
    notes += list(variance_components(unnamed, study.statistics)["note"])
    for board in (
        rank_among_teams(scores, region="image"),
        rank_among_teams(scores, region="body", synthetic=True),
        rank_among_teams(scores, region="body", organs=["pdac", "porta"]),
        *(rank_among_teams(scores, region="body", reference=name) for name in REFERENCES),
    ):
        notes += [*board["comparability"], *board["definition"], *board["region"]]
    wide = wide_table(6).iloc[1:].astype(object)
    wide.iloc[0, 3], wide.iloc[1, 3] = "", "x"
    notes += list(read_published_scores(as_csv(pd.concat([wide, wide.iloc[:1]]))).unusable["reason"])
    assert unsaid(notes) == set()
    assert len({in_french(note) for note in notes}) > 12


def test_notes_of_scores_are_french():
    rng = np.random.default_rng(0)
    study = make_study(annotators=2)
    annotations = np.zeros((2, 4, 12, 12), np.uint8)
    annotations[:, :, 2:6, 2:6] = 3
    annotations[1, :, 7:9, 7:9] = 1
    softmax = rng.dirichlet(np.ones(4), (4, 12, 12)).transpose(3, 0, 1, 2).astype("f4")
    sure = np.stack([annotations[0] == c for c in range(4)]).astype("f4")
    notes: list[str] = []
    for drawn, absent in ((annotations, []), (annotations, [2]), (annotations[:1], []), (annotations * 0, [])):
        tumour, *vessels = sorted(study.organs, key=lambda organ: study.organs[organ])
        for chosen in ({}, *({"reference": name, "tumour": tumour, "vessels": vessels} for name in REFERENCES)):
            reference = PatientReference(drawn, (5.0, 3.5, 3.5), organs=study.organs, not_annotated=absent, **chosen)
            for one, members in ((softmax, None), (sure, None), (softmax, [softmax, softmax])):
                notes += list(reference.score(one, members=members).table["note"])
    assert unsaid(notes) == set()
    assert len(set(notes)) > 12


@pytest.mark.parametrize("hu_range", [(0, 0), (0, 255), (0, 4000), (-100, -5), (-1e6, 10), (0, 1e6)])
def test_doubts_of_the_intake_are_french(hu_range):
    doubts = implausible_intensities({"hu_range": hu_range})
    doubts += implausible_intensities({"hu_range": (-1024, 2000), "soft_tissue_share": 0.0001})
    doubts += implausible_intensities({"channels": {"T1": {"range": (3, 3)}, "CT": {"hu_range": hu_range}}})
    assert doubts
    assert unsaid(doubts) == set()
    assert not [told for told in map(in_french, doubts) if "voxel is" in told or "every" in told or "beyond" in told]


@pytest.mark.parametrize(
    ("english", "french"),
    [
        ("missing: no folder of this patient in the bucket", "manquant : aucun dossier de ce patient dans le bucket"),
        ("excluded: a person's own reason", "exclu : a person's own reason"),
        ("the annotation of anno2 has no liver: taken as absent, which counts in training and scores",
         "l'annotation de anno2 n'a pas l'organe liver : considéré comme absent, ce qui compte à l'entraînement et dans les scores"),
        ("the annotation of anno2 is blank but for ignored labels: not annotated, so it trains nothing and nothing is scored against it",
         "l'annotation de anno2 est vide hormis des étiquettes ignorées : non annoté, ne sert ni à l'entraînement ni à l'évaluation"),
        ("the annotation of anno2 is stored in the voxel order RAS, the scan in LPS: it was reordered, and every label stays at its place",
         "l'annotation de anno2 est enregistrée dans l'ordre de voxels RAS, l'image dans LPS : elle a été réordonnée, chaque étiquette reste à sa place"),
        ("2 of 9 undefined; 1 of 9 infinite", "2 sur 9 non définis ; 1 sur 9 infinis"),
        ("what nobody has translated", "what nobody has translated"),
    ],
)  # fmt: skip
def test_names_and_numbers_are_taken_over(english, french):
    assert in_french(english) == french


def test_a_french_report_says_none_of_it_in_english():
    study = make_study(patients=3, language="fr")
    inputs = make_inputs(
        study,
        metrics=metric_table(),
        published=read_published_scores(as_csv(wide_table(4).iloc[1:])),
        slices=(),
        organs=None,
        curves=None,
    )
    page = build_report(inputs, image_formats=(), page=False).markdown
    configured = page.split("Configuration de l'étude")[0] + page.split("### Entraînement")[1]
    english = [text for text in spoken("fr")["sentences"] if len(text) > 16 and text.replace("|", "\\|") in configured]
    assert english == []
    for word in ("higher", "lower", "epistemic", "aleatoric", "why", "none", "individual models"):
        assert f"| {word} |" not in configured, word
    assert "| jeu |" in page
    assert "Précision" not in page
    synthetic = dataclasses.replace(inputs, leaderboard=rank_among_teams(inputs.scores, region="body", synthetic=True))
    assert "patients synthétiques" in written(synthetic, "comparison").markdown


def test_one_word_for_one_thing():
    french = spoken("fr")
    assert french["columns"]["set"] == "jeu"
    said = [text for name in ("texts", "families", "columns", "metrics", "questions") for text in french[name].values()]
    for word in ("ensemble de test", "récision", "plus haut", "plus bas"):
        assert not [text for text in said if word in text]
