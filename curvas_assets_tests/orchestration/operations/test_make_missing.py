"""Claims proved here, on the published study's shape (65 test patients × 9 models) with instant dummy computations.

- Only missing cells run; with `stale`, those that are out of date run too, and nothing else.
- A launch can be narrowed to patients and models, and reaches nothing outside that rectangle.
- A failed cell stops nothing but what is made from it, and is named; launching again makes only what is left.
- A stage may make several partitioned assets.
- What was made elsewhere is left alone, unless the launch says otherwise.
- `redo` lists what it would make again; then it makes the named partitions, fresh or not, and no others, and names what failed.
- The 225 cells that are missing of 585 run in few batches, and Dagster's part of a cell costs less than half a second.
"""

import time

import dagster as dg
import pytest

from curvas_assets.errors import SegmentationError
from curvas_assets.orchestration import study_run
from curvas_assets.stages.table import STAGES
from curvas_assets_tests.orchestration import dummy_location
from curvas_assets_tests.orchestration.dummy_location import LINEAGE, AtOnce, job

STUDY = LINEAGE.study
TESTS = sorted(STUDY.sets["test"])
EVERYTHING = [
    *("scan", "test_scan", "training_cases", "preprocessed_dataset", "trained_model"),
    *("softmax", "variant_softmax", "ensemble_softmax", "scores", "viewer_preview"),
]
"""Also variants of models, of which this study has none."""
MODELS_ALONE = ["training_cases", "preprocessed_dataset", "trained_model"]
MODELS = [str(m) for m in STUDY.models]


@pytest.fixture
def lineage(monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.setattr(LINEAGE, "instance", instance)
        for name in ("made", "broken", "versions", "code"):
            monkeypatch.setattr(LINEAGE, name, type(getattr(LINEAGE, name))())
        monkeypatch.setattr(study_run, "POLL_SECONDS", 0.01)  # runs have ended when they are first asked for
        coordinator = AtOnce()
        coordinator.register_instance(instance)
        monkeypatch.setattr(instance, "_run_coordinator", coordinator)
        yield LINEAGE


def make_missing(lineage, **settings) -> tuple[bool, str]:
    """Launch the job; whether it succeeded, and what its failure says."""
    settings.setdefault("stages", EVERYTHING)
    lineage.made.clear()
    lineage.instance.run_coordinator.launched.clear()
    result = dg.execute_job(job("make_missing"), instance=lineage.instance, run_config=settings, raise_on_error=False)
    failures = [e.step_failure_data for e in result.all_events if e.is_step_failure]
    return result.success, "".join(f.user_failure_data.description or "" for f in failures if f.user_failure_data)


def made(lineage, asset):
    return {key for name, key in lineage.made if name == asset}


def up_to_models(lineage, *tests):
    """What predictions are made from is recorded."""
    lineage.register(*tests)
    lineage.record_all(only=["scan", "test_scan", *MODELS_ALONE])


def test_only_missing_cells_run_in_few_cheap_batches(lineage):
    up_to_models(lineage, *TESTS[:40])
    lineage.record_all(only=["softmax"])
    up_to_models(lineage, *TESTS)
    start = time.monotonic()
    ok, _ = make_missing(lineage, stages=["softmax"])
    seconds = time.monotonic() - start
    assert ok
    assert made(lineage, "softmax") == {f"{m}|{p}" for m in MODELS for p in TESTS[40:]}
    assert len(lineage.made) == 225
    assert len(lineage.instance.run_coordinator.launched) == 3
    assert seconds / 225 < 0.5
    assert make_missing(lineage, stages=["softmax"]) == (True, "")
    assert lineage.made == []


def test_a_rectangle_is_made_and_nothing_outside_it(lineage):
    up_to_models(lineage, *TESTS[:4])
    ok, _ = make_missing(lineage, stages=["predict"], patients=[TESTS[1], "8"], models=MODELS[3:5])
    assert ok
    assert made(lineage, "softmax") == {f"{m}|{p}" for m in MODELS[3:5] for p in (TESTS[1], "UKCHLL008")}
    ok, says = make_missing(lineage, stages=["ensemble_softmax"], patients=[TESTS[1]], models=[MODELS[0]])
    assert not ok
    assert f"ensemble_softmax ensemble_anno1|{TESTS[1]}" in says
    assert "ensemble_anno2" not in says
    assert lineage.made == []


def test_a_stage_of_several_partitioned_assets_makes_what_it_can_of_each(lineage, monkeypatch):
    monkeypatch.setitem(STAGES, "select_test_scans", ("test_scan", "scores"))
    monkeypatch.setattr(dummy_location, "defs", lineage.definitions)
    lineage.register(*TESTS[:2])
    ok, _ = make_missing(lineage, stages=["take_in_scans"])
    assert ok
    ok, says = make_missing(lineage, stages=["select_test_scans"])
    assert not ok
    assert lineage.made == [("test_scan", patient) for patient in TESTS[:2]]
    assert all(f"scores {patient}" in says for patient in TESTS[:2])  # nothing is predicted yet
    ok, _ = make_missing(lineage, stages=[*MODELS_ALONE, "softmax", "ensemble_softmax"])
    assert ok
    assert make_missing(lineage, stages=["select_test_scans"]) == (True, "")
    assert lineage.made == [("scores", patient) for patient in TESTS[:2]]


def test_a_failed_cell_stops_only_what_is_made_from_it_and_a_relaunch_makes_what_is_left(lineage):
    tests = TESTS[:3]
    up_to_models(lineage, *tests)
    bad = f"{MODELS[4]}|{tests[1]}"
    lineage.broken[bad] = SegmentationError("predicting", bad, "it is broken", "Mend it.")
    stages = ["softmax", "ensemble_softmax", "scores"]
    ok, says = make_missing(lineage, stages=stages)
    assert not ok
    assert made(lineage, "softmax") == {f"{m}|{p}" for m in MODELS for p in tests} - {bad}
    # anno2 and all have the broken member; the other two ensembles of that patient are made.
    assert {key for key in made(lineage, "ensemble_softmax") if key.endswith(tests[1])} == {
        f"ensemble_anno1|{tests[1]}",
        f"ensemble_anno3|{tests[1]}",
    }
    assert made(lineage, "scores") == {tests[0], tests[2]}
    for left in (f"softmax {bad}", f"ensemble_softmax ensemble_all|{tests[1]}", f"scores {tests[1]}"):
        assert left in says
    lineage.broken.clear()
    assert make_missing(lineage, stages=stages) == (True, "")
    assert lineage.made == [
        ("softmax", bad),
        ("ensemble_softmax", f"ensemble_anno2|{tests[1]}"),
        ("ensemble_softmax", f"ensemble_all|{tests[1]}"),
        ("scores", tests[1]),
    ]


def test_what_is_stale_runs_only_if_asked_for(lineage):
    tests = TESTS[:2]
    lineage.register(*tests)
    lineage.record_all()
    lineage.versions[MODELS[0]] = "retrained"
    assert lineage.run("trained_model", MODELS[0]).success
    assert make_missing(lineage) == (True, "")
    assert lineage.made == []
    assert make_missing(lineage, stages=["softmax"], stale=True) == (True, "")
    assert made(lineage, "softmax") == {f"{MODELS[0]}|{p}" for p in tests}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"stages": ["softmaxes"]}, "softmaxes is no stage"),
        ({"patients": ["UKCHLL001x"]}, "UKCHLL001x"),
        ({"models": ["anno9"]}, "anno9 is not among"),
    ],
)
def test_a_wrong_setting_fails_with_what_is_allowed(lineage, settings, says):
    lineage.register(*TESTS[:1])
    ok, told = make_missing(lineage, **settings)
    assert not ok
    assert says in told


