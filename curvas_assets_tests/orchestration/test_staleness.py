"""Claims proved here.

- A changed annotation scores that patient again and predicts nothing; a changed image predicts that patient, and no other.
- A changed definition of the scores makes all scores stale and no prediction.
- A retrained model makes its column of softmax stale, and after that only what is made from it.
- A changed seed trains the models of that seed and no other; what they are members of follows.
- A new patient is missing everywhere, and nothing else is due.
- Of 99, 100, 101 and 1,000 patients, changed scores and scans reach the tables and datasets made of them.
- Sets, groups and exclusions make the table of scores due; who is not the study's any more is due nowhere, and an orphan.
- Under cross-validation only the models that did not see a patient predict it.
- A patient is ready to be scored only when every prediction and ensemble of it exists.
- An annotator or a seed that leaves or joins makes the ensembles due, and the scores, however the file writes the ensembles.
- What was uploaded is told as stale and is not due; nor is a model of which predictions were uploaded, nor a dataset all of
  whose models came from elsewhere; an order, or a materialisation by hand, ends that.
- Where test predictions alone were uploaded, nothing is due of a validation patient whom the missing models would predict, but
  what calibrators are fitted to; once a model is here, its predictions are due.
- The state table counts made, stale, missing and elsewhere of each asset, and says why.
"""

import dagster as dg
import pytest

from curvas_assets.orchestration import nightly
from curvas_assets.orchestration.following import due_for_patients
from curvas_assets.orchestration.operations.about import about_orphans
from curvas_assets.orchestration.schedules import due_report, due_scores
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.orchestration.state import state_table
from curvas_assets.study import Study, load_study
from curvas_assets_tests.orchestration.lineage import DummyLineage, Events, copied

TESTS = ("UKCHLL003", "UKCHLL005")


@pytest.fixture(scope="module")
def recorded():
    lineage = DummyLineage()
    lineage.register(*TESTS)
    lineage.record_all()
    return lineage


@pytest.fixture
def lineage(recorded):
    return DummyLineage(instance=copied(recorded.instance))


def test_a_changed_annotation_scores_that_patient_again_and_predicts_nothing(lineage):
    lineage.versions[f"scan {TESTS[0]}"] = "changed annotation"
    assert lineage.run("scan", TESTS[0]).success
    assert lineage.due() == {"test_scan": [TESTS[0]], "scores": [TESTS[0]], "viewer_preview": [TESTS[0]]}
    assert lineage.run("test_scan", TESTS[0]).success
    assert lineage.due() == {"scores": [TESTS[0]], "viewer_preview": [TESTS[0]]}
    assert lineage.run("scores", TESTS[0]).success
    assert lineage.run("viewer_preview", TESTS[0]).success
    assert lineage.due() == {}


def test_a_changed_image_reaches_that_patients_predictions_and_nobody_elses(lineage):
    lineage.versions[TESTS[0]] = "changed image"
    assert lineage.run("scan", TESTS[0]).success
    assert lineage.run("test_scan", TESTS[0]).success
    due = lineage.due()
    cells = [f"{model}|{TESTS[0]}" for model in lineage.study.models]
    assert due == {"softmax": cells, "scores": [TESTS[0]], "viewer_preview": [TESTS[0]]}


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
        "viewer_preview": 1,
    }


def test_the_nightly_schedule_asks_for_complete_patients_only(lineage):
    lineage.code["scores"] = "2"
    lineage.instance.add_dynamic_partitions("patient", ["UKCHLL007"])
    lineage.instance.add_dynamic_partitions("test_patient", ["UKCHLL007"])
    (request,) = due_scores(lineage.staleness, predict=False)
    assert request.run_config == {"patients": list(TESTS), "predict": False}
    lineage.code.clear()
    (skip,) = due_scores(lineage.staleness, predict=False)
    assert isinstance(skip, dg.SkipReason)
    assert "softmax" in " ".join(lineage.staleness.missing_parents(dg.AssetKey("scores"), "UKCHLL007"))


def _many(train, test):
    raw = load_study("phantom").model_dump(mode="json")
    raw |= {"groups": {}, "in_distribution_group": None, "patients": {"prefix": "PHANTOM", "digits": 4}}
    raw["sets"] = {"train": list(range(1, train + 1)), "test": list(range(train + 1, train + test + 1))}
    return Study.model_validate(raw)


