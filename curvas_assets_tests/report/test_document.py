"""Claims proved here.

- The page holds every section, figure and table, in English and in French, and asks nothing of the network.
- Markdown says the same as the page; every figure it links to is attached as PNG, SVG and PDF.
- It is sensible with 1 patient and with 65, 2 and 5 annotators, 1 seed, 1 organ, an absent organ, an all-undefined metric,
  missing cells, and without any optional input: then a sentence stands where the input is missing.
- Text from outside is escaped. Equal inputs give equal bytes.
- Nothing is bold, by either test, below six patients or for an exploratory metric; who is spoken of, and with what n, is said.
- What is called significant is corrected for every test of a primary metric, and how many these are is said; any predictors'
  pair is named in tables and figures.
- Where scores vary is told with its degrees of freedom, and what more annotators and seeds would bring; or why it is not.
- Non-inferiority is told against its margin, of every metric that has one, with what few patients allow; synthetic patients and metrics left out of the ranking are told as such.
- Scores made from volumes of the first format bring a warning with how many predictors and patients they are.
- Volumes are shown in cm³, in means and in differences alike, and in the table of metrics.
- Metrics stand under what they measure: predictive entropy under all uncertainty, its parts under aleatoric and epistemic.
- Individual models that do better than the general ensemble are told on the first screen, and only then.
- The means of the main families are told, in the words of the language; a family that the study has not is not spoken of.
- What `curvas_assets.scoring` writes is what the report reads: scores, bins, curves and the registry.
"""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from curvas_assets.errors import ReportError
from curvas_assets.report import Provenance, ReportInputs, build_report, paper
from curvas_assets.report.tables import number
from curvas_assets.report.words import Words
from curvas_assets.scoring import METRICS, PatientReference, metric_table, metrics_of
from curvas_assets.scoring.panel import APPROXIMATE
from curvas_assets.statistics import (
    PAIRS,
    Pair,
    compare_all_families,
    compare_studies,
    non_inferiority,
    projected_precision,
    rank_among_teams,
    read_published_scores,
    variance_components,
    with_questions,
)
from curvas_assets_tests.report.studies import (
    READS,
    make_inputs,
    make_scores,
    make_slice,
    make_study,
    parts_of,
    said_in,
    written,
)
from curvas_assets_tests.statistics.test_published import as_csv, wide_table

SECTIONS = (
    "question patients maps data protocol results statistics volumes comparison cost metrics methods reproducibility state".split()  # noqa: SIM905
)


