"""Claims proved here.

- Variances are statsmodels' restricted maximum likelihood, for three crossed effects and for four; where one of them is 0,
  they are at least as likely as statsmodels'. Mean squares are those of a case by hand, and of statsmodels' analysis of
  variance.
- On simulated studies the estimates recover the variances, and the 95 % intervals cover them, with three annotators, and where
  a variance is 0.
- Laws: a shift changes nothing, a factor scales variances by its square; none is below 0; shares sum to 1; estimates lie in
  their intervals; the order of rows and the names of models are irrelevant; the input stays.
- Equal values have no variance, and say so. One annotator, one seed, one patient, no model, nothing defined, and
  cross-validation give no number, but a reason.
- Patients with a hole are left out and counted; a model that is missing for all patients costs its seed or its annotator;
  an infinite distance is a hole.
- Fused labels, ensembles and calibrated predictors are not used; a fold counts as a seed; `dice_annotator` has the
  annotator that a score is taken against.
- The precision foretold for other numbers of annotators and seeds is that of simulated studies of these numbers; more never
  make it worse, and without limit the patients' own share is left. It is computed from the stored table alone.
- 65 patients × 45 models, all metrics, take a few seconds.
"""

import time
import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st

from curvas_assets.errors import StatisticsError
from curvas_assets.statistics import projected_precision, shown_variances, variance_components
from curvas_assets.statistics.variance import LEVEL, components_of, mean_squares, restricted_likelihood
from curvas_assets.study import Statistics

DICE = Statistics(primary={"accuracy": "dice"}, draws=999)
SDS = {"patient": 0.05, "annotator": 0.02, "seed": 0.01}
SDS |= {"patient:annotator": 0.015, "patient:seed": 0.008, "annotator:seed": 0.006, "residual": 0.01}
EFFECTS = ("patient", "annotator", "seed")


def drawn(rng, patients, annotators, seeds, sds=SDS) -> np.ndarray:
    """Scores (patients, annotators, seeds) with normal effects of these standard deviations."""
    sizes = {"patient": patients, "annotator": annotators, "seed": seeds}
    values = np.full(tuple(sizes.values()), 0.9)
    for name, sd in sds.items():
        held = EFFECTS if name == "residual" else name.split(":")
        values = values + sd * rng.normal(size=[size if effect in held else 1 for effect, size in sizes.items()])
    return values


def table_of(values: np.ndarray, metric: str = "dice") -> pd.DataFrame:
    """One row per patient and model."""
    rows = [
        (f"P{p:03d}", f"anno{a + 1}_init{s}_foldall", "individual", metric, values[p, a, s])
        for p, a, s in np.ndindex(values.shape)
    ]
    return pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value"])


def variances(table: pd.DataFrame) -> dict[str, float]:
    return dict(zip(table["component"], table["variance"], strict=True))