@pytest.mark.parametrize(("training", "scored"), [(99, 99), (100, 100), (101, 101), (5, 1000)])
def test_a_change_is_seen_through_any_number_of_partitions(training, scored):
    study = _many(training, scored)
    tables = ("cohort", "training_cases", "preprocessed_dataset", "study_scores")
    with dg.DagsterInstance.ephemeral() as instance:
        events = Events(study, instance)
        train, test = study.sets["train"], study.sets["test"]
        instance.add_dynamic_partitions("patient", [*train, *test])
        instance.add_dynamic_partitions("test_patient", list(test))
        events.tell("scan", *train, *test)
        events.tell("scores", *test)
        events.tell("cohort")
        events.tell("study_scores")
        events.tell("training_cases", *study.annotator_names)
        events.tell("preprocessed_dataset", *study.annotator_names)
        assert events.due(*tables) == []
        events.tell("scores", test[0], version="1")
        events.tell("scan", train[0], version="1")
        assert events.due(*tables) == []  # made again with the same content
        events.tell("scores", test[-1], version="2")
        assert events.due(*tables) == ["study_scores"]
        assert isinstance(next(due_report(events.staleness)), dg.RunRequest)
        events.tell("scan", test[-1], version="2")
        assert events.due(*tables) == ["cohort", "study_scores"]
        events.tell("scan", train[-1], version="2")
        assert events.due(*tables) == ["cohort", "training_cases", "study_scores"]
        events.tell("training_cases", *study.annotator_names)
        assert events.due("training_cases", "preprocessed_dataset") == []  # the scans' files are as they were
        events.tell("training_cases", *study.annotator_names, version="2")
        assert events.due("training_cases", "preprocessed_dataset") == ["preprocessed_dataset"]


@pytest.mark.parametrize("training", [3, 100])
@pytest.mark.parametrize("uploaded", [False, True])
def test_a_changed_scan_is_seen_behind_training_cases_that_are_not_there(training, uploaded):
    """They were wiped, or the dataset was uploaded and never had any."""
    study, dataset = _many(training, 1), dg.AssetKey("preprocessed_dataset")
    with dg.DagsterInstance.ephemeral() as instance:
        events, train = Events(study, instance), study.sets["train"]
        instance.add_dynamic_partitions("patient", list(train))
        events.tell("scan", *train)
        (events.upload if uploaded else events.tell)("preprocessed_dataset", *study.annotator_names)
        events.tell("scan", train[0], version="1")  # taken in again with the same content
        assert events.staleness.status(dataset, "anno1").status.value == "FRESH"
        events.tell("scan", train[0], version="2")
        status = events.staleness.status(dataset, "anno1")
        assert status.reasons == (f"scan of {train[0]} has a new data version",)
        assert status.due is not uploaded


def test_a_changed_scan_is_seen_behind_a_test_scan_that_was_wiped():
    study = _many(3, 1)
    (patient,) = study.sets["test"]
    cells = [f"{model}|{patient}" for model in study.models]
    with dg.DagsterInstance.ephemeral() as instance:
        events = Events(study, instance)
        instance.add_dynamic_partitions("patient", [patient])
        instance.add_dynamic_partitions("test_patient", [patient])
        events.tell("scan", patient)
        events.tell("test_scan", patient)
        events.tell("softmax", *cells)
        instance.wipe_assets([dg.AssetKey("test_scan")])
        assert events.due("softmax") == []
        events.tell("scan", patient, version="2")
        assert events.staleness.due(dg.AssetKey("softmax")) == cells


def test_a_dataset_waits_for_a_training_patient_who_is_not_in_the_bucket():
    study = _many(3, 1)
    with dg.DagsterInstance.ephemeral() as instance:
        events = Events(study, instance)
        instance.add_dynamic_partitions("patient", ["PHANTOM0001", "PHANTOM0002"])
        events.tell("scan", "PHANTOM0001", "PHANTOM0002")
        staleness = events.staleness
        missing = staleness.missing_parents(dg.AssetKey("preprocessed_dataset"), "anno1")
        assert missing == ["training_cases of anno1"]
        assert staleness.missing_parents(dg.AssetKey("training_cases"), "anno1") == ["scan of PHANTOM0003"]