def text_of(html: str) -> str:
    """The page's words, without scripts."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(script|style).*?</\1>", " ", html))


TABLES_ONLY = {"slices": (), "organs": None, "curves": None, "reliability": None, "risk_coverage": None}
"""For tests of sentences and tables: what takes time to draw is left out."""


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(make_study())


@pytest.fixture(scope="module")
def before(inputs):
    """Tables as they were before the report was written."""
    return inputs.scores.copy(), inputs.comparisons.copy()


@pytest.fixture(scope="module")
def report(inputs, before):
    return build_report(inputs, image_formats=())


def test_the_page_has_every_section_and_figure(report):
    assert re.findall(r'<section id="(\w+)">', report.html) == SECTIONS
    assert re.findall(r'<figure id="figure-([\w-]+)">', report.html) == list(report.figures)
    assert len(report.figures) == 22
    assert "volumes_ensemble_all" in report.figures
    assert {"values_by_patient", "values_by_group"} <= set(report.figures)
    assert {"ece_by_family", "dice_by_family", "dice_by_family_organ", "hd95_by_family_annotator"} <= set(
        report.figures
    )
    assert {"reliability", "risk_coverage", "dice_against_entropy", "training_curves"} <= set(report.figures)
    assert {"annotators_UKCHLL001", "uncertainty_UKCHLL001", "organs_UKCHLL001"} <= set(report.figures)
    assert {"aurc_by_family_annotator", "eaurc_by_family_annotator"} <= set(report.figures)


def test_the_page_asks_nothing_of_the_network(report):
    markup = re.sub(r"(?s)<script.*?</script>", "", report.html)
    assert re.findall(r'(?:src|href)="([^"#]+)"', markup) == ["data:,"]
    assert report.html.count("plotly.js v") == 1
    assert "cdn." not in re.sub(r"(?s)<script>/\*\*.*?</script>", "", report.html)


def test_every_figure_is_attached_in_three_formats():
    study = make_study(annotators=2, seeds=1, patients=2)
    scores = make_scores(study)
    report = build_report(
        ReportInputs(study, scores[scores["metric"].isin(["dice", "ece"])], slices=(make_slice(study),))
    )
    assert report.figures[:3] == ("values_by_patient", "values_by_group", f"annotators_{study.sets['test'][0]}")
    assert {"ece_by_family", "dice_by_family"} <= set(report.figures)
    assert set(report.attachments) == {f"figures/{n}.{f}" for n in report.figures for f in ("png", "svg", "pdf")}
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert all(data.startswith(starts[name.rsplit(".", 1)[1]]) for name, data in report.attachments.items())


def test_markdown_says_the_same(report):
    assert re.findall(r"!\[[^\]]+\]\(figures/([\w-]+)\.png\)", report.markdown) == list(report.figures)
    assert report.markdown.count("\n## ") == len(SECTIONS)
    words = text_of(report.html)
    for line in ("0123abc", "numpy", "a1b2c3", "MedIG", "ensemble_anno2", "112233"):
        assert line in report.markdown
        assert line in words


def test_the_answer_is_in_the_first_section(report, inputs):
    row = inputs.comparisons[
        (inputs.comparisons["metric"] == "ece") & (inputs.comparisons["second"] == "individual")
    ].iloc[0]
    first = report.markdown.split("## Data")[0]
    assert "Expected calibration error: general ensemble" in first
    assert f"({row['n_pairs']} patients)" in first
    assert "corrected one-sided p" in first


def test_tables_show_the_figures_given(report, inputs):
    row = inputs.comparisons.iloc[0]
    line = next(
        line for line in report.markdown.splitlines() if line.startswith("| Dice | general\u00a0vs\u00a0annotator")
    )
    assert f"| {row['U']:.0f} |" in line
    assert "| MedIG | 94.57 (1) |" in report.markdown
    board = report.markdown.split("### Among the challenge's teams")[1]
    head, ours = (
        [cell.strip() for cell in next(x for x in board.splitlines() if x.startswith(start)).split("|")[1:-1]]
        for start in ("| entry |", "| **this run – general ensemble** |")
    )
    given = inputs.leaderboard[
        (inputs.leaderboard["kind"] == "this run") & (inputs.leaderboard["entry"] == "general")
    ].set_index("metric")
    dice = given.loc["dice_published"]
    assert ours[head.index("Dice (challenge's code, %)")] == f"{100 * dice['value']:.2f} ({dice['rank']:.0f})"
    ranked = given.loc[[metric for metric in given.index if metric != "overall"]]
    assert sum("†" in title for title in head) == (~ranked["comparable"].astype(bool)).sum() > 0


def test_the_best_of_each_metric_is_bold(report, inputs):
    means = inputs.scores[inputs.scores["metric"] == "dice"].groupby("predictor")["value"].mean()
    best = means.idxmax()
    table = report.markdown.split("### Means per predictor")[1].split("### Means per family")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "**" in line.split("|")[2]]
    assert rows[0].split("|")[1].strip() == str(best)


def test_volumes_are_shown_in_cubic_centimetres(report, inputs):
    mean = inputs.scores.loc[inputs.scores["metric"] == "crps", "value"].mean()
    assert mean > 1000  # given in mm³
    table = report.markdown.split("### Means per family")[1].split("\n## ")[0]
    line = next(line for line in table.splitlines() if "CRPS of the volume (cm³) | individual models" in line)
    shown = float(re.findall(r"\| ([\d.]+) ±", line)[0])
    family = inputs.scores[(inputs.scores["metric"] == "crps") & (inputs.scores["family"] == "individual")][
        "value"
    ].mean()
    assert shown == pytest.approx(family / 1000, rel=0.01)
    row = inputs.comparisons[inputs.comparisons["metric"] == "crps"].iloc[1]
    within = report.markdown.split("### Test within patients")[1]
    line = next(
        x for x in within.splitlines() if x.startswith("| CRPS of the volume (cm³) | general\u00a0vs\u00a0individual")
    )
    heading = next(x for x in within.splitlines() if x.startswith("| metric |"))
    place = [cell.strip() for cell in heading.split("|")].index("mean difference")
    assert float(line.split("|")[place].strip().replace("−", "-")) == pytest.approx(
        row["mean_difference"] / 1000, rel=0.01
    )


def test_metrics_stand_under_what_they_measure(inputs):
    entropies = inputs.scores[inputs.scores["metric"] == "predictive_entropy"]
    parts = [entropies.assign(metric=name) for name in ("expected_entropy", "mutual_information")]
    scores = pd.concat([inputs.scores, *parts], ignore_index=True)
    page = build_report(
        dataclasses.replace(inputs, scores=scores, metrics=metric_table(), **TABLES_ONLY), image_formats=(), page=False
    ).markdown
    tables = page.split("### Means per predictor")[1].split("### Means per family")[0]
    heads = dict(re.findall(r"(?m)^\*(.+)\*\n\n\| predictor \| (.+) \|$", tables))
    assert "Predictive entropy (nats)" in heads["Total uncertainty"]
    assert "Expected entropy (nats)" in heads["Aleatoric"]
    assert heads["Epistemic"] == "Mutual information (nats)"
    assert "CRPS of the volume (cm³)" in heads["Accuracy"]
    assert "CRPS (challenge's cut, cm³)" in heads["Accuracy"]
    assert "mm³" not in page
    accuracy = page.split("\n### Accuracy\n")[1].split("\n### Failure detection\n")[0]
    assert "crps_by_family" in accuracy


def test_individual_models_that_beat_the_ensemble_are_told_on_the_first_screen():
    study = make_study(patients=6)
    scores = some_scores(study, "ece")
    best = str(study.models[4])
    for metric, sign in (("dice", 1), ("ece", -1)):
        of_metric = scores["metric"] == metric
        scores.loc[of_metric & (scores["family"] == "general"), "value"] += 0.2 * sign
        scores.loc[of_metric & (scores["predictor"] == best), "value"] += 0.3 * sign

    def first_screen(scores: pd.DataFrame) -> str:
        return said_in(study, "question", "patients", scores=scores)

    told = re.findall(
        r"- (.+): individual models with a better mean.+: (\d) of 9, the best (\w+)", first_screen(scores)
    )
    assert told == [("Dice", "1", best), ("Expected calibration error", "1", best)]
    assert "better mean" not in first_screen(scores[scores["predictor"] != best])
    # A model that was scored on the easy patients alone is compared on these alone.
    easy = scores["patient"].isin(["UKCHLL001", "UKCHLL002"])
    scores.loc[(scores["metric"] == "dice") & easy, "value"] += 5
    scores.loc[scores["predictor"] == best, "value"] = np.where(easy, scores["value"] - 0.3, np.nan)[
        scores["predictor"] == best
    ]
    assert "- Dice: individual models" not in first_screen(scores)


@pytest.mark.parametrize(("language", "colon"), [("en", ":"), ("fr", " :")])
def test_means_are_told_of_the_families_that_the_study_has(language, colon):
    study = make_study(patients=6, language=language)
    for families in (["general", "annotator", "individual"], ["general", "individual"], ["individual"]):
        scores = some_scores(study)
        page = said_in(study, "question", scores=scores[scores["family"].isin(families)])
        means = page.split(f"- Dice{colon} ")[1].split(" (")[0]
        names = [Words(language).family(family) for family in families]
        assert [re.sub(r" [\d.,]+$", "", one) for one in means.split(", ")] == names


def some_scores(study, *metrics: str) -> pd.DataFrame:
    """Scores of these metrics only, for sentences and tables that need no other: each more takes a figure to draw."""
    scores = make_scores(study)
    return scores[scores["metric"].isin(["dice", "predictive_entropy", *metrics])].reset_index(drop=True)


def both_tests(markdown: str) -> str:
    """The tables of both tests."""
    return markdown.split("### Published test")[1].split("### Without hurting accuracy")[0]


def decided(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The same comparisons, every p as small as can be."""
    return comparisons.assign(p_bonferroni=1e-5, p_randomisation=1e-5)