def long_form(values: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([range(size) for size in values.shape], names=names)
    return pd.DataFrame({"y": values.ravel()}, index=index).reset_index()


def by_statsmodels(values: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    terms = [*names, *(f"{a}:{b}" for i, a in enumerate(names) for b in names[i + 1 :])]
    formulas = {term: "0+" + ":".join(f"C({name})" for name in term.split(":")) for term in terms}
    frame = long_form(values, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = smf.mixedlm("y~1", frame, groups=np.ones(len(frame)), vc_formula=formulas, re_formula="0")
        fit = model.fit(reml=True, method=["lbfgs", "powell"])
    return dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True)) | {"": fit.scale}


# The model -------------------------------------------------------------------------------------------------------------


def test_mean_squares_by_hand_and_by_statsmodels():
    # Means of the rows 1.5 and 4.5, of the columns 2 and 4, of all 3: 2·(1.5² + 1.5²) = 9, 2·(1² + 1²) = 4, and ±0.5 is left.
    strata = mean_squares(np.array([[1.0, 2.0], [3.0, 6.0]]), ["patient", "seed"])
    assert list(strata.squares) == [9, 4, 1]
    assert list(strata.freedom) == [1, 1, 1]
    assert strata.expected.tolist() == [[2, 0, 1], [0, 2, 1], [0, 0, 1]]
    assert list(restricted_likelihood(strata)) == pytest.approx([4, 1.5, 1])

    values = drawn(np.random.default_rng(2), 5, 3, 4)
    strata = mean_squares(values, EFFECTS)
    formula = "y ~ (C(patient) + C(annotator) + C(seed)) ** 2"
    table = sm.stats.anova_lm(smf.ols(formula, long_form(values, EFFECTS)).fit())
    np.testing.assert_allclose(strata.squares, table["mean_sq"], rtol=1e-9)
    np.testing.assert_array_equal(strata.freedom, table["df"])


def test_variances_are_statsmodels_reml():
    values = 10 * drawn(np.random.default_rng(8), 9, 4, 4)
    strata = mean_squares(values, EFFECTS)
    found = dict(zip((":".join(term) for term in strata.terms), restricted_likelihood(strata), strict=True))
    assert min(found.values()) > 0  # nothing at its limit, where optimisers stop early
    expected = by_statsmodels(values, EFFECTS)
    assert found == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_with_the_annotator_of_the_reference_they_are_too():
    rng = np.random.default_rng(3)
    names = ("patient", "annotator", "seed", "reference")
    shape = (5, 3, 3, 3)
    values = sum(
        sd * rng.normal(size=[n if i in held else 1 for i, n in enumerate(shape)])
        for sd, held in ((3, [0]), (1, [1]), (2, [3]), (1.5, [1, 3]), (1, [0, 3]), (1, [0, 1, 2, 3]))
    )
    strata = mean_squares(values, names)
    found = dict(zip((":".join(term) for term in strata.terms), restricted_likelihood(strata), strict=True))
    expected = by_statsmodels(values, names)
    assert sorted(found) == sorted(expected)
    assert unlikely(strata, np.array([expected[":".join(term)] for term in strata.terms])) >= unlikely(
        strata, np.array(list(found.values()))
    ) - 1e-6  # fmt: skip
    for large in ("patient", "reference", "annotator:reference", ""):
        assert found[large] > 0.1
        assert found[large] == pytest.approx(expected[large], rel=0.05)


def unlikely(strata, variances) -> float:
    means = strata.expected @ variances
    return float(strata.freedom @ (np.log(means) + strata.squares / means))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 4), st.integers(2, 3))
def test_no_other_variances_are_likelier(seed, patients, annotators, seeds):
    rng = np.random.default_rng(seed)
    strata = mean_squares(rng.normal(size=(patients, annotators, seeds)), EFFECTS)
    found = restricted_likelihood(strata)
    assert (found >= 0).all()
    best = unlikely(strata, found)
    for scale in (0.3, 0.03):
        for _ in range(20):
            other = np.maximum(found + scale * rng.normal(size=found.size) * (found + 0.05), 0)
            other[-1] = max(other[-1], 1e-6)
            assert unlikely(strata, other) >= best - 1e-7


def test_a_design_that_is_not_balanced_is_refused():
    for values in (np.ones((3, 1)), np.full((2, 2), np.nan), np.ones(4)):
        with pytest.raises(StatisticsError, match="one finite value for each combination"):
            mean_squares(values, ["patient", "seed"])


# By simulation ---------------------------------------------------------------------------------------------------------


def test_simulated_variances_are_recovered_and_covered():
    rng, settings_ = np.random.default_rng(4), Statistics(primary={"accuracy": "dice"}, draws=499)
    sds = {**SDS, "patient:seed": 0.0, "annotator:seed": 0.0}
    found, inside, shares = [], [], []
    for _ in range(250):
        rows = components_of(drawn(rng, 12, 3, 3, sds), EFFECTS, settings_)
        table = pd.DataFrame(rows).set_index("component")
        truth = pd.Series({name: sd**2 for name, sd in sds.items()})[table.index]
        found.append(table["variance"])
        inside.append((table["low"] <= truth) & (truth <= table["high"]))
        share = truth / truth.sum()
        shares.append((table["share_low"] <= share) & (share <= table["share_high"]))
    means, covered, told = pd.DataFrame(found).mean(), pd.DataFrame(inside).mean(), pd.DataFrame(shares).mean()
    print(pd.DataFrame({"mean": means, "truth": truth, "covered": covered, "shares": told}).to_string())
    for name in ("patient", "annotator", "patient:annotator", "residual"):
        assert means[name] == pytest.approx(truth[name], rel=0.25)
    assert (covered >= LEVEL - 3 * np.sqrt(LEVEL * (1 - LEVEL) / 250)).all()
    assert (told >= LEVEL - 3 * np.sqrt(LEVEL * (1 - LEVEL) / 250)).all()