def test_sets_groups_and_exclusions_make_the_table_due_and_leave_orphans():
    study = load_study("phantom")
    raw = study.model_dump(mode="json")
    tests = list(study.sets["test"])
    with dg.DagsterInstance.ephemeral() as instance:
        events = Events(study, instance)
        instance.add_dynamic_partitions("test_patient", tests)
        events.tell("scores", *tests)
        events.tell("study_scores")
        assert events.due("study_scores") == []
        for changes in (
            {"exclusions": {"PHANTOM008": "consent withdrawn"}},
            {
                "sets": {
                    **raw["sets"],
                    "train": [*raw["sets"]["train"], "PHANTOM008"],
                    "test": ["PHANTOM007", "PHANTOM009"],
                }
            },
            {"groups": {"A": raw["groups"]["A"], "B": ["PHANTOM008", "PHANTOM009"]}},
        ):
            edited = Events(Study.model_validate({**raw, **changes}), instance)
            assert edited.due("study_scores") == ["study_scores"]
            graph = edited.repository.asset_graph
            gone = {"PHANTOM008"} if "groups" not in changes else set()
            assert set(Staleness(graph, instance).partitions(dg.AssetKey("scores"))) == set(tests) - gone
            assert set(about_orphans(instance, graph)["partition"]) == gone
            made = state_table(Staleness(graph, instance)).set_index("asset").loc["scores"]
            assert (made["partitions"], made["made"]) == (3 - len(gone), 3 - len(gone))


def test_under_cross_validation_only_models_that_did_not_see_a_patient_predict_it():
    raw = load_study("phantom").model_dump(mode="json")
    raw |= {
        "groups": {},
        "in_distribution_group": None,
        "sets": {"train": [1, 2, 3]},
        "folds": [0, 1, 2],
        "seeds": [1, 2],
        "annotators": raw["annotators"][:1],
    }
    lineage = DummyLineage(study=Study.model_validate(raw))
    patients = lineage.study.scored_patients()
    lineage.instance.add_dynamic_partitions("patient", patients)
    lineage.instance.add_dynamic_partitions("test_patient", patients)
    for asset in ("scan", "test_scan", "training_cases", "preprocessed_dataset", "trained_model"):
        keys = lineage.staleness.partitions(dg.AssetKey(asset))
        assert lineage.run(asset, str(keys[0]), str(keys[-1])).success
    wanted = {f"{model}|{p}" for p in patients for model in lineage.study.models_of(p)}
    assert len(wanted) == 6
    assert set(lineage.due()["softmax"]) == wanted
    asked = {
        r.tags["dagster/partition"]
        for r in due_for_patients(lineage.study, lineage.staleness, patients, {})
        if "dagster/partition" in r.tags
    }
    assert asked <= wanted
    for cell in wanted:
        assert lineage.run("softmax", cell).success
    staleness = lineage.staleness
    ensembles = staleness.partitions(dg.AssetKey("ensemble_softmax"))
    assert all(staleness.ready(dg.AssetKey("ensemble_softmax"), cell) for cell in ensembles)
    assert len(wanted) == len([key for asset, key in lineage.made if asset == "softmax"])


@pytest.mark.parametrize(
    ("change", "written"),
    [("annotator leaves", False), ("annotator joins", True), ("seed leaves", True), ("seed joins", False)],
)
def test_ensembles_are_made_again_of_those_who_are_members_now(change, written):
    raw = load_study("phantom").model_dump(mode="json")
    fewer = (
        {**raw, "annotators": raw["annotators"][:2]} if "annotator" in change else {**raw, "seeds": raw["seeds"][:2]}
    )
    if written:
        raw |= {"ensembles": {"all": [a["name"] for a in raw["annotators"]]}}
        fewer |= {"ensembles": {"all": [a["name"] for a in fewer["annotators"]]}}
    before, after = (raw, fewer) if "leaves" in change else (fewer, raw)
    patient = "PHANTOM007"
    first, study = Study.model_validate(before), Study.model_validate(after)
    lineage = DummyLineage(study=first).as_in(first)
    lineage.register(patient)
    lineage.record_all()
    assert lineage.due() == {}
    edited = lineage.as_in(study)
    due = edited.due()
    there = {str(e): first.members(e) for e in first.ensemble_ids}
    other = [str(e) for e in study.ensemble_ids if study.members(e) != there.get(str(e))]
    assert due["ensemble_softmax"] == [f"{e}|{patient}" for e in other]  # and not those whose members are as they were
    assert due["scores"] == [patient]
    new = [str(m) for m in study.models if m not in first.models]
    assert due.get("trained_model", []) == new  # and no other model again
    assert due.get("softmax", []) == [f"{model}|{patient}" for model in new]
    edited.record_all()
    assert edited.due() == {}