def decided_report(patients: int, language: str = "en") -> str:
    """The Markdown of a study in which every comparison is as clear as can be."""
    study = make_study(patients=patients, language=language)
    scores = some_scores(study, "ece", "aurc", "confidence")
    comparisons = decided(compare_all_families(scores, study.statistics))
    inputs = make_inputs(study, only=("non_inferiority",), scores=scores, comparisons=comparisons)
    return build_report(inputs, image_formats=(), page=False).markdown


def test_below_six_patients_nothing_is_called_significant_by_either_test():
    markdown = decided_report(5)
    assert "**" not in both_tests(markdown)
    few = "Only 5 patients: below 6, no interval is given and nothing is called significant."
    assert markdown.count(few) == 2
    assert "Seulement 5 patients : en dessous de 6" in decided_report(5, "fr")


def test_from_six_patients_on_the_primary_metrics_alone_are_called_significant():
    markdown = decided_report(6)
    lines = both_tests(markdown).splitlines()
    bold = [line for line in lines if "**" in line]
    # Dice, ECE and AURC by three pairs in two tables (ncc was not scored); every other metric is exploratory.
    assert len(bold) == 3 * 3 * 2
    assert not any("exploratory" in line for line in bold)
    assert "nothing is called significant" not in markdown
    assert sum("| exploratory |" in line for line in lines) > 0


