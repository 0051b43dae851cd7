"""Claims proved here, with instant, dummy computations, of a study whose cheap ensembles take eight flips and a snapshot of one model.

- A new patient passes the stages in order; variants are predicted after the models and before the ensembles that take them.
- A model that was trained again reaches its variants through its own volumes, then the ensembles that have it or them as members,
  and no other. A changed image reaches all.
- At night, variants are predicted only if predictions may be made; a patient whose variants are of the old image is held up.
- What was made before this asset existed is not out of date because of it; with variants to take, it is.
- Who names a model for `make_missing` means its variants and the ensembles that they are members of; for `redo`, its variants; who
  names an ensemble means the variants that it is the mean of. A variant can be named; `all` leaves variants out.
- Under cross-validation a patient has variants only of models that never saw it.
- A study without cheap ensembles has no row of variants in the state of the study, nor in a forecast; one with them has.
- An orphan of a variant belongs to its model, and its objects are its own.
- A training asks for the memory of the weights that it keeps for snapshots; scoring for that of the variants that it reads.
"""

import dagster as dg
import pytest

from curvas_assets.orchestration import nightly
from curvas_assets.orchestration.asset_keys import keys_of
from curvas_assets.orchestration.dagster_internals import get_input_data_version_tag, get_input_event_pointer_tag
from curvas_assets.orchestration.execution import WEIGHTS_GIB, StageNeeds
from curvas_assets.orchestration.following import due_for_patients
from curvas_assets.orchestration.forecasting import Capacity, forecast_study
from curvas_assets.orchestration.operations.leftovers import Orphan, chosen, find_orphans
from curvas_assets.orchestration.operations.selection import choose_predictors
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.scope import Scope, columns_of, named_columns
from curvas_assets.orchestration.state import state_table
from curvas_assets.segmentation.snapshots import most_kept
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import Study, load_study
from curvas_assets_tests.orchestration import lineage as dummy
from curvas_assets_tests.orchestration.lineage import DummyLineage, copied

RAW = load_study("phantom").model_dump(mode="json")
ONE, OTHER = "PHANTOM007", "PHANTOM008"
MODEL, SECOND = "anno1_init1_foldall", "anno2_init1_foldall"
FLIPS, SNAPSHOTS = "ensemble_flips-anno1-1", "ensemble_snapshots-anno1-1"


def study_of(**changes) -> Study:
    raw = RAW | {
        "annotators": RAW["annotators"][:2],
        "seeds": [1],
        "sets": {"train": [1, 2], "test": [7, 8]},
        "groups": {},
        "in_distribution_group": None,
        "training": RAW["training"] | {"mirroring": True, "snapshots": 1},
        "cheap_ensembles": {"flips": [MODEL], "snapshots": [MODEL]},
    }
    return Study.model_validate(raw | changes)


STUDY = study_of()
VARIANTS = [f"{MODEL}_flip{number}" for number in range(8)] + [f"{MODEL}_snapshot1"]


@pytest.fixture(scope="module")
def recorded():
    with dg.DagsterInstance.ephemeral() as instance:
        made = DummyLineage(study=STUDY, instance=instance)
        made.register(ONE)
        made.record_all()
        yield made


@pytest.fixture
def lineage(recorded):
    with copied(recorded.instance) as instance:
        yield DummyLineage(study=STUDY, instance=instance)


def _work_off(lineage) -> list[tuple[str, list[str]]]:
    """Run what is due, asset by asset, until nothing is: what was due of each."""
    ran = []
    while due := lineage.due():
        asset, partitions = next(iter(due.items()))
        ran.append((asset, partitions))
        for one in partitions:
            assert lineage.run(asset, one).success
        assert len(ran) < 20
    return ran


@pytest.mark.filterwarnings("ignore:Non-compliant tag keys")  # Dagster's own tags of a cell's dimensions
def test_a_new_patients_variants_come_between_models_and_ensembles(lineage):
    for asset in ("patient", "test_patient"):
        lineage.instance.add_dynamic_partitions(asset, [OTHER])
    asked = []
    while requests := list(due_for_patients(STUDY, lineage.staleness, [ONE, OTHER], {OTHER: "a"})):
        asked.append([request.job_name for request in requests])
        for request in requests:
            job = lineage.definitions.resolve_job_def(request.job_name)
            job.execute_in_process(instance=lineage.instance, tags=request.tags)
        assert len(asked) < 10
    assert asked == [
        ["take_in_scans"],
        ["select_test_scans"],
        ["predict"],
        ["predict_variants", "build_ensembles"],  # that of the models needs no variant
        ["build_ensembles"],
        ["score_patients", "preview_patients"],
    ]
    assert {key for asset, key in lineage.made if asset == "variant_softmax"} == {f"{v}|{OTHER}" for v in VARIANTS}
    assert lineage.due() == {}