def test_what_was_uploaded_is_left_alone_until_a_person_says_otherwise():
    lineage = DummyLineage()
    lineage.register(*TESTS)
    for asset in ("scan", "test_scan"):
        keys = lineage.staleness.partitions(dg.AssetKey(asset))
        assert lineage.run(asset, str(keys[0]), str(keys[-1])).success
    models = [str(model) for model in lineage.study.models]
    of_anno1, others = models[:3], models[3:]
    model = dg.AssetKey("trained_model")
    lineage.upload("softmax", f"{of_anno1[0]}|{TESTS[0]}")  # predictions alone
    lineage.upload("trained_model", of_anno1[1])
    assert lineage.due()["trained_model"] == [of_anno1[2], *others]
    assert lineage.due()["preprocessed_dataset"] == [
        "anno1",
        "anno2",
        "anno3",
    ]  # one model of anno1 is still to be trained
    lineage.upload("softmax", f"{of_anno1[2]}|{TESTS[0]}")
    assert lineage.due()["trained_model"] == others
    assert lineage.due()["preprocessed_dataset"] == ["anno2", "anno3"]
    assert lineage.staleness.due(model, elsewhere=True) == [of_anno1[0], of_anno1[2], *others]
    (needed,) = lineage.staleness.missing_parents(dg.AssetKey("softmax"), f"{of_anno1[0]}|{TESTS[1]}")
    assert needed.startswith(f"trained_model of {of_anno1[0]} (made elsewhere")

    # A dataset and a model made here afterwards make nothing of it due; the state tells that it is out of date.
    assert lineage.run("preprocessed_dataset", "anno1").success
    assert lineage.staleness.status(model, of_anno1[1]).status.value == "STALE"
    assert not lineage.staleness.status(model, of_anno1[1]).due
    assert lineage.run("trained_model", of_anno1[0]).success  # by hand
    cell = f"{of_anno1[0]}|{TESTS[0]}"
    assert cell not in lineage.due()["softmax"]
    table = state_table(lineage.staleness).set_index("asset")
    assert table.loc["trained_model", ["made", "stale", "missing", "elsewhere"]].tolist() == [2, 0, 6, 2]
    assert (
        "made elsewhere, left alone: preprocessed_dataset has a new data version (1)"
        in table.loc["trained_model", "why"]
    )
    assert table.loc["softmax", "elsewhere"] == 2
    assert lineage.run("softmax", cell).success  # by hand: it is ours from now on
    assert state_table(lineage.staleness).set_index("asset").loc["softmax", "elsewhere"] == 1
    lineage.versions[of_anno1[0]] = "retrained"
    assert lineage.run("trained_model", of_anno1[0]).success
    assert cell in lineage.due()["softmax"]


CELLS_OF_MODELS = (
    *("trained_model", "preprocessed_dataset", "softmax", "variant_softmax", "ensemble_softmax", "scores"),
    "viewer_preview",
)


def _uploaded(instance, **changes):
    """A study whose test predictions were all uploaded, with ensembles and scores; its validation patient was taken in."""
    study = Study.model_validate(load_study("phantom").model_dump(mode="json") | changes)
    events, tests = Events(study, instance), list(study.sets["test"])
    everyone = [*study.training_patients(), *study.fitting_patients, *tests]
    instance.add_dynamic_partitions("patient", everyone)
    instance.add_dynamic_partitions("test_patient", [*study.fitting_patients, *tests])
    events.tell("scan", *everyone)
    events.tell("test_scan", *study.fitting_patients, *tests)
    events.upload("softmax", *(f"{model}|{patient}" for model in study.models for patient in tests))
    events.tell("ensemble_softmax", *(f"{one}|{patient}" for one in study.ensemble_ids for patient in tests))
    events.tell("calibrators")
    events.tell("scores", *tests)
    events.tell("viewer_preview", *tests)
    return events