def test_the_precision_foretold_is_that_of_larger_studies():
    rng = np.random.default_rng(0)
    components = variance_components(table_of(drawn(rng, 6, 3, 3)), DICE)
    components["variance"] = [SDS[name] ** 2 for name in components["component"]]  # as if they were known
    table = projected_precision(components, DICE, annotators=[2, 5], seeds=[1, 7])
    patients = 0.05 * rng.normal(size=(6, 1, 1))
    for row in table.itertuples():
        a, s = int(row.annotators), int(row.seeds)
        again = {name: sd for name, sd in SDS.items() if name != "patient"}
        new = np.array([drawn(rng, 6, a, s).mean() for _ in range(3000)])
        same = np.array([(patients + drawn(rng, 6, a, s, again)).mean() for _ in range(3000)])
        assert row.standard_error == pytest.approx(new.std(), rel=0.05)
        assert row.same_patients == pytest.approx(same.std(), rel=0.05)


def test_more_annotators_and_seeds_never_harm_and_the_patients_are_left():
    table = projected_precision(variance_components(table_of(drawn(np.random.default_rng(3), 8, 3, 4)), DICE), DICE)
    assert sorted(set(table["annotators"])) == [1, 3, 4, 6, np.inf]
    assert sorted(set(table["seeds"])) == [1, 4, 5, 8, np.inf]
    studied = table[table["as_studied"]]
    assert studied[["annotators", "seeds", "patients"]].to_numpy().tolist() == [[3, 4, 8]]
    for column in ("standard_error", "low", "high", "same_patients", "same_patients_low", "same_patients_high"):
        wide = table.pivot_table(index="annotators", columns="seeds", values=column).to_numpy()
        assert (np.diff(wide, axis=0) <= 1e-15).all()
        assert (np.diff(wide, axis=1) <= 1e-15).all()
    assert (table["low"] <= table["standard_error"]).all()
    assert (table["standard_error"] <= table["high"]).all()
    assert (table["same_patients"] <= table["standard_error"]).all()
    limit = table[np.isinf(table["annotators"]) & np.isinf(table["seeds"])].iloc[0]
    parts = variances(variance_components(table_of(drawn(np.random.default_rng(3), 8, 3, 4)), DICE))
    assert limit["standard_error"] == pytest.approx(np.sqrt(parts["patient"] / 8))
    assert limit["same_patients"] == 0


# Laws ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(2, 5), st.integers(2, 3), st.integers(2, 3)),
    st.floats(-5, 5),
    st.floats(0.01, 100),
)
def test_a_shift_changes_nothing_and_a_factor_scales_by_its_square(seed, shape, shift, factor):
    few = Statistics(primary={"accuracy": "dice"}, draws=100)
    values = np.random.default_rng(seed).normal(size=shape)
    one = variance_components(table_of(values), few)
    two = variance_components(table_of(factor * values + shift), few)
    for column in ("mean_square", "variance", "low", "high"):
        np.testing.assert_allclose(two[column], factor**2 * one[column], rtol=1e-4, atol=1e-7 * factor**2)
    for column in ("share", "share_low", "share_high"):
        np.testing.assert_allclose(two[column], one[column], rtol=1e-4, atol=1e-6)
    assert (one["variance"] >= 0).all()
    assert one["share"].sum() == pytest.approx(1)
    assert ((one["low"] <= one["variance"]) & (one["variance"] <= one["high"])).all()
    assert ((one["share_low"] <= one["share"]) & (one["share"] <= one["share_high"])).all()


def test_neither_the_order_of_rows_nor_the_names_matter_and_the_input_stays():
    scores = table_of(drawn(np.random.default_rng(5), 6, 3, 3))
    before = scores.copy()
    one = variance_components(scores, DICE)
    pd.testing.assert_frame_equal(variance_components(scores.sample(frac=1, random_state=1), DICE), one)
    pd.testing.assert_frame_equal(scores, before)
    renamed = scores.assign(predictor=scores["predictor"].str.replace("anno1", "zoe").str.replace("init0", "init9"))
    pd.testing.assert_frame_equal(variance_components(renamed, DICE), one, rtol=1e-6)


