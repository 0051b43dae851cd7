"""Claims proved here.

- The two sentences say no more than the tests allow, in English and in French: reduced and unharmed; reduced, accuracy undecided;
  not shown; worse and harmed; too few patients; no ensemble to compare.
- A p that is small only before it is corrected for all primary metrics and pairs decides nothing; one that misses a measure, or
  lacks it, is not "every measure". Measures that contradict each other are told as such.
- Winning on most patients, however surely, is not called better where the mean difference is a loss or may be one, nor losing on
  most worse where the mean gains; the sentence then says that the two contradict each other.
- The lines below show the p by which the sentences decide, not another one.
- Each class of accuracy follows from interval, bound and margin, also where less is better; without a bound nothing is decided.
- The table has every predictor; families of many have one row with the lowest and the highest mean, and are named below.
- Hours and reductions in the table are those of a hand-worked example; without records, of several devices, or of work that was
  not recorded, no ratio is made up, and the page says so.
- An individual model that beats the ensemble is told beside the table, also where the ensemble is not a general one.
"""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from curvas_assets.report.facts import gather
from curvas_assets.report.predictors_table import predictor_tables
from curvas_assets.report.sections.question import answer
from curvas_assets.report.verdict import judge
from curvas_assets.report.words import Words
from curvas_assets.statistics import compare_all_families, non_inferiority, with_questions
from curvas_assets.statistics.families import COLUMNS, MARGIN_COLUMNS
from curvas_assets.study import Statistics
from curvas_assets_tests.report.studies import (
    READS,
    every_family,
    make_inputs,
    make_predictor_cost,
    make_scores,
    make_study,
    said_in,
    written,
)

PRIMARY = {"dice": "higher", "ece": "lower", "ncc": "higher", "aurc": "lower"}


def shifted(kind: str, patients: int, language: str):
    """Inputs of a study whose general ensemble is as the kind says."""
    study = make_study(patients=patients, language=language)
    scores = make_scores(study)
    scores = scores[scores["metric"].isin(PRIMARY)].reset_index(drop=True)
    general = scores["family"] == "general"
    rng = np.random.default_rng(1)
    for metric, side in PRIMARY.items():
        rows = general & (scores["metric"] == metric)
        spread = float(scores.loc[scores["metric"] == metric, "value"].std())
        sign = 1 if side == "higher" else -1
        if metric == "dice":
            noise = {one: rng.normal(0, 0.05) for one in study.scored_patients()}
            change = {"open": scores["patient"].map(noise), "worse": -0.2}.get(kind, 0.0)
            scores.loc[rows, "value"] += change[rows] if isinstance(change, pd.Series) else change
        elif kind == "no":
            # The general ensemble is as good as one of the models, another one for each patient.
            copied = scores[(scores["metric"] == metric) & (scores["family"] == "individual")]
            models = [str(study.models[index % 9]) for index in rng.permutation(patients)]
            for patient, model in zip(study.scored_patients(), models, strict=True):
                own = copied[(copied["patient"] == patient) & (copied["predictor"] == model)]
                scores.loc[rows & (scores["patient"] == patient), "value"] = own["value"].to_numpy()
        else:
            scores.loc[rows, "value"] += (-5 if kind == "worse" else 5) * sign * spread
    return make_inputs(study, only=READS["question"], scores=scores)


SENTENCES = {
    ("better", 10, "en"): ("Uncertainty is reduced: on 10 patients, every primary measure", "Accuracy is not hurt"),
    ("open", 10, "en"): ("Uncertainty is reduced: on 10 patients", "The data do not decide whether accuracy is hurt"),
    ("no", 10, "en"): ("The data do not show that uncertainty is reduced", "Accuracy is not hurt"),
    ("worse", 10, "en"): ("Uncertainty is not reduced, it grows", "Accuracy is hurt by more than the margin"),
    ("better", 3, "en"): ("The data do not decide whether uncertainty is reduced: there are too few patients (3 patients; below 6",
                          "Nor do they decide whether accuracy is hurt: on 3 patients"),
    ("better", 1, "en"): ("there are too few patients (one patient", "on one patient"),
    ("better", 10, "fr"): ("L'incertitude est réduite : sur 10 patients, chacune de ses mesures", "L'exactitude n'est pas dégradée"),
    ("open", 10, "fr"): ("L'incertitude est réduite : sur 10", "Les données ne tranchent pas si l'exactitude est dégradée"),
    ("no", 10, "fr"): ("Les données ne montrent pas que l'incertitude est réduite", "L'exactitude n'est pas dégradée"),
    ("worse", 10, "fr"): ("L'incertitude n'est pas réduite, elle augmente", "L'exactitude est dégradée de plus que la marge"),
    ("better", 3, "fr"): ("il y a trop peu de patients (3 patients ; en dessous de 6", "Elles ne tranchent pas non plus"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "patients", "language"), list(SENTENCES))