def test_the_questions_and_their_primary_metrics_follow_the_configuration():
    study = make_study(patients=6)
    settings = study.statistics.model_copy(update={"primary": {"how far off": "hd95"}})
    study = study.model_copy(update={"statistics": settings})
    scores = some_scores(study, "hd95")
    comparisons = decided(compare_all_families(scores, study.statistics))
    page = parts_of(study, "protocol", "statistics", scores=scores, comparisons=comparisons)
    assert "(how far off: Hausdorff distance, 95th percentile)" in page.markdown
    bold = [line for line in both_tests(page.markdown).splitlines() if "**" in line]
    assert len(bold) == 6
    assert all("| how far off |" in line for line in bold)


def test_what_is_claimed_and_with_what_n_is_said_in_both_languages():
    for language, told in (
        (
            "en",
            "is not a claim about other seeds or annotators: for those, n = seeds × annotators = 2 × 3 = 6 trainings",
        ),
        ("fr", "n = graines × annotateurs = 2 × 3 = 6 entraînements"),
    ):
        study = make_study(seeds=2, language=language)
        for section in ("question", "statistics"):
            assert said_in(study, section, scores=some_scores(study)).count(told) == 1, section


@pytest.mark.parametrize(
    ("loss", "told"), [(0.0, "> Accuracy is not hurt"), (0.1, "> Accuracy is hurt by more than the margin")]
)
def test_non_inferiority_is_told_against_its_margin(loss, told):
    study = make_study(patients=8)
    scores = some_scores(study)
    general = (scores["metric"] == "dice") & (scores["family"] == "general")
    scores.loc[general, "value"] -= loss
    tested = non_inferiority(scores, study.statistics)
    assert told in said_in(study, "question", scores=scores, non_inferiority=tested)
    part = statistics_of(study, scores=scores, non_inferiority=tested).split("### Without hurting accuracy")[1]
    assert "One point of Dice" in part
    row = tested.iloc[1]
    line = next(line for line in part.splitlines() if line.startswith("| general\u00a0vs\u00a0individual"))
    assert [cell.strip() for cell in line.split("|")][4:7] == [number(row["bound"]), "0.0100", "✗" if loss else "✓"]
    other = study.statistics.model_copy(update={"non_inferiority_margin": 0.02})
    other = study.model_copy(update={"statistics": other})
    assert "The margin is the study's own." in statistics_of(other, scores=scores)


def statistics_of(study, **changes) -> str:
    """The section on statistics, as Markdown."""
    return said_in(study, "statistics", **changes)


def test_what_is_corrected_for_how_many_tests_is_said():
    study = make_study(patients=6)
    text = statistics_of(study, scores=some_scores(study, "ece", "aurc", "confidence"))
    assert "corrected by Holm over all 9 tests of primary metrics" in text
    told = with_questions(compare_all_families(some_scores(study, "ece", "aurc", "confidence"), study.statistics))
    exploratory = (told["question"] == "exploratory").sum()
    assert f"The {exploratory} exploratory tests have a false discovery rate" in text
    assert "made from" not in text
    assert "smallest p" not in both_tests(text)  # of six patients and more it is too small to matter
    assert "| smallest p |" in both_tests(statistics_of(make_study(patients=3)))


def test_an_adjusted_p_above_alpha_is_not_called_significant_whatever_its_pairs_say():
    study = make_study(patients=6)
    inputs = make_inputs(study, only=READS["statistics"], scores=some_scores(study, "ece", "aurc"))
    close = inputs.comparisons.assign(p_bonferroni=1.0, p_randomisation=0.01, p_randomisation_holm=0.03)
    part = written(dataclasses.replace(inputs, comparisons=close), "statistics")
    assert "**" not in both_tests(part.markdown)  # nine tests of 0.01 are 0.09
    clear = close.assign(p_randomisation=0.005)
    part = written(dataclasses.replace(inputs, comparisons=clear), "statistics")
    assert both_tests(part.markdown).count("**0.0450**") == 9


