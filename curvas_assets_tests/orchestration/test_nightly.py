"""Claims proved here, by the job that `nightly_scores` launches, with instant, dummy computations.

- A changed annotation is taken in and scored, for that patient only; nothing is predicted.
- A changed image is taken in, and told: its predictions are not made at night, and it is not scored on those of the old
  image, unless predicting is switched on; then it goes through, and nobody else does.
- Who is refused at intake keeps the scores there are, and is named; the others of the night go on.
- Members that left or joined are averaged anew before anything is scored.
- A model that was trained anew makes nobody's night; with the switch on, its predictions are made.
- A new patient is not the night's; one that is complete and was never scored is.
- An uploaded prediction of another image holds its patient up, with the switch on as well.
- Calibrators that alone are due, as after a validation patient was excluded, are fitted at night, and scores follow the next night;
  while a validation patient is still to be predicted, they wait.
- The schedule launches this job; its switch is 1 or 0.
"""

import dagster as dg
import pytest

from curvas_assets.definitions import build_definitions
from curvas_assets.errors import DeploymentError, PatientError
from curvas_assets.orchestration import nightly, study_run
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.schedules import due_scores
from curvas_assets.study import Study, load_study
from curvas_assets_tests.orchestration.dummy_location import LINEAGE, AtOnce, job
from curvas_assets_tests.orchestration.lineage import DummyLineage, Events, copied

ONE, OTHER, NEW = sorted(LINEAGE.study.sets["test"])[:3]
MODELS = [str(model) for model in LINEAGE.study.models]


@pytest.fixture(scope="module")
def recorded():
    with dg.DagsterInstance.ephemeral() as instance:
        lineage = DummyLineage(study=LINEAGE.study, instance=instance)
        lineage.register(ONE, OTHER)
        lineage.record_all()
        yield lineage


@pytest.fixture
def lineage(recorded, monkeypatch, bucket_environment):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    with copied(recorded.instance) as instance:
        monkeypatch.setattr(LINEAGE, "instance", instance)
        for name in ("made", "broken", "versions", "code"):
            monkeypatch.setattr(LINEAGE, name, type(getattr(LINEAGE, name))())
        monkeypatch.setattr(study_run, "POLL_SECONDS", 0.01)
        coordinator = AtOnce()
        coordinator.register_instance(instance)
        monkeypatch.setattr(instance, "_run_coordinator", coordinator)
        yield LINEAGE


def night(lineage, **settings) -> tuple[bool, str]:
    """One night; whether it succeeded, and what its failure says."""
    lineage.made.clear()
    result = dg.execute_job(job("refresh_scores"), instance=lineage.instance, run_config=settings, raise_on_error=False)
    failures = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    return result.success, "".join(f.description or "" for f in failures if f)


def test_a_changed_annotation_is_taken_in_and_scored(lineage):
    assert night(lineage) == (True, "")
    assert lineage.made == []
    lineage.change_files(ONE, "b")
    lineage.versions[f"scan {ONE}"] = "another annotation"
    assert night(lineage) == (True, "")
    assert lineage.made == [("scan", ONE), ("test_scan", ONE), ("scores", ONE), ("viewer_preview", ONE)]
    assert lineage.due() == {}
    assert night(lineage) == (True, "")
    assert lineage.made == []


def test_a_changed_image_is_predicted_at_night_only_if_that_is_allowed(lineage):
    lineage.change_files(ONE, "b")
    lineage.versions[ONE] = "another image"
    lineage.change_files(OTHER, "b")
    lineage.versions[f"scan {OTHER}"] = "another annotation"
    ok, says = night(lineage)
    assert not ok
    assert f"predictions of {ONE} are missing or of another image" in says
    assert "CURVAS_NIGHTLY_PREDICT=1" in says
    assert [made for made in lineage.made if made[0] == "scores"] == [("scores", OTHER)]
    assert not night(lineage)[0]  # every night, until somebody sees to it
    assert lineage.made == []
    lineage.versions.update({f"{model}|{ONE}": "of the new image" for model in MODELS})
    assert night(lineage, predict=True) == (True, "")
    assert len(lineage.made) == 9 + 4 + 1 + 1
    assert all(key.endswith(ONE) for _, key in lineage.made)
    assert lineage.due() == {}


def test_who_is_refused_at_intake_keeps_the_scores_there_are(lineage):
    for patient in (ONE, OTHER):
        lineage.change_files(patient, "b")
        lineage.versions[f"scan {patient}"] = "another annotation"
    lineage.broken[ONE] = PatientError("reading", ONE, "a truncated file", "Upload it again.")
    ok, says = night(lineage)
    assert not ok
    assert f"scan {ONE}" in says
    assert OTHER not in says
    assert [made for made in lineage.made if made[0] == "scores"] == [("scores", OTHER)]


def test_members_that_changed_are_averaged_before_anything_is_scored(lineage):
    for patient in (ONE, OTHER):
        cell = f"{MODELS[0]}|{patient}"
        lineage.versions |= {cell: "another", f"ensemble_all|{patient}": "new", f"ensemble_anno1|{patient}": "new"}
        assert lineage.run("softmax", cell).success
    assert night(lineage, patients=[ONE]) == (True, "")
    assert lineage.made == [
        ("ensemble_softmax", f"ensemble_anno1|{ONE}"),
        ("ensemble_softmax", f"ensemble_all|{ONE}"),
        ("scores", ONE),
        ("viewer_preview", ONE),
    ]
    assert lineage.due().keys() == {
        "ensemble_softmax",
        "scores",
        "viewer_preview",
    }  # of the other, who was not asked for


