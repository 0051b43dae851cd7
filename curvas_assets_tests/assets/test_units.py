"""Claims proved here.

- What was scored in mm³ is read in cm³, in scores, means and differences alike; every other unit stays, and so does the input.
- The UI's tables of scores and comparisons, and the report's registry, name the unit that they show.
"""

import pandas as pd

from curvas_assets.stages.compare import shown_comparisons
from curvas_assets.stages.score import means_by_predictor, shown_registry
from curvas_assets.statistics import (
    compare_all_families,
    scored_in_mm3,
    shown_differences,
    shown_scores,
    units_of,
)
from curvas_assets_tests.report.studies import make_scores, make_study

STUDY = make_study(patients=2)
SCORES = make_scores(STUDY)


def test_volumes_are_read_in_cubic_centimetres_and_the_rest_as_it_is():
    before = SCORES.copy()
    shown = shown_scores(SCORES)
    volumes = SCORES["unit"] == "mm³"
    assert (
        set(SCORES.loc[volumes, "metric"])
        == {"crps", "crps_published", "volume", "volume_annotator"}
        == scored_in_mm3(SCORES)
    )
    pd.testing.assert_series_equal(shown.loc[volumes, "value"], SCORES.loc[volumes, "value"] / 1000)
    pd.testing.assert_frame_equal(shown[~volumes], SCORES[~volumes])
    assert units_of(shown)["crps"] == "cm³"
    assert units_of(shown)["hd95"] == "mm"
    pd.testing.assert_frame_equal(SCORES, before)
    old = SCORES.assign(unit=SCORES["unit"].str.replace("mm³", "mm3"))
    pd.testing.assert_series_equal(shown_scores(old)["value"], shown["value"])


def test_differences_follow_their_metric():
    tests = compare_all_families(SCORES, STUDY.statistics)
    shown = shown_differences(tests, scored_in_mm3(SCORES))
    ratio = (shown["mean_difference"] / tests["mean_difference"]).round(9)
    assert set(ratio[tests["metric"] == "crps"]) == {0.001}
    assert set(ratio[tests["metric"] == "hd95"]) == {1}
    pd.testing.assert_series_equal(shown["U"], tests["U"])
    assert shown_differences(pd.DataFrame({"metric": []}), {"crps"}).empty


def test_what_the_ui_shows_names_its_unit():
    means = means_by_predictor(SCORES)
    assert list(means.columns) == ["predictor", "dice", "confidence", "ece", "crps (cm³)", "predictive_entropy (nats)"]
    own = SCORES[(SCORES["predictor"] == "ensemble_all") & (SCORES["metric"] == "crps")]["value"].mean()
    assert abs(means.set_index("predictor").loc["ensemble_all", "crps (cm³)"] - own / 1000) < 1e-9
    shown = shown_comparisons(compare_all_families(SCORES, STUDY.statistics), SCORES)
    assert {"crps (cm³)", "hd95 (mm)", "dice"} <= set(shown["metric"])
    shown = shown_registry(make_study())
    units = dict(zip(shown["metric"], shown["unit"], strict=True))
    assert (units["crps"], units["hausdorff"], units["dice"]) == ("cm³", "mm", "")
    assert "mm³" not in set(units.values())
