"""Claims proved here.

- A changed annotation scores that patient again and predicts nothing; a changed image predicts that patient, and no other.
- A changed definition of the scores makes all scores stale and no prediction.
- A retrained model makes its column of softmax stale, and after that only what is made from it.
- A changed seed trains the models of that seed and no other; what they are members of follows.
- A new patient is missing everywhere, and nothing else is due.
- A patient is ready to be scored only when every prediction and ensemble of it exists.
"""

import dagster as dg
import pytest

from curvas_assets.orchestration.schedules import due_scores
from curvas_assets.study import Study
from curvas_assets_tests.orchestration.lineage import DummyLineage

TESTS = ("UKCHLL003", "UKCHLL005")


@pytest.fixture
def lineage():
    lineage = DummyLineage()
    lineage.register(*TESTS)
    lineage.run_all()
    return lineage


def test_a_changed_annotation_scores_that_patient_again_and_predicts_nothing(lineage):
    lineage.versions[f"scan {TESTS[0]}"] = "changed annotation"
    assert lineage.run("scan", TESTS[0]).success
    assert lineage.due() == {"test_scan": [TESTS[0]], "scores": [TESTS[0]]}
    assert lineage.run("test_scan", TESTS[0]).success
    assert lineage.due() == {"scores": [TESTS[0]]}
    assert lineage.run("scores", TESTS[0]).success
    assert lineage.due() == {}


def test_a_changed_image_reaches_that_patients_predictions_and_nobody_elses(lineage):
    lineage.versions[TESTS[0]] = "changed image"
    assert lineage.run("scan", TESTS[0]).success
    assert lineage.run("test_scan", TESTS[0]).success
    due = lineage.due()
    assert due == {"softmax": [f"{model}|{TESTS[0]}" for model in lineage.study.models], "scores": [TESTS[0]]}


def test_a_changed_metric_definition_makes_scores_stale_and_no_prediction(lineage):
    lineage.code["scores"] = "2"
    assert lineage.due() == {"scores": list(TESTS)}


def test_a_retrained_model_makes_its_column_stale_and_then_what_is_made_from_it(lineage):
    model = str(lineage.study.models[0])
    lineage.versions[model] = "retrained"
    assert lineage.run("trained_model", model).success
    cells = [f"{model}|{patient}" for patient in TESTS]
    assert lineage.due() == {"softmax": cells}
    lineage.versions.update(dict.fromkeys(cells, "new"))
    assert lineage.run("softmax", cells[0], cells[1]).success
    due = lineage.due()
    assert due["ensemble_softmax"] == [f"{e}|{p}" for e in ("ensemble_anno1", "ensemble_all") for p in TESTS]
    assert due["scores"] == list(TESTS)


def test_a_changed_seed_trains_the_models_of_that_seed_only(lineage):
    raw = lineage.study.model_dump(mode="json")
    raw["seeds"][0] = 5
    edited = DummyLineage(study=Study.model_validate(raw), instance=lineage.instance)
    new = [f"{annotator}_init5_foldall" for annotator in edited.study.annotator_names]
    due = edited.due()
    assert due["trained_model"] == new
    assert due["softmax"] == [f"{model}|{patient}" for model in new for patient in TESTS]
    assert "preprocessed_dataset" not in due
    assert "scan" not in due


def test_a_new_patient_is_missing_everywhere_and_nothing_else_is_due(lineage):
    lineage.instance.add_dynamic_partitions("patient", ["UKCHLL007"])
    lineage.instance.add_dynamic_partitions("test_patient", ["UKCHLL007"])
    due = lineage.due()
    assert {asset: len(keys) for asset, keys in due.items()} == {
        "scan": 1,
        "test_scan": 1,
        "softmax": 9,
        "ensemble_softmax": 4,
        "scores": 1,
    }


def test_the_nightly_schedule_asks_for_complete_patients_only(lineage):
    lineage.code["scores"] = "2"
    lineage.instance.add_dynamic_partitions("patient", ["UKCHLL007"])
    lineage.instance.add_dynamic_partitions("test_patient", ["UKCHLL007"])
    assert [request.partition_key for request in due_scores(lineage.staleness)] == list(TESTS)
    lineage.code.clear()
    (skip,) = due_scores(lineage.staleness)
    assert isinstance(skip, dg.SkipReason)
    assert "softmax" in " ".join(lineage.staleness.missing_parents(dg.AssetKey("scores"), "UKCHLL007"))