def test_the_forecast_needs_the_stored_table_alone_and_cubic_centimetres_are_a_change_of_unit():
    scores = table_of(1e4 * drawn(np.random.default_rng(5), 6, 3, 3), "crps").assign(unit="mm³")
    settings_ = Statistics(primary={"accuracy": "crps"}, draws=200)
    stored = variance_components(scores, settings_)
    shown = shown_variances(stored)
    assert set(shown["unit"]) == {"cm³"}
    np.testing.assert_allclose(shown["variance"], stored["variance"] * 1e-6)
    plain, read = (projected_precision(table, settings_) for table in (stored, shown))
    for column in ("standard_error", "low", "high", "same_patients_high"):
        np.testing.assert_allclose(read[column], plain[column] * 1e-3)


# Degenerate designs ------------------------------------------------------------------------------------------------------


def test_equal_values_have_no_variance_and_say_so():
    table = variance_components(table_of(np.full((4, 3, 3), 0.9)), DICE)
    assert (table[["variance", "low", "high"]] == 0).all(axis=None)
    assert table["share"].isna().all()
    assert set(table["note"]) == {"all values are equal"}
    assert (projected_precision(table, DICE)["standard_error"] == 0).all()


def test_a_single_effect_takes_all():
    values = np.zeros((4, 3, 3)) + np.array([1.0, 2.0, 4.0, 8.0])[:, None, None]
    table = variance_components(table_of(values), DICE).set_index("component")
    assert table["share"]["patient"] == pytest.approx(1)
    assert table["variance"]["patient"] == pytest.approx(values[:, 0, 0].var(ddof=1))


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 3, 3), "one patient alone: nothing tells how others vary"),
        ((4, 1, 3), "one annotator alone: nothing tells how others vary"),
        ((4, 3, 1), "one seed alone: nothing tells how others vary"),
    ],
)
def test_one_level_of_an_effect_gives_no_number_but_a_reason(shape, told):
    table = variance_components(table_of(drawn(np.random.default_rng(0), *shape)), DICE)
    assert list(table["component"]) == [*SDS]
    assert table[["mean_square", "variance", "low", "high", "share", "share_low", "share_high"]].isna().all(axis=None)
    assert set(table["note"]) == {told}
    assert table.iloc[0][["n_patients", "n_annotators", "n_seeds"]].tolist() == [*shape]
    assert projected_precision(table, DICE).empty


def test_without_a_model_or_a_value_there_is_no_number_but_a_reason():
    scores = table_of(drawn(np.random.default_rng(0), 4, 3, 3))
    for changed, told in (
        (scores.assign(family="general"), "no individual model was scored"),
        (scores.assign(value=np.nan), "no patient has a defined value of every model"),
        (scores.assign(value=np.inf), "no patient has a defined value of every model"),
    ):
        table = variance_components(changed, DICE)
        assert set(table["note"]) == {told}
        assert table["variance"].isna().all()
        assert projected_precision(table, DICE).empty
    unnamed = variance_components(scores.assign(metric="dice_annotator"), DICE)
    assert set(unnamed["note"]) == {"the scores do not name the annotator that they are taken against"}
    assert unnamed["variance"].isna().all()
    assert variance_components(scores, Statistics(primary={"calibration": "ece"})).empty
    assert projected_precision(variance_components(scores.iloc[:0], DICE), DICE).empty
    with pytest.raises(StatisticsError, match="family"):
        variance_components(scores.drop(columns="family"), DICE)
    with pytest.raises(StatisticsError, match="no column component"):
        projected_precision(variance_components(scores, DICE).drop(columns="component"))
    with pytest.raises(StatisticsError, match="more than once"):
        variance_components(pd.concat([scores, scores.iloc[:1]]), DICE)


def test_under_cross_validation_patients_and_models_cannot_be_told_apart():
    scores = table_of(drawn(np.random.default_rng(0), 6, 3, 3))
    fold = scores["patient"].str[-1].astype(int) % 3
    held = scores["predictor"].str.removesuffix("all") + fold.astype(str)
    table = variance_components(scores.assign(predictor=held), DICE)
    assert set(table["note"]) == {
        "each patient has the models of one fold alone, so that patients and models cannot be told apart"
    }
    assert table["variance"].isna().all()