def test_the_two_sentences_say_what_the_data_allow(kind, patients, language):
    inputs = shifted(kind, patients, language)
    sentences = answer(gather(inputs))
    assert len(sentences) == 2
    for sentence, told in zip(sentences, SENTENCES[kind, patients, language], strict=True):
        assert told in sentence
        assert "{" not in sentence
    first = written(inputs, "question").markdown
    quoted = [line.removeprefix("> ") for line in first.splitlines() if line.startswith("> ")]
    assert quoted == sentences
    assert first.index(quoted[1]) < first.index("\n| ")  # before the table


def test_synthetic_patients_are_called_so_in_the_answer():
    inputs = shifted("better", 10, "en")
    study = inputs.study.model_copy(update={"synthetic": True})
    assert "on 10 synthetic patients" in answer(gather(dataclasses.replace(inputs, study=study)))[0]


def row(metric: str, p: float, *, worse: float = 1.0, n: int = 20, first: str = "general", **more) -> dict[str, object]:
    """A comparison with the individual models; `worse` is the two-sided p with the first family behind."""
    wins = 0.2 if worse < 1 else 0.8
    gain = -1 if worse < 1 else 1
    difference = gain * (1 if PRIMARY[metric] == "higher" else -1) * np.array([0.0005, 0.001, 0.002])
    told = {"metric": metric, "first": first, "second": "individual", "n_pairs": n, "win_probability": wins}
    told |= {"p_randomisation": p, "p_randomisation_two_sided": min(worse, 2 * p), "mean_difference": difference[1]}
    ends = {"interval_low": difference.min(), "interval_high": difference.max()}
    return dict.fromkeys(COLUMNS, np.nan) | told | ends | more


def margins(bound: float, holds: bool | None, *, first: str = "general", n: int = 20) -> pd.DataFrame:
    told = {"metric": "dice", "first": first, "second": "individual", "n_pairs": n, "margin": 0.01, "level": 0.95}
    told |= {"mean_difference": 0.0, "bound": bound, "not_inferior": pd.NA if holds is None else holds, "note": ""}
    return pd.DataFrame([told], columns=list(MARGIN_COLUMNS)).astype({"not_inferior": "boolean"})


def verdict(*rows: dict[str, object], margin: pd.DataFrame | None = None, directions=PRIMARY):
    table = pd.DataFrame(list(rows), columns=list(dict.fromkeys([*COLUMNS, *(k for one in rows for k in one)])))
    return judge(table, pd.DataFrame() if margin is None else margin, Statistics(), directions)


def test_every_measure_must_be_better_by_a_corrected_p():
    assert verdict(row("ece", 0.001), row("ncc", 0.001), row("aurc", 0.001)).uncertainty == "better"
    assert verdict(row("ece", 0.03), row("ncc", 0.03), row("aurc", 0.03)).uncertainty == "undecided"
    partly = verdict(row("ece", 0.001), row("ncc", 0.2), row("aurc", 0.001))
    assert (partly.uncertainty, [one.metric for one in partly.open]) == ("partly", ["ncc"])
    lacking = verdict(row("ece", 0.001), row("aurc", 0.001))
    assert (lacking.uncertainty, lacking.lacking) == ("partly", ["ncc"])
    mixed = verdict(row("ece", 0.001), row("ncc", 1.0, worse=0.001), row("aurc", 0.5))
    assert (mixed.uncertainty, [one.metric for one in mixed.worse]) == ("mixed", ["ncc"])
    assert verdict(row("ece", 1.0, worse=0.001), row("ncc", 0.5), row("aurc", 0.5)).uncertainty == "worse"
    assert verdict(row("ece", 0.001, n=5), row("ncc", 0.001, n=5), row("aurc", 0.001, n=5)).uncertainty == "few"
    assert verdict(row("ece", 0.001, n=0)).uncertainty == "untested"
    assert verdict().uncertainty == "untested"