@pytest.mark.parametrize("language", ["en", "fr"])
def test_pairs_of_any_predictors_are_named_in_tables_and_in_the_forest(language):
    study = make_study(patients=7, language=language)
    scores = some_scores(study)
    new = scores[scores["predictor"] == "ensemble_all"].assign(predictor="isotonic_ensemble_all", family="calibrated")
    scores = pd.concat([scores, new], ignore_index=True)
    pairs = (
        *PAIRS,
        Pair("isotonic_ensemble_all", "ensemble_all", "made from"),
        Pair("calibrated", "individual", "configured"),
    )
    report = parts_of(
        study,
        "question",
        "protocol",
        "statistics",
        scores=scores,
        comparisons=compare_all_families(scores, study.statistics, pairs=pairs),
        non_inferiority=non_inferiority(scores, study.statistics, pairs=pairs),
    )
    versus = {"en": "\u00a0vs\u00a0", "fr": "\u00a0/\u00a0"}[language]
    first = {"en": "calibrated", "fr": "calibré"}[language]
    assert report.markdown.count(f"isotonic_ensemble_all{versus}ensemble_all") >= 3
    assert f"{first}{versus}" in report.markdown
    assert {"en": "Beside the three families", "fr": "À côté des trois familles"}[language] in report.markdown
    assert "statistics.comparisons" in report.markdown
    assert paper.images(report.charts["non_inferiority_dice"], ("svg",))["svg"].startswith(b"<?xml")


def test_every_metric_with_a_margin_has_its_figure_and_few_patients_are_said():
    study = make_study(patients=3)
    settings = study.statistics.model_copy(update={"margins": {"ece": 0.001}})
    study = study.model_copy(update={"statistics": settings})
    report = parts_of(study, "statistics", scores=some_scores(study, "ece"))
    assert {"non_inferiority_dice", "non_inferiority_ece"} <= set(report.charts)
    assert "With 3 patients this p is never below 0.125" in report.markdown
    assert "fewer than 63.2\u00a0% of all patients" in report.markdown  # 1 − 0.05^(1/3)
    part = report.markdown.split("### Without hurting accuracy")[1].split("###")[0]
    assert "✓" not in part
    assert "✗" not in part
    assert part.count("The margin is the study's own.") == 1


def test_where_scores_vary_is_told_with_its_degrees_of_freedom():
    study = make_study(patients=4)
    text, charts = parts_of(study, "statistics")
    assert "3 annotators give 2 degrees of freedom and 3 seeds 2" in text
    known = variance_components(make_scores(study), study.statistics)
    dice = known[known["metric"] == "dice"].set_index("component")
    share = f"patients carry {100 * dice.loc['patient', 'share']:.3g}\u00a0%"
    assert share in text
    assert {"variance_components", "precision_forecast"} <= set(charts)
    now = projected_precision(known, study.statistics)
    row = now[(now["metric"] == "dice") & now["as_studied"]].iloc[0]
    assert f"- Dice: {number(row['standard_error'])} ({number(row['same_patients'])}) now" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seeds": 1}, "no components of variance: one seed alone"),
        ({"annotators": 1}, "no components of variance: one annotator alone"),
        ({"patients": 1}, "no components of variance: one patient alone"),
    ],
)
def test_a_design_without_components_says_why(changes, told):
    study = make_study(**changes)
    text = statistics_of(study)
    assert told in text
    assert "What more annotators or seeds would bring" not in text
    assert "The components of variance were not estimated." in statistics_of(study, variance=None)


def test_scores_from_volumes_of_the_first_format_bring_a_warning():
    study = make_study()
    scores = some_scores(study, "aurc", "eaurc")
    hit = (
        scores["metric"].isin(["aurc", "eaurc"])
        & scores["patient"].isin(["UKCHLL001", "UKCHLL002"])
        & scores["predictor"].isin(["ensemble_all", "ensemble_anno1"])
        & (scores["annotator"] != "mean")
    )
    scores.loc[hit, "note"] = f"{APPROXIMATE}; another note"
    alone = hit & (scores["patient"] == "UKCHLL001") & (scores["predictor"] == "ensemble_all")
    scores.loc[alone, "note"] = f"nothing but errors; {APPROXIMATE}"
    page = said_in(study, "question", scores=scores)
    assert "Warning: 2 predictors of 2 patients (4 volumes) were scored from volumes of the first storage" in page
    assert "approximate until the volumes are made again" in page
    french = said_in(make_study(language="fr"), "question", scores=scores)
    assert "Attention : 2 prédicteurs de 2 patients (4 volumes)" in french


def test_without_such_volumes_there_is_no_warning(report):
    assert "first storage format" not in report.markdown


def test_a_synthetic_studys_board_has_nothing_comparable(inputs):
    study = inputs.study.model_copy(update={"synthetic": True})
    board = rank_among_teams(inputs.scores, region="body", synthetic=True)
    page = said_in(study, "comparison", scores=inputs.scores, leaderboard=board)
    part = page.split("### Among the challenge's teams")[1].split("### This run")[0]
    assert "The patients are synthetic" in part
    assert "✓" not in "".join(line for line in part.splitlines() if "this run" in line)
    assert "overall (mean rank)" not in part


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("en", "The organs are pdac, porta, the challenge's are"),
        ("fr", "Les organes sont pdac, porta, ceux du challenge"),
    ],
)
def test_a_board_of_other_organs_says_that_nothing_is_comparable(inputs, report, language, told):
    board = rank_among_teams(inputs.scores, region="body", organs=["pdac", "porta"])
    written = inputs.study.report.model_copy(update={"language": language})
    study = inputs.study.model_copy(update={"report": written})
    assert f"\n{told}" in said_in(study, "comparison", scores=inputs.scores, leaderboard=board)
    assert told not in report.markdown