def test_what_was_made_elsewhere_is_left_alone_unless_asked_for(lineage):
    lineage.register(*TESTS[:1])
    assert make_missing(lineage, stages=["scan", "test_scan"])[0]
    lineage.upload("softmax", *(f"{model}|{TESTS[0]}" for model in MODELS))
    assert make_missing(lineage, stale=True) == (True, "")
    assert {asset for asset, _ in lineage.made} == {"ensemble_softmax", "scores", "viewer_preview"}
    assert make_missing(lineage, stages=MODELS_ALONE, elsewhere=True) == (True, "")
    assert made(lineage, "trained_model") == set(MODELS)
    assert make_missing(lineage, stale=True) == (True, "")
    assert lineage.made == []  # the uploaded volumes stay, though the models are new


def redo(lineage, **settings):
    lineage.made.clear()
    result = dg.execute_job(job("redo"), instance=lineage.instance, run_config=settings, raise_on_error=False)
    failures = [e.step_failure_data for e in result.all_events if e.is_step_failure]
    outputs = [e.step_output_data.metadata for e in result.all_events if e.is_successful_output]
    told = {name: entry.value for found in outputs for name, entry in found.items()}
    return result.success, "".join(f.user_failure_data.description or "" for f in failures if f.user_failure_data), told


def test_redo_lists_and_then_makes_what_is_named_and_nothing_else(lineage):
    tests = TESTS[:3]
    lineage.register(*tests)
    lineage.record_all()
    named = {"stages": ["softmax", "scores"], "patients": [tests[1], tests[2]], "models": MODELS[:2]}
    ok, _, told = redo(lineage, **named)
    assert (ok, told["partitions"], told["made again"], lineage.made) == (True, 6, False, [])
    ok, says, told = redo(lineage, dry_run=False, **named)
    assert ok, says
    assert told["made again"]
    assert made(lineage, "softmax") == {f"{m}|{p}" for m in MODELS[:2] for p in tests[1:]}
    assert made(lineage, "scores") == set(tests[1:])
    assert len(lineage.made) == 6
    assert lineage.due() == {}  # the same content: nothing else is out of date
    run = lineage.instance.run_coordinator.launched[-1]
    assert run.tags["user"].startswith("redo ")  # what the UI shows as "launched by"
    lineage.broken[f"{MODELS[0]}|{tests[1]}"] = SegmentationError("predicting", "it", "it is broken", "Mend it.")
    ok, says, _ = redo(lineage, dry_run=False, **{**named, "stages": ["predict"]})
    assert not ok
    assert f"1 could not be made again: softmax {MODELS[0]}|{tests[1]}" in says
    assert "The old artefacts are kept" in says
    ok, _, told = redo(lineage, dry_run=False, stages=["trained_model"], patients=["all"], models=["ensemble_all"])
    assert not ok  # no model is named


def test_redo_reaches_what_is_missing_or_uploaded_among_the_named(lineage):
    up_to_models(lineage, *TESTS[:1])
    lineage.upload("trained_model", MODELS[0])
    named = {"stages": ["trained_model"], "patients": ["all"], "models": MODELS[:1], "dry_run": False}
    assert redo(lineage, **named)[0]
    assert made(lineage, "trained_model") == {MODELS[0]}
    assert not lineage.staleness.elsewhere(dg.AssetKey("trained_model"), MODELS[0])