def test_folds_that_all_predict_a_patient_count_as_seeds():
    values = drawn(np.random.default_rng(0), 5, 3, 4)
    scores = table_of(values)
    seed = scores["predictor"].str.extract(r"init(\d)")[0].astype(int)
    names = (
        scores["predictor"].str.split("_").str[0] + "_init" + (seed // 2).astype(str) + "_fold" + (seed % 2).astype(str)
    )
    one, two = variance_components(scores, DICE), variance_components(scores.assign(predictor=names), DICE)
    pd.testing.assert_frame_equal(one, two)
    assert set(two["n_seeds"]) == {4}


def test_patients_with_a_hole_are_left_out_and_counted():
    values = drawn(np.random.default_rng(1), 9, 3, 3)
    holed = values.copy()
    holed[2, 1, 1], holed[5, 0, 2], holed[5, 0, 1] = np.nan, np.inf, np.nan
    table = variance_components(table_of(holed), DICE)
    assert set(table["left_out"]) == {2}
    assert set(table["note"]) == {"2 patients without a finite score of every model are left out"}
    whole = variance_components(table_of(np.delete(values, [2, 5], axis=0)), DICE)
    assert variances(table) == pytest.approx(variances(whole))
    absent = table_of(values).drop(index=4)  # a row that is not there is a hole, too
    assert set(variance_components(absent, DICE)["left_out"]) == {1}


def test_a_model_that_is_missing_costs_its_seed_or_annotator_not_every_patient():
    values = drawn(np.random.default_rng(1), 8, 4, 3)
    scores = table_of(values)
    table = variance_components(scores[scores["predictor"] != "anno2_init1_foldall"], DICE)
    assert set(table["note"]) == {"annotator anno2 is left out: some scores are missing"}
    assert variances(table) == pytest.approx(
        variances(variance_components(table_of(np.delete(values, 1, axis=1)), DICE))
    )
    assert table.iloc[0][["n_patients", "n_annotators", "n_seeds", "left_out"]].tolist() == [8, 3, 3, 0]
    two = scores[~scores["predictor"].isin(["anno2_init1_foldall", "anno3_init1_foldall"])]
    table = variance_components(two, DICE)
    assert set(table["note"]) == {"seed 1 fold all is left out: some scores are missing"}
    # Of two annotators and two seeds nothing can be spared.
    least = table_of(values[:, :2, :2])
    table = variance_components(least[least["predictor"] != "anno2_init1_foldall"], DICE)
    assert set(table["note"]) == {"no patient has a defined value of every model"}


def test_only_the_annotators_own_models_are_used():
    scores = table_of(drawn(np.random.default_rng(1), 5, 3, 3))
    others = [
        scores[scores["predictor"] == "anno1_init0_foldall"].assign(predictor=name, family=family, value=7.0)
        for name, family in (
            ("majority_init0_foldall", "fused"),
            ("ensemble_all", "general"),
            ("isotonic_ensemble_all", "calibrated"),
        )
    ]
    pd.testing.assert_frame_equal(
        variance_components(pd.concat([*others, scores]), DICE), variance_components(scores, DICE)
    )


def test_scores_of_each_annotator_have_the_annotator_as_an_effect():
    rng = np.random.default_rng(2)
    base = drawn(rng, 6, 3, 3, {"patient": 0.05, "residual": 0.01})
    parts = [
        table_of(base + 0.1 * reference + 0.02 * (np.arange(3) == reference)[None, :, None], "dice_annotator").assign(
            organ=organ, annotator=str(reference + 1), unit=""
        )
        for reference in range(3)
        for organ in ("liver", "kidney")
    ]
    table = variance_components(pd.concat(parts), DICE).set_index("component")
    assert list(table.index) == [
        *("patient", "annotator", "seed", "reference", "patient:annotator", "patient:seed", "patient:reference"),
        *("annotator:seed", "annotator:reference", "seed:reference", "residual"),
    ]
    assert set(table["question"]) == {"exploratory"}
    assert set(table["n_references"]) == {3}
    assert table["variance"]["reference"] == pytest.approx(np.var([0, 0.1, 0.2], ddof=1), rel=0.05)
    assert table["share"]["annotator:reference"] > 0.005
    assert projected_precision(table.reset_index(), DICE).empty


def test_sixty_five_patients_by_forty_five_models_take_seconds():
    rng = np.random.default_rng(0)
    usual = Statistics()
    metrics = [*usual.primary.values()]
    scores = pd.concat([table_of(drawn(rng, 65, 5, 9), metric) for metric in metrics])
    start = time.process_time()
    table = variance_components(scores, usual)
    projected_precision(table, usual)
    assert time.process_time() - start < 10
    assert set(table["degrees_of_freedom"]) == {64, 4, 8, 256, 512, 32, 2048}