def test_of_a_validation_patient_nothing_is_due_whose_models_are_elsewhere():
    with dg.DagsterInstance.ephemeral() as instance:
        events = _uploaded(instance)
        study, (patient,) = events.study, events.study.fitting_patients
        assert events.due_of(*CELLS_OF_MODELS) == {}
        staleness = events.staleness
        assert all(not nightly.concerned(staleness, predict=predict) for predict in (False, True))
        cells = [f"{model}|{patient}" for model in study.models]
        assert staleness.due(dg.AssetKey("softmax"), elsewhere=True) == cells
        assert state_table(staleness).set_index("asset").loc["softmax", ["missing", "elsewhere"]].tolist() == [0, 36]
        model = str(study.models[0])
        events.tell("preprocessed_dataset", study.models[0].annotator)
        events.tell("trained_model", model)  # it is here now
        assert events.due_of(*CELLS_OF_MODELS) == {"softmax": [f"{model}|{patient}"]}


def test_a_test_patient_without_an_uploaded_prediction_is_due():
    with dg.DagsterInstance.ephemeral() as instance:
        events = _uploaded(instance, rest="test", sets={"train": [1, 2], "validation": [6], "test": [7, 8, 9]})
        instance.add_dynamic_partitions("patient", ["PHANTOM010"])
        instance.add_dynamic_partitions("test_patient", ["PHANTOM010"])
        due = events.due_of("softmax", "ensemble_softmax", "scores")
        assert due["softmax"] == [f"{model}|PHANTOM010" for model in events.study.models]
        assert due["scores"] == ["PHANTOM010"]


def test_what_calibrators_are_fitted_to_is_due_though_its_models_are_elsewhere():
    with dg.DagsterInstance.ephemeral() as instance:
        events = _uploaded(instance, calibrated={"isotonic": ["ensemble_anno1"]})
        members = [f"{model}|PHANTOM006" for model in events.study.members("ensemble_anno1")]
        assert len(members) < len(events.study.models)
        due = events.due_of(*CELLS_OF_MODELS)
        assert due == {"softmax": members, "ensemble_softmax": ["ensemble_anno1|PHANTOM006"]}
        staleness = events.staleness
        (missing,) = staleness.missing_parents(dg.AssetKey("softmax"), members[0])
        assert missing.startswith(f"trained_model of {members[0].partition('|')[0]} (made elsewhere")


def test_an_upload_from_before_this_state_existed_is_one_too(lineage):
    """Events of older versions have the words in their metadata, and no tag."""
    definition = lineage.definitions.resolve_asset_graph().assets_def_for_key(dg.AssetKey("trained_model"))
    model = str(lineage.study.models[0])
    told = {"made": "elsewhere, and uploaded", "origin": "Lyon"}
    tags = {"dagster/data_version": "theirs"}
    lineage.instance.report_runless_asset_event(
        dg.AssetMaterialization(definition.key, partition=model, metadata=told, tags=tags)
    )
    assert lineage.staleness.elsewhere(definition.key, model)


def test_the_state_table_says_what_is_out_of_date_and_why(lineage):
    lineage.versions[f"scan {TESTS[0]}"] = "changed annotation"
    assert lineage.run("scan", TESTS[0]).success
    lineage.code["scores"] = "2"
    lineage.instance.add_dynamic_partitions("test_patient", ["UKCHLL007"])
    table = state_table(lineage.staleness, without=("softmax",)).set_index("asset")
    assert "softmax" not in table.index
    assert table.loc["scores", ["partitions", "made", "stale", "missing", "elsewhere"]].tolist() == [3, 2, 2, 1, 0]
    assert table.loc["scores", "why"] == "has a new code version (2); scan has a new data version (1)"
    assert table.loc["trained_model", "why"] == ""