def test_the_correction_of_the_comparisons_is_taken_where_they_have_one():
    rows = [row(metric, 0.001, p_adjusted=0.2) for metric in ("ece", "ncc", "aurc")]
    assert verdict(*rows).uncertainty == "undecided"
    rows = [row(metric, 0.5, p_adjusted=0.01) for metric in ("ece", "ncc", "aurc")]
    assert verdict(*rows).uncertainty == "better"


def of_patients(gains: dict[str, np.ndarray]) -> pd.DataFrame:
    """Scores of a general ensemble that gains so much over three individual models, patient by patient."""
    rows = []
    for metric, gain in gains.items():
        sign = 1 if PRIMARY[metric] == "higher" else -1
        for patient, change in enumerate(gain):
            for predictor, value in (("ensemble_all", 0.5 + sign * change), *((f"m{i}", 0.5) for i in range(3))):
                family = "general" if predictor == "ensemble_all" else "individual"
                rows.append((f"UKCHLL{patient + 1:03}", predictor, family, metric, value))
    return pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value"])


def judged(gains: dict[str, np.ndarray]):
    scores = of_patients(gains)
    comparisons = with_questions(compare_all_families(scores, Statistics(draws=4999)))
    return comparisons, judge(comparisons, non_inferiority(scores), Statistics(), PRIMARY)


LITTLE = np.r_[np.full(38, 0.001), -0.021, -0.021]
"""Of 40 patients: 38 gain a little, 2 lose so much that the mean is a loss."""
RISKY = np.r_[np.full(38, 0.0001), -0.18, -0.15]


@pytest.mark.parametrize(("gain", "language"), [(1, "en"), (-1, "en"), (1, "fr")])
def test_winning_on_most_patients_is_not_better_where_the_mean_does_not_follow(gain, language):
    surely = np.linspace(0.001, 0.003, 40)
    comparisons, found = judged({"ece": gain * LITTLE, "aurc": gain * RISKY, "ncc": gain * surely, "dice": surely})
    against = comparisons[(comparisons["first"] == "general") & (comparisons["second"] == "individual")]
    row_of = against.set_index("metric")
    assert row_of.loc["ece", "mean_difference"] == pytest.approx(gain * 0.0001)
    assert row_of.loc["aurc", "mean_difference"] == pytest.approx(gain * 0.008155)
    if gain > 0:
        assert (row_of.loc[["ece", "aurc"], "p_adjusted"] < 0.01).all()
    assert [one.metric for one in found.open] == ["ece", "aurc"]
    assert [one.metric for one in (found.better if gain > 0 else found.worse)] == ["ncc"]
    assert found.uncertainty == ("partly" if gain > 0 else "worse")
    study = make_study(patients=1, language=language)
    inputs = make_inputs(study, only=READS["question"], comparisons=comparisons)
    told = answer(gather(inputs))[0]
    told = told.replace("\u00a0", " ")
    share = "95 %" if gain > 0 else "5 %"
    p = "corrected p" if gain > 0 else "corrected two-sided p"
    said = {
        "en": f"AURC (better in {share} of the comparisons, {p} 8.00 × 10⁻⁴, which the mean difference does not bear out: ",
        "fr": f"AURC (l'emporte dans {share} des comparaisons, p corrigé 8,00 × 10⁻⁴, ce que la différence moyenne ne confirme pas : ",
    }
    assert said[language] in told
    assert ("+0.00816" if gain > 0 else "−0.00816") in told.replace(",", ".")