def test_a_model_that_was_trained_anew_is_the_nights_only_with_the_switch(lineage):
    lineage.versions[MODELS[0]] = "retrained"
    assert lineage.run("trained_model", MODELS[0]).success
    assert night(lineage) == (True, "")
    assert lineage.made == []
    lineage.change_files(ONE, "b")
    lineage.versions[f"scan {ONE}"] = "another annotation"
    assert night(lineage) == (True, "")  # the predictions there are, of this very image, are scored
    assert lineage.made == [("scan", ONE), ("test_scan", ONE), ("scores", ONE), ("viewer_preview", ONE)]
    assert night(lineage, predict=True) == (True, "")
    assert lineage.made[:2] == [("softmax", f"{MODELS[0]}|{ONE}"), ("softmax", f"{MODELS[0]}|{OTHER}")]


def test_a_new_patient_is_not_the_nights_and_a_complete_one_is(lineage):
    for name in ("patient", "test_patient"):
        lineage.instance.add_dynamic_partitions(name, [NEW])
    assert lineage.run("scan", NEW).success
    assert lineage.run("test_scan", NEW).success
    assert night(lineage) == (True, "")
    assert lineage.made == []
    lineage.upload("softmax", *(f"{model}|{NEW}" for model in MODELS))
    assert night(lineage) == (True, "")
    assert [asset for asset, _ in lineage.made] == ["ensemble_softmax"] * 4 + ["scores", "viewer_preview"]


def test_an_uploaded_prediction_of_another_image_holds_its_patient_up(lineage):
    lineage.upload("softmax", f"{MODELS[0]}|{ONE}")
    lineage.run("ensemble_softmax", f"ensemble_anno1|{ONE}", f"ensemble_all|{ONE}")
    lineage.change_files(ONE, "b")
    lineage.versions[ONE] = "another image"
    ok, says = night(lineage, predict=True)
    assert not ok
    assert f"predictions of {ONE} are missing or of another image" in says
    assert "they were uploaded: upload them again" in says
    assert ("scores", ONE) not in lineage.made
    assert ("softmax", f"{MODELS[0]}|{ONE}") not in lineage.made


def test_calibrators_that_alone_are_due_are_fitted_at_night():
    raw = load_study("phantom").model_dump(mode="json") | {
        "sets": {"train": [1, 2], "validation": [5, 6], "test": [7]},
        "groups": {},
        "in_distribution_group": None,
        "calibrated": {"isotonic": ["ensemble_all"]},
    }
    edited = Study.model_validate(raw | {"exclusions": {"005": "consent withdrawn"}})
    with dg.DagsterInstance.ephemeral() as instance:
        before = _everything_made(Study.model_validate(raw), instance)
        (skip,) = due_scores(before.staleness)
        assert isinstance(skip, dg.SkipReason)
        after = Events(edited, instance)
        assert nightly.concerned(after.staleness) == []
        (request,) = due_scores(after.staleness)
        assert request.run_config == {"predict": False}
        assert request.tags == {"curvas/due": "calibrators"}

        ran = []
        assert _worked(after, ran) == []
        assert ran == ["fit_calibrators"]
        after.tell("calibrators", version="of one patient")
        (next_night,) = due_scores(after.staleness)
        assert next_night.run_config == {"patients": ["PHANTOM006", "PHANTOM007"], "predict": False}
        assert _worked(after, ran) == []
        assert ran == ["fit_calibrators"]

        # A further validation patient: the night waits until it is predicted.
        more = Study.model_validate(raw | {"sets": raw["sets"] | {"validation": [4, 5, 6]}})
        waiting = Events(more, instance)
        assert nightly.fit_is_due(waiting.staleness)
        instance.add_dynamic_partitions("test_patient", ["PHANTOM004"])
        waiting.tell("scan", "PHANTOM004")
        assert not nightly.fit_is_due(waiting.staleness)
        assert _worked(waiting, ran) == []
        assert ran == ["fit_calibrators"]


def test_an_empty_bucket_has_nothing_to_be_fitted_on():
    with dg.DagsterInstance.ephemeral() as instance:
        (skip,) = due_scores(Events(load_study("phantom"), instance).staleness)
        assert isinstance(skip, dg.SkipReason)


def _worked(events, ran):
    """A night of which nobody is concerned: what could not be made; the stages go to `ran`."""
    return nightly.work(
        lambda: events.staleness, lambda stage, _: ran.append(stage) or [], [], ran.append, predict=False
    )


def _everything_made(study, instance):
    """A study of which all predictions, calibrators and scores are there and fresh."""
    events, tests = Events(study, instance), study.predicted_patients()
    instance.add_dynamic_partitions("patient", [*study.training_patients(), *tests])
    instance.add_dynamic_partitions("test_patient", tests)
    for asset in (
        "scan",
        "test_scan",
        "training_cases",
        "preprocessed_dataset",
        "trained_model",
        "softmax",
        "ensemble_softmax",
    ):
        events.tell(asset, *map(str, events.staleness.partitions(dg.AssetKey(asset))))
    events.tell("calibrators")
    events.tell("scores", *tests)
    events.tell("viewer_preview", *tests)
    return events


def test_the_schedule_launches_this_job_and_the_switch_is_one_or_zero(monkeypatch):
    schedules = build_definitions(load_study("phantom")).get_repository_def()
    assert schedules.get_schedule_def("nightly_scores").job_name == "refresh_scores"
    for value, predicts in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("CURVAS_NIGHTLY_PREDICT", value)
        assert deployment().nightly_predict is predicts
    monkeypatch.setenv("CURVAS_NIGHTLY_PREDICT", "perhaps")
    with pytest.raises(DeploymentError, match=r"CURVAS_NIGHTLY_PREDICT: .* it is 'perhaps': .*: 1 or 0"):
        deployment()