@pytest.mark.parametrize("reference", ["consensus", "majority", "thresholds"])
def test_published_means_say_if_this_runs_reference_is_another(inputs, reference):
    evaluation = inputs.study.evaluation.model_copy(update={"reference": reference})
    study = inputs.study.model_copy(update={"evaluation": evaluation})
    published = read_published_scores(as_csv(wide_table(4)))
    page = written(dataclasses.replace(inputs, study=study, published=published), "comparison").markdown
    part = page.split("### This run")[1]
    assert ("not taken against the consensus" in part) == (reference != "consensus")


def test_a_metric_left_out_of_the_ranking_is_named_with_its_reason(inputs):
    scores = inputs.scores.copy()
    scores.loc[scores["metric"] == "crps", "unit"] = "voxel"
    board = rank_among_teams(scores, region="body")
    page = written(dataclasses.replace(inputs, leaderboard=board), "comparison")
    assert "CRPS of the volume is not ranked: left out: its unit is 'voxel'" in page.markdown


def test_failure_and_out_of_distribution_over_patients_are_shown(report, inputs):
    part = report.markdown.split("### Failure detection over patients")[1].split("### Agreement")[0]
    row = inputs.failure[inputs.failure["predictor"] == "ensemble_all"].iloc[0]
    assert f"| ensemble_all | 3 | 0 | {number(row['aurc'])} |" in part
    assert "| ensemble_all | B | 2 | 1 | 0 |" in part


def test_french_is_french(inputs):
    french = build_report(dataclasses.replace(inputs, study=make_study(language="fr")), image_formats=())
    assert '<html lang="fr">' in french.html
    words = text_of(french.html)
    assert all(word in words for word in ("Données", "Reproductibilité", "ensembles par annotateur", "Entropie"))
    said = text_of(re.sub(r"(?s)<pre>.*?</pre>", "", french.html))  # titles of publications stay in their language
    assert not any(word in said for word in ("Uncertainty", "annotator ensembles", "Means per"))
    assert re.search(r"\d,\d{2}", french.markdown)
    assert french.attachments == {}


def test_equal_inputs_give_equal_bytes(inputs, report):
    again = build_report(inputs, image_formats=())
    assert again.html == report.html
    assert again.markdown == report.markdown


def test_without_optional_inputs_a_sentence_stands_where_something_is_missing():
    study = make_study()
    report = build_report(ReportInputs(study, some_scores(study, "ece")), image_formats=())
    words = text_of(report.html)
    for sentence in (
        "No cohort table was given.",
        "No training curves were given.",
        "No reliability bins were given.",
        "No risk–coverage curves were given.",
        "No comparison of families was given.",
        "No leaderboard was given.",
        "No published table of the study was given",
        "No slices were given",
        "No cost was recorded.",
        "No table of metrics was given.",
        "No package versions were recorded.",
        "No data versions were recorded.",
        "Agreement of annotators was not scored.",
        "Failure detection over patients was not computed.",
        "Out-of-distribution detection needs scored patients",
    ):
        assert sentence in report.markdown
        assert sentence in words
    assert "commit unknown" in report.markdown
    assert "ece_by_family" in report.figures


def test_without_any_score_there_is_still_a_report():
    columns = ["patient", "predictor", "family", "group", "metric", "organ", "annotator", "value", "unit", "note"]
    report = build_report(ReportInputs(make_study(), pd.DataFrame(columns=columns)))
    assert report.figures == ()
    assert "Dice was not scored." in report.markdown
    assert "plotly.js v" not in report.html


@pytest.mark.parametrize(
    "shape",
    [
        {"patients": 1},
        {"annotators": 2},
        {"annotators": 5, "seeds": 2, "patients": 2},
        {"seeds": 1},
        {"organs": ("liver",)},
        {"annotators": 1, "seeds": 1, "patients": 1},
    ],
)
def test_any_shape_of_study_makes_a_report(shape):
    study = make_study(**shape)
    smallest = min(len(study.annotators), len(study.organs), len(study.sets["test"])) == 1
    drawn = len(study.annotators) == len(study.sets["test"]) == 1
    report = build_report(make_inputs(study, organs=None), image_formats=("png",) if drawn else (), page=smallest)
    assert "ece_by_family" in report.figures
    assert bool(report.attachments) == drawn
    facets = {f"hd95_by_family_{'annotator' if len(study.annotators) > 1 else 'organ'}"}
    assert facets <= set(report.figures)
    assert all(data.startswith(b"\x89PNG") for data in report.attachments.values())
    counts = ((len(study.sets["test"]), "patient"), (len(study.predictors), "predictor"))
    assert " × ".join(f"{n} {what}{'s' if n > 1 else ''}" for n, what in counts) in report.markdown