@pytest.mark.parametrize("adjusted", [True, False])
@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_lines_show_the_p_by_which_the_sentences_decide(adjusted, language):
    surely = np.linspace(0.001, 0.003, 10)
    comparisons, found = judged({"ece": surely, "aurc": surely, "ncc": surely, "dice": surely})
    of_ece = next(one for one in found.better if one.metric == "ece")
    within_metric = comparisons.loc[comparisons["metric"] == "ece", "p_randomisation_holm"].min()
    assert of_ece.p > 3 * within_metric  # Holm over all pairs of all primary metrics is another p
    given = comparisons if adjusted else comparisons.drop(columns=["p_adjusted", "question", "adjustment"])
    study = make_study(patients=1, language=language)
    first = said_in(study, "question", comparisons=given).replace("\u00a0", " ")
    w = Words(language)
    told = {"en": "corrected one-sided p {} (Holm, over all pairs", "fr": "p unilatéral corrigé {} (Holm, sur toutes"}
    assert first.count(told[language].format(w.p_value(of_ece.p).replace("\u00a0", " "))) == 4
    assert f"{w('corrected_p')} {w.p_value(of_ece.p)}".replace("\u00a0", " ") in first
    assert w.p_value(within_metric).replace("\u00a0", " ") not in first


def test_nothing_is_called_reduced_where_every_mean_is_a_loss():
    found = judged({"ece": LITTLE, "aurc": RISKY, "ncc": LITTLE})[1]
    assert (found.uncertainty, found.better, found.worse) == ("undecided", [], [])


def test_a_mean_that_gains_only_as_far_as_it_is_known_decides_nothing():
    """The mean gains, but its interval reaches the losses."""
    barely = np.r_[np.full(38, 0.001), -0.018, -0.018]
    comparisons, found = judged({"ece": barely, "aurc": barely, "ncc": barely})
    assert (comparisons.loc[comparisons["second"] == "individual", "p_adjusted"].dropna() < 0.01).all()
    assert found.uncertainty == "undecided"


def test_accuracy_that_most_patients_gain_and_the_mean_loses_is_not_called_improved():
    dice = np.r_[np.full(52, 0.003), np.full(8, -0.03)]
    _, found = judged({"dice": dice, "ece": np.linspace(0.001, 0.003, 60)})
    assert found.accurate is not None
    assert found.accurate.difference == pytest.approx(-0.0014)
    assert found.accurate.p < 0.01
    assert (found.uncertainty, found.accuracy) == ("partly", "unharmed")


@pytest.mark.parametrize(
    ("low", "high", "p", "bound", "holds", "expected"),
    [
        (0.001, 0.005, 0.001, 0.002, True, "improved"),
        (-0.002, 0.005, 0.4, -0.001, True, "unharmed"),
        (-0.006, -0.001, 1.0, -0.005, True, "slightly"),
        (-0.02, 0.03, 0.4, -0.015, False, "undecided"),
        (-0.02, -0.005, 1.0, -0.018, False, "lower"),
        (-0.05, -0.02, 1.0, -0.04, False, "harmed"),
        (np.nan, np.nan, 0.001, np.nan, None, "unbounded"),
    ],
)
def test_accuracy_follows_from_interval_bound_and_margin(low, high, p, bound, holds, expected):
    higher = row("dice", p, interval_low=low, interval_high=high)
    assert verdict(higher, margin=margins(bound, holds)).accuracy == expected
    lower = row("dice", p, interval_low=-high, interval_high=-low)
    swapped = verdict(lower, margin=margins(-bound, holds), directions={"dice": "lower"})
    assert swapped.accuracy == expected
    assert verdict(row("dice", p, n=5), margin=margins(bound, holds, n=5)).accuracy == "few"
    assert verdict(higher).accuracy == "untested"


def test_the_first_ensemble_that_was_compared_answers():
    rows = [row("ece", 0.001, first=first) for first in ("annotator", "fused ensemble", "flips", "calibrated")]
    assert verdict(*rows).first == "fused ensemble"
    assert verdict(row("ece", 0.001, first="calibrated"), row("ece", 0.001, first="fused")).first == ""


# The table --------------------------------------------------------------------------------------------------------------


def tables_and_notes(facts) -> tuple[list[list[dict[str, str]]], str]:
    """The tables of predictors as rows by heading, the first one first; and the notes below them."""
    blocks = predictor_tables(facts)
    tables = [block.table for block in blocks if block.kind == "table"]
    rows = [[dict(zip(table.header, texts, strict=True)) for texts in table.rows] for table in tables]
    return rows, " ".join(block.text for block in blocks if block.kind == "note")


def tables(inputs) -> list[list[dict[str, str]]]:
    return tables_and_notes(gather(inputs))[0]


@pytest.fixture(scope="module")
def everything():
    return make_inputs(every_family(patients=2), only=READS["question"])