def test_a_model_that_was_trained_again_reaches_its_variants_through_its_own_volume(lineage):
    lineage.versions |= {MODEL: "again", f"{MODEL}|{ONE}": "again"}
    assert lineage.run("trained_model", MODEL).success
    ran = _work_off(lineage)
    assert ran[0] == ("softmax", [f"{MODEL}|{ONE}"])
    assert ("variant_softmax", [f"{variant}|{ONE}" for variant in VARIANTS]) in ran
    assert ("ensemble_softmax", [f"{name}|{ONE}" for name in ("ensemble_all", SNAPSHOTS)]) in ran
    lineage.versions |= {f"{SECOND}|{ONE}": "again"}
    assert lineage.run("softmax", f"{SECOND}|{ONE}").success
    assert lineage.due() == {"ensemble_softmax": [f"ensemble_all|{ONE}"], "scores": [ONE], "viewer_preview": [ONE]}


def test_variants_that_changed_reach_their_ensembles_and_the_scores(lineage):
    lineage.versions |= {f"{variant}|{ONE}": "again" for variant in VARIANTS[:8]}
    for variant in VARIANTS[:8]:
        assert lineage.run("variant_softmax", f"{variant}|{ONE}").success
    assert lineage.due() == {"ensemble_softmax": [f"{FLIPS}|{ONE}"], "scores": [ONE]}


def _night(lineage, *, predict: bool) -> list[str]:
    told = []

    def run(stage, scope):
        for key in keys_of(stage):
            for partition in scope.due(lineage.staleness, key):
                assert lineage.run(key.path[-1], str(partition)).success
        return []

    patients = nightly.concerned(lineage.staleness, predict=predict)
    nightly.work(lambda: lineage.staleness, run, patients, told.append, predict=predict)
    return told


def test_at_night_variants_are_predicted_only_if_predictions_may_be_made(lineage):
    lineage.change_files(ONE, "b")
    lineage.versions[ONE] = "another image"
    (told,) = _night(lineage, predict=False)
    assert f"predictions of {ONE} are missing or of another image" in told
    assert {asset for asset, _ in lineage.made} == {"scan", "test_scan"}
    for model in (MODEL, SECOND):  # somebody predicts the models, and forgets the variants
        assert lineage.run("softmax", f"{model}|{ONE}").success
    lineage.made.clear()
    (told,) = _night(lineage, predict=False)
    assert f"predictions of {ONE} are missing or of another image" in told
    assert lineage.made == []
    assert _night(lineage, predict=True) == []
    assert [asset for asset, _ in lineage.made].count("variant_softmax") == len(VARIANTS)
    assert lineage.due() == {}


def _without_tags_of_variants(monkeypatch):
    """Events as a version without `variant_softmax` wrote them."""
    provenance_tags = dummy.provenance_tags
    gone = {tag(dg.AssetKey("variant_softmax")) for tag in (get_input_data_version_tag, get_input_event_pointer_tag)}
    monkeypatch.setattr(
        dummy,
        "provenance_tags",
        lambda *given: {name: value for name, value in provenance_tags(*given).items() if name not in gone},
    )


def test_what_was_made_before_there_were_variants_is_out_of_date_only_where_there_are_some(monkeypatch):
    _without_tags_of_variants(monkeypatch)
    with dg.DagsterInstance.ephemeral() as instance:
        plain = DummyLineage(study=study_of(cheap_ensembles={}), instance=instance)
        plain.register(ONE)
        plain.record_all()
        assert plain.due() == {}
        due = DummyLineage(study=STUDY, instance=instance).due()
        cells = [f"{name}|{ONE}" for name in (FLIPS, SNAPSHOTS)]
        assert due == {
            "variant_softmax": [f"{variant}|{ONE}" for variant in VARIANTS],
            "ensemble_softmax": cells,
            "scores": [ONE],
        }