def test_an_absent_organ_and_an_all_undefined_metric_are_said():
    study = make_study()
    scores = make_scores(study)
    absent = (scores["patient"] == "UKCHLL002") & (scores["organ"] == "pancreas") & (scores["metric"] == "dice")
    scores.loc[absent, ["value", "note"]] = [np.nan, "pancreas: no consensus voxel"]
    scores.loc[scores["metric"] == "hd95", ["value", "note"]] = [np.nan, "both empty"]
    report = parts_of(study, "data", "results", scores=scores)
    assert "hd95_by_family_annotator" not in report.charts
    assert "Hausdorff distance, 95th percentile: no value is defined in this study" in report.markdown
    ledger = report.markdown.split("### Exclusion ledger")[1].split("\n## ")[0]
    row = next(line for line in ledger.splitlines() if "no consensus voxel" in line)
    assert [part.strip() for part in row.split("|")][2:7] == ["Dice", "pancreas", "", "13", "UKCHLL002"]
    assert f"Not drawn: {int(absent.sum())} undefined" in report.markdown


def test_patients_whose_intensities_are_in_doubt_are_named():
    study = make_study()
    cohort = pd.DataFrame(
        {"patient": ["UKCHLL001", "UKCHLL002"], "set": "test", "doubts": ["", "no voxel is negative"]}
    )
    report = said_in(study, "data", cohort=cohort)
    assert "the intensities of 1 patient may be no Hounsfield units: UKCHLL002." in report
    assert "| doubts" not in report


def test_predictors_that_were_not_scored_on_a_patient_are_named():
    study = make_study()
    scores = make_scores(study)
    gone = (scores["patient"] == "UKCHLL003") & (scores["predictor"] == "ensemble_all")
    assert "UKCHLL003 × ensemble_all" in said_in(study, "data", scores=scores[~gone])


def test_infinite_distances_are_counted_beside_the_mean():
    study = make_study()
    scores = make_scores(study)
    one = (scores["metric"] == "hd95") & (scores["patient"] == "UKCHLL001") & (scores["predictor"] == "ensemble_all")
    scores.loc[one, "value"] = np.inf
    line = next(
        x
        for x in said_in(study, "results", scores=scores).split("### Means per predictor")[1].splitlines()
        if x.startswith("| ensemble_all") and "∞" in x
    )
    assert "(1 ∞)" in line


def test_the_published_table_stands_beside_this_run():
    wide = wide_table(6).iloc[1:]
    published = read_published_scores(as_csv(wide))
    report = said_in(make_study(), "comparison", published=published)
    part = report.split("### This run and the published study")[1].split("\n## ")[0]
    assert "voxels, not cm³" in part
    assert "this patient has no row of this individual predictor" in part
    assert "### Tests on the published table" in part


def test_text_from_outside_is_escaped():
    study = make_study()
    nasty = "<img src=x onerror=alert(1)>"
    cohort = pd.DataFrame({"patient": ["UKCHLL001"], "set": ["test"], "remark": [nasty]})
    provenance = Provenance(nasty, nasty, {nasty: nasty})
    report = build_report(
        ReportInputs(study, some_scores(study), cohort=cohort, provenance=provenance), image_formats=()
    )
    assert "<img" not in re.sub(r"(?s)<script.*?</script>", "", report.html)
    assert "&lt;img" in report.html


def test_what_cannot_be_reported_is_refused(inputs):
    with pytest.raises(ReportError, match="family"):
        build_report(ReportInputs(make_study(), inputs.scores.drop(columns="family")))
    view = make_slice(make_study())
    with pytest.raises(ReportError, match="annotators_UKCHLL001"):
        build_report(ReportInputs(make_study(), some_scores(make_study()), slices=(view, view)))


def test_the_inputs_are_not_changed(inputs, before, report):
    assert report.markdown
    pd.testing.assert_frame_equal(inputs.scores, before[0])
    pd.testing.assert_frame_equal(inputs.comparisons, before[1])


def test_a_study_without_a_challenge_region_says_so(inputs):
    board = rank_among_teams(inputs.scores, region="image")
    report = written(dataclasses.replace(inputs, leaderboard=board), "comparison")
    assert "not comparable" in report.markdown