def test_every_predictor_has_a_row_and_large_families_one(everything):
    short, whole = tables(everything)
    study = everything.study
    assert [one["predictor"] for one in whole] != []
    assert {one["predictor"] for one in whole} == set(study.predictors)
    folded = {one["family"]: one["predictor"] for one in short if one["predictor"] not in study.predictors}
    assert folded == {"individual models": "6 predictors", "ensembles of folds": "5 predictors"}
    named = {one["predictor"] for one in short} & set(study.predictors)
    small = [f for f in study.families if f not in ("individual", "folds")]
    assert named == {name for name in study.predictors if study.family(name) in small}
    dice = everything.scores[everything.scores["metric"] == "dice"]
    means = dice[dice["family"] == "individual"].groupby("predictor")["value"].mean()
    cell = next(one for one in short if one["family"] == "individual models")["accuracy: Dice"]
    shown = [float(text) for text in re.findall(r"[\d.]+", cell)]
    assert shown == pytest.approx([means.mean(), means.min(), means.max()], abs=6e-4)


def test_hours_and_reductions_are_those_worked_by_hand():
    study = make_study(annotators=2, seeds=1, patients=2)
    rows = []
    ece = {"UKCHLL001": (0.4, 0.2, 0.1), "UKCHLL002": (0.2, 0.4, 0.2)}  # two models, and their ensemble
    for patient, values in ece.items():
        for predictor, value in zip(study.predictors, values, strict=True):
            for metric, number in (("ece", value), ("dice", 0.9)):
                rows.append((patient, predictor, study.family(predictor), metric, number))
    scores = pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value"])
    costs = make_predictor_cost(study)  # a training takes 24 hours, a prediction a tenth of one
    found = {
        one["predictor"]: one for one in tables(make_inputs(study, only=(), scores=scores, predictor_cost=costs))[-1]
    }
    ensemble, model = found["ensemble_all"], found[str(study.models[0])]
    hours = "GPU hours, training + inference"
    assert (ensemble[hours], model[hours]) == ("48.0\u00a0+\u00a00.400", "24.0\u00a0+\u00a00.200")
    # Individual models: mean 0.3 on either patient. The ensemble: 0.15, half of it, for 48.4 hours.
    assert ensemble["ECE: reduction"] == "50\u00a0%".replace("50", "50.0")
    assert ensemble["reduction per GPU hour"] == f"{50 / 48.4:.2f}\u00a0%"
    assert model["ECE: reduction"].startswith("0")


def test_without_records_no_ratio_is_made_up(everything):
    study = everything.study
    costs = make_predictor_cost(study)
    facts = gather(everything)

    def at_costs(costs: pd.DataFrame | None):
        return tables_and_notes(
            dataclasses.replace(facts, inputs=dataclasses.replace(everything, predictor_cost=costs))
        )

    rows, notes = at_costs(costs.assign(unrecorded=1))
    for one in rows[-1]:
        assert one["GPU hours, training + inference"].startswith("≥\u00a0")
        assert one["reduction per GPU hour"] == "–"
    assert "some of the work is not recorded" in notes
    rows, notes = at_costs(None)
    assert not [heading for heading in rows[0][0] if "hour" in heading]
    assert "What each predictor cost is not recorded." in notes
    rows, notes = at_costs(costs.assign(inference_cpu_hours=1.0))
    assert {one["reduction per hour"] for one in rows[-1]} == {"–"}
    assert "cannot be added" in notes
    rows, _ = at_costs(make_predictor_cost(study, device="cpu"))
    assert "CPU hours, training + inference" in rows[0][0]
    nothing = costs.assign(**{name: 0.0 for name in costs if str(name).endswith("hours")})
    assert "No hours of networks are recorded." in at_costs(nothing)[1]


def test_a_model_that_beats_another_kind_of_ensemble_is_told():
    study = make_study(patients=3, ensembles={"pair": ["anno1", "anno2"]})
    scores = make_scores(study)
    best = str(study.models[-1])
    scores.loc[(scores["metric"] == "dice") & (scores["predictor"] == best), "value"] += 0.05
    first = said_in(study, "question", scores=scores)
    told = re.findall(r"- Dice: individual models with a better mean than (\w+) .+ the best (\w+)", first)
    assert told == [("ensemble_pair", best)]