def test_naming_a_model_means_its_variants_and_naming_an_ensemble_its_members(lineage):
    partitions = Partitions.of(STUDY)
    assert choose_predictors(STUDY, ["all"]) == STUDY.predictors
    assert choose_predictors(STUDY, [VARIANTS[2], MODEL]) == [MODEL, VARIANTS[2]]
    assert named_columns(STUDY, [MODEL]) == {MODEL, "anno1", *VARIANTS}
    assert named_columns(STUDY, [FLIPS]) == {FLIPS, *VARIANTS[:8]}
    assert named_columns(STUDY, [SECOND, "ensemble_all"]) == {SECOND, "anno2", "ensemble_all"}
    assert columns_of(STUDY, [MODEL]) == {MODEL, "anno1", *VARIANTS, "ensemble_all", FLIPS, SNAPSHOTS}
    assert columns_of(STUDY, [VARIANTS[2]]) == {VARIANTS[2], FLIPS}
    scope = Scope(frozenset({ONE}), columns_of(STUDY, [FLIPS]))
    assert scope.includes(partitions.patient_by_variant, f"{VARIANTS[0]}|{ONE}")
    assert not scope.includes(partitions.patient_by_variant, f"{VARIANTS[8]}|{ONE}")
    assert not scope.includes(partitions.patient_by_variant, f"{VARIANTS[0]}|{OTHER}")


def test_under_cross_validation_a_patient_has_variants_of_models_that_never_saw_it():
    study = study_of(sets={"train": [1, 2, 3]}, folds=[0, 1, 2], cheap_ensembles={"flips": ["all"]})
    assert study.cross_validated
    with dg.DagsterInstance.ephemeral() as instance:
        lineage = DummyLineage(study=study, instance=instance)
        for axis in ("patient", "test_patient"):
            instance.add_dynamic_partitions(axis, study.scored_patients())
        cells = lineage.staleness.partitions(dg.AssetKey("variant_softmax"))
        assert set(cells) == {f"{v}|{p}" for p in study.scored_patients() for v in study.variants_of(p)}
        assert len(cells) == 3 * 2 * 8  # one fold's models of two annotators for each patient
        lineage.record_all()
        assert lineage.due() == {}


def test_a_study_without_cheap_ensembles_has_no_row_of_variants():
    capacity = Capacity(gpus=0, gpu_steps=1, runs=1)
    for study, shown in ((study_of(cheap_ensembles={}), False), (STUDY, True)):
        with dg.DagsterInstance.ephemeral() as instance:
            lineage = DummyLineage(study=study, instance=instance)
            lineage.register(ONE)
            assert ("variant_softmax" in set(state_table(lineage.staleness)["asset"])) is shown
            table = forecast_study(study, lineage.staleness, Scope(), capacity)
            assert ("variant_softmax" in set(table["stage"])) is shown
            if shown:
                row = table.set_index("stage").loc["variant_softmax"]
                assert row["to_come"] == len(VARIANTS)
                assert row["hours"] > 0


def test_an_orphan_of_a_variant_belongs_to_its_model(tmp_path):
    objects, layout = FolderObjects(tmp_path), Layout()
    key = f"{layout.softmax(ONE, VARIANTS[0])}/zarr.json"
    objects.put(key, b"{}")
    assert find_orphans(objects, layout, Partitions.of(STUDY)) == []
    (orphan,) = find_orphans(objects, layout, Partitions.of(study_of(cheap_ensembles={})))
    assert (orphan.asset, orphan.partition) == ("variant_softmax", f"{VARIANTS[0]}|{ONE}")
    assert [item.key for item in orphan.objects] == [key]
    for name in (MODEL, VARIANTS[0], ONE, "anno1"):
        assert chosen([Orphan("variant_softmax", f"{VARIANTS[0]}|{ONE}", ())], [name])


def test_memory_grows_with_the_weights_that_a_training_keeps_and_the_variants_that_scoring_reads():
    plain = StageNeeds.of(study_of(cheap_ensembles={}, training=RAW["training"]))
    some = study_of(cheap_ensembles={}, training=RAW["training"] | {"snapshots": 6})
    kept = most_kept(6) * WEIGHTS_GIB["ExperimentPlanner"]
    assert kept <= StageNeeds.of(some).training.memory_gib - plain.training.memory_gib < kept + 1
    many = study_of(cheap_ensembles={"flips": ["all"]}, seeds=[1, 2, 3])
    few = study_of(cheap_ensembles={}, seeds=[1, 2, 3])
    assert StageNeeds.of(many).scoring.memory_gib > StageNeeds.of(few).scoring.memory_gib + 3