@pytest.mark.parametrize("reference", ["consensus", "thresholds"])
def test_the_scoring_packages_own_tables_are_reported(reference):
    study = make_study(annotators=2, seeds=1, patients=2)
    named = {"reference": reference}
    if reference != "consensus":
        named |= {"tumour": "pancreas", "vessels": ["kidney", "liver"]}
    has = {"reference": reference, "vessels": reference != "consensus"}
    view = make_slice(study, shape=(32, 40))
    rng = np.random.default_rng(0)
    tables: dict[str, list[pd.DataFrame]] = {"table": [], "reliability": [], "risk_coverage": []}
    annotations = np.repeat(view.annotations[:, None], 4, axis=1).astype(np.uint8)
    for patient in study.sets["test"]:
        patient_reference = PatientReference(annotations, (5.0, 3.5, 3.5), organs=study.organs, **named)
        for predictor in study.predictors:
            logits = 4 * np.stack([annotations[0] == c for c in range(4)]) + rng.normal(
                0, 1, (4, *annotations.shape[1:])
            )
            softmax = (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)
            scored = patient_reference.score(softmax)
            who = {"patient": patient, "predictor": predictor, "family": study.family(predictor), "group": "A"}
            for name, parts in tables.items():
                parts.append(getattr(scored, name).assign(**who))
    whole = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    scores = whole["table"]
    inputs = ReportInputs(
        study,
        scores,
        metrics=metric_table(**has),
        comparisons=compare_all_families(scores, study.statistics),
        leaderboard=rank_among_teams(scores, region="image", reference=reference),
        reliability=whole["reliability"],
        risk_coverage=whole["risk_coverage"],
    )
    report = build_report(inputs, image_formats=(), page=False)
    assert {"ece_by_family", "dice_by_family_organ", "aurc_by_family_annotator", "reliability"} <= set(report.figures)
    assert {"risk_coverage", "dice_against_entropy"} <= set(report.figures)
    assert "Guo et al. 2017" in report.markdown
    tested = {m for m in METRICS if METRICS[m].direction} & set(scores["metric"])
    assert set(inputs.comparisons["metric"]) == tested
    for name, metric in metrics_of(**has).items():
        assert metric.definition.replace("|", "\\|") in report.markdown, name
    assert ("all annotators give the organ" in report.markdown) == (reference == "consensus")


def test_the_state_when_it_was_written_stands_on_the_page():
    columns = ["asset", "partitions", "made", "stale", "missing", "elsewhere", "why"]
    why = "test_scan has a new data version (9)"
    rows = [["trained_model", 9, 9, 0, 0, 2, ""], ["softmax", 27, 27, 9, 0, 0, why]]
    averaged = pd.DataFrame([["ensemble_all", 8, 3, "a, b"]], columns=["predictor", "members", "patients", "models"])
    found = {}
    for language in ("en", "fr"):
        study = make_study(patients=2, language=language)
        state = pd.DataFrame(rows, columns=columns)
        found[language] = said_in(study, "state", state=state, averaged=averaged)
    assert "| softmax | 27 | 27 | 9 | 0 | 0 | test_scan has a new data version (9) |" in found["en"]
    assert "| ensemble_all | 8 | 3 | a, b |" in found["en"]
    assert "Nothing that this report depends on was out of date" not in found["en"]
    assert "test_scan a changé (9)" in found["fr"]
    fresh_state = state.assign(stale=0, why="")
    fresh = said_in(study, "state", state=fresh_state)
    assert "Rien de ce qui fonde ce rapport n'était périmé" in fresh


@pytest.mark.parametrize("language", ["en", "fr"])
def test_another_study_stands_beside_this_one(language):
    study = make_study(language=language, patients=8, compare_with={"medig": "medig/metrics", "gone": "gone/metrics"})
    own = make_scores(study)
    theirs = own[own["patient"] != "UKCHLL008"].assign(value=lambda table: table["value"] + 0.01)
    families = ("general", "annotator", "individual")
    others = compare_studies(own, theirs, study.statistics, names=(study.name, "medig"), families=families)
    words = Words(language)
    text = said_in(study, "comparison", scores=own, others=others)
    assert words("others_title", study="random", other="medig") in text
    assert words("others_text", study="random", other="medig", n=7) in text
    assert words("no_others", other="gone") in text
    table = text.split(words("others_families"))[1].split("\n\n")[1]
    assert table.count(words.family("general")) == len(study.statistics.primary)
    assert re.search(r"\| −0[.,]0100 \|", table), "the difference of one in a hundred"
