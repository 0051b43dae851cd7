"""Claims proved here: a finished study whose file is edited makes exactly what is new, on Dagster's own records.

What each partition holds follows from what it is made from, as it does in a store: by the stages' own rules for what passes
from scans to datasets and predictions, and otherwise from the code version and the contents of all inputs.

- A seed: its models, their predictions, the ensembles that they join, and scores. No scan, no dataset, no other model, no other
  prediction, no ensemble with the members that it had, calibrated or not.
- An annotator: the files of everybody are read again; after that the annotator's dataset, models and predictions are made, and
  what they join. A dataset of fused labels, and those with shared statistics of intensities, are made again by right.
- A test patient: that patient. A validation patient: that patient, and what is fitted. A training patient: everything that
  learns, and the forecast says so before. A changed annotation of one annotator: that annotator's models alone.
- A value to ignore: scans are read again, and nothing else is made of patients whose files do not hold it.
- An organ that networks must learn: every model. What is scored of the organs that they know: scores alone.
- A seed or an annotator that leaves: only ensembles that have lost members, and scores; what was theirs is an orphan that `about`
  lists, and comes back without being made again. A patient who leaves is an orphan where something was predicted or scored.
- With 65 patients, 3 annotators and 3 seeds, too, and Dagster's own resolver finds everything up to date in the end.
- A forecast of a study that grows counts what is new; one that an earlier version of the platform made trains nothing again.
- Before anything is made, an ensemble says which members are new and which are gone.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from curvas_assets.orchestration.asset_keys import key_of
from curvas_assets.orchestration.cells import cell_event, provenance_tags
from curvas_assets.orchestration.forecasting import coming_of_study, told_of_trainings
from curvas_assets.orchestration.operations.about import about_orphans
from curvas_assets.orchestration.scope import Scope
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages.prepare import training_case
from curvas_assets.stages.stored import Stored
from curvas_assets.stages.table import (
    CALIBRATORS,
    ENSEMBLE_SOFTMAX,
    SCAN,
    TEST_SCAN,
    TRAINING_CASES,
    VOLUME_INTERVALS,
)
from curvas_assets.study import Study, load_study
from curvas_assets_tests.orchestration.lineage import CELLS, DummyLineage, copied

PHANTOM = load_study("phantom").model_dump(mode="json")
FOURTH = {"name": "anno4", "file": "annotation_4.nii.gz"}
MADE_BY_NETWORKS = ("preprocessed_dataset", "trained_model", "softmax", "variant_softmax")


def digest(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass
class Grown:
    """A study on records of its own, edited and finished any number of times.

    `files` holds the contents of files that are others than at first, by patient and name.
    """

    study: Study
    instance: dg.DagsterInstance
    files: dict[tuple[str, str], str] = field(default_factory=dict)
    contents: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self):
        self.lineage = DummyLineage(instance=self.instance).as_in(self.study)
        self.graph = self.lineage.definitions.resolve_asset_graph()
        for name, belongs in (("patient", lambda one: True), ("test_patient", self.study.is_predicted)):
            named = sorted({one for members in self.study.sets.values() for one in members if belongs(one)})
            self.instance.add_dynamic_partitions(name, [one for one in named if one not in self.study.exclusions])

    def edited(self, **changes) -> "Grown":
        raw = self.study.model_dump(mode="json") | changes
        return Grown(Study.model_validate(raw), self.instance, self.files, self.contents)

    @property
    def staleness(self) -> Staleness:
        return Staleness(self.graph, self.instance)

    def due(self) -> dict[str, list[str]]:
        """Asset → the partitions that are missing or out of date, by the platform's own rules."""
        staleness = self.staleness
        due = {row.name: [str(one) for one in staleness.due(key_of(row))] for row in CELLS}
        return {asset: partitions for asset, partitions in due.items() if partitions}

    def finish(self, upto: str = "") -> dict[str, list[str]]:
        """Asset → the partitions that `study` makes, stage after stage; then nothing is left, unless it ends with one asset."""
        made: dict[str, list[str]] = {}
        scope = Scope.of_study(self.study)
        graph = self.graph
        for row in CELLS:
            staleness, key = self.staleness, key_of(row)
            due = [str(one) for one in scope.due(staleness, key)]
            assert [one for one in due if not staleness.ready(key, one)] == []
            tags = provenance_tags(self.instance, graph.assets_def_for_key(key), "a run")
            for one in due:
                above = {
                    str(parent): [
                        self.contents.get((parent.to_user_string(), str(p))) for p in staleness.inputs(key, one, parent)
                    ]
                    for parent in sorted(graph.get(key).parent_keys)
                }
                self.contents[row.name, one] = content = self.content(row, one, above)
                event = cell_event(
                    graph.assets_def_for_key(key), one, Stored("", content), self.lineage._told(row.name, one), tags
                )
                self.instance.report_runless_asset_event(event)
            if due:
                made[row.name] = due
            if row.name == upto:
                return made
        assert self.due() == {}
        return made

    def record(self, patient: str) -> dict:
        """What the intake writes of a patient."""
        names = [self.study.image, *(one.file for one in self.study.annotators)]
        files = [{"name": name, "key": f"data/{patient}/{name}", "sha256": self.file(patient, name)} for name in names]
        drawn = [one.name for one in self.study.annotators]
        facts = {"shape": [2, 3, 4], "organs": self.study.organs, "annotators": drawn}
        return {"patient": patient, "files": files, "affine": [], "facts": facts, "not_annotated": []}

    def file(self, patient: str, name: str) -> str:
        return self.files.get((patient, name), digest(patient, name))

    def content(self, row, one: str, above: dict) -> str:
        if row is SCAN:
            return digest(self.record(one))
        if row is TEST_SCAN:
            return digest([file for file in self.record(one)["files"] if file["name"] == self.study.image])
        if row is TRAINING_CASES:
            return digest({p: training_case(self.study, one, self.record(p)) for p in self.study.training_patients()})
        version = "" if row is ENSEMBLE_SOFTMAX else row.version(self.study)
        return digest(row.name, one, version, above)

    def orphans(self) -> set[tuple[str, str]]:
        table = about_orphans(self.instance, self.graph)
        return set(table.itertuples(index=False, name=None))

    def out_of_date(self, *, of: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        """What Dagster itself, in its UI, does not find up to date."""
        resolver = CachingStaleStatusResolver(self.instance, self.graph, LoadingContextForTest(self.instance))
        return [
            (row.name, one)
            for row in CELLS
            if row.name in of or not of
            for one in map(str, self.staleness.partitions(key_of(row)))
            if resolver.get_status(key_of(row), one).value != "FRESH"
        ]

    def coming(self) -> dict[str, list[str]]:
        return coming_of_study(self.study, self.staleness, Scope.of_study(self.study))


def small(**changes) -> dict:
    """Three annotators, two seeds, two training patients, one validation patient, two test patients."""
    return (
        PHANTOM
        | {
            "groups": {},
            "in_distribution_group": None,
            "sets": {"train": [1, 2], "validation": [6], "test": [7, 8]},
            "seeds": [1, 2],
        }
        | changes
    )


def finish_at_first(**changes) -> Grown:
    grown = Grown(Study.model_validate(small(**changes)), dg.DagsterInstance.ephemeral())
    made = grown.finish()
    assert made["trained_model"] == [str(one) for one in grown.study.models]
    return grown


@pytest.fixture(scope="module")
def usual() -> Iterator[Grown]:
    """The study that most tests begin with."""
    grown = finish_at_first()
    with grown.instance:
        yield grown


@pytest.fixture
def finished(usual):
    with ExitStack() as open_ones:

        def begin(**changes) -> Grown:
            if changes:
                grown = finish_at_first(**changes)
            else:
                grown = Grown(usual.study, copied(usual.instance), dict(usual.files), dict(usual.contents))
            open_ones.enter_context(grown.instance)
            return grown

        yield begin


PREDICTED = ("PHANTOM006", "PHANTOM007", "PHANTOM008")


def cells(columns, patients=PREDICTED) -> list[str]:
    return [f"{one}|{patient}" for one in columns for patient in patients]


def new_models(before: Grown, after: Grown) -> list[str]:
    return [str(one) for one in after.study.models if one not in before.study.models]


CHEAP = {
    "training": PHANTOM["training"] | {"snapshots": 1, "mirroring": True},
    "cheap_ensembles": {"snapshots": ["anno1_init1_foldall"], "flips": ["anno1_init2_foldall"]},
    "ensembles": {"all": ["anno1", "anno2", "anno3"], "anno1": ["anno1"]},
}


@pytest.mark.parametrize("changes", [{}, CHEAP], ids=["models", "with cheap ensembles"])
def test_a_seed_makes_its_own_models_and_predictions(finished, changes):
    before = finished(**changes)
    after = before.edited(seeds=[1, 2, 3])
    new = new_models(before, after)
    assert len(new) == 3
    joined = [str(one) for one in after.study.ensemble_ids if {str(m) for m in after.study.members(one)} & set(new)]
    assert after.finish() == {
        "trained_model": new,
        "softmax": cells(new),
        "ensemble_softmax": cells(joined),
        "scores": list(PREDICTED),
        "viewer_preview": list(PREDICTED),  # they show the ensemble of all
    }
    if changes:
        assert len(joined) == 2 < len(after.study.ensemble_ids)
    assert after.out_of_date() == []


def test_an_annotator_makes_what_is_of_that_annotator(finished):
    before = finished()
    after = before.edited(annotators=[*PHANTOM["annotators"], FOURTH])
    everybody = ["PHANTOM001", "PHANTOM002", *PREDICTED]
    new = new_models(before, after)
    made = after.finish()
    assert made == {
        "scan": everybody,
        "test_scan": list(PREDICTED),
        "training_cases": ["anno1", "anno2", "anno3", "anno4"],
        "preprocessed_dataset": ["anno4"],
        "trained_model": new,
        "softmax": cells(new),
        "ensemble_softmax": cells(["ensemble_anno4", "ensemble_all"]),
        "scores": list(PREDICTED),
        "viewer_preview": list(PREDICTED),
    }
    assert {one.partition("_")[0] for one in new} == {"anno4"}
    assert after.out_of_date() == []
    assert after.orphans() == set()


def test_an_annotator_changes_what_is_learned_from_all_of_them(finished):
    before = finished(training_labels=["anno1", "majority"])
    after = before.edited(annotators=[*PHANTOM["annotators"], FOURTH])
    coming = after.coming()
    fused = ["majority_init1_foldall", "majority_init2_foldall"]
    assert (coming["preprocessed_dataset"], coming["trained_model"]) == (["majority"], fused)
    (sentence,) = told_of_trainings(after.staleness, coming)
    assert sentence.startswith("2 models that exist will be trained again")
    assert "annotators" in sentence
    made = after.finish()
    assert made["preprocessed_dataset"] == ["majority"]
    assert made["trained_model"] == fused
    shared = after.edited(plans=PHANTOM["plans"] | {"shared_intensity_statistics": True}, training_labels=["anno1"])
    shared.finish()
    fewer = shared.edited(annotators=PHANTOM["annotators"])
    assert fewer.coming()["trained_model"] == ["anno1_init1_foldall", "anno1_init2_foldall"]
    assert fewer.finish()["trained_model"] == ["anno1_init1_foldall", "anno1_init2_foldall"]


def test_a_changed_annotation_of_one_annotator_reaches_that_annotators_models(finished):
    grown = finished()
    grown.files["PHANTOM001", "annotation_2.nii.gz"] = "drawn again"
    grown.files["PHANTOM007", "annotation_2.nii.gz"] = "drawn again"
    grown.lineage.change_files("PHANTOM001", "1")
    grown.lineage.change_files("PHANTOM007", "1")
    mine = [str(one) for one in grown.study.models if one.annotator == "anno2"]
    made = grown.finish()
    assert (made["scan"], made["test_scan"]) == (["PHANTOM001", "PHANTOM007"], ["PHANTOM007"])
    assert (made["preprocessed_dataset"], made["trained_model"], made["softmax"]) == (["anno2"], mine, cells(mine))
    assert made["ensemble_softmax"] == cells(["ensemble_anno2", "ensemble_all"])


def test_patients_make_what_they_are_needed_for(finished):
    before = finished()
    study = before.study
    of_all = [str(one) for one in study.models]
    ensembles = [str(one) for one in study.ensemble_ids]

    tested = before.edited(sets={"train": [1, 2], "validation": [6], "test": [7, 8, 9]})
    assert tested.finish() == {
        "scan": ["PHANTOM009"],
        "test_scan": ["PHANTOM009"],
        "softmax": cells(of_all, ["PHANTOM009"]),
        "ensemble_softmax": cells(ensembles, ["PHANTOM009"]),
        "scores": ["PHANTOM009"],
        "viewer_preview": ["PHANTOM009"],
    }

    fitted = tested.edited(sets={"train": [1, 2], "validation": [5, 6], "test": [7, 8, 9]})
    assert fitted.finish() == {
        "scan": ["PHANTOM005"],
        "test_scan": ["PHANTOM005"],
        "softmax": cells(of_all, ["PHANTOM005"]),
        "ensemble_softmax": cells(ensembles, ["PHANTOM005"]),
        "scores": ["PHANTOM005"],
        "viewer_preview": ["PHANTOM005"],
    }
    assert told_of_trainings(fitted.staleness, fitted.coming()) == []

    learned = fitted.edited(sets={"train": [1, 2, 3], "validation": [5, 6], "test": [7, 8, 9]})
    coming = learned.coming()
    (sentence,) = told_of_trainings(learned.staleness, coming)
    assert sentence.startswith(
        "6 models that exist will be trained again, and all that is made from them, because the study"
    )
    assert "other training patients" in sentence
    assert coming["trained_model"] == sorted(of_all)
    made = learned.finish()
    assert (made["scan"], made["trained_model"]) == (["PHANTOM003"], of_all)


def test_what_is_fitted_is_fitted_again_for_a_validation_patient_and_not_for_a_seed():
    def versions(**changes) -> tuple[str, str]:
        study = Study.model_validate(small(calibrated={"isotonic": ["anno1_init1_foldall"]}, **changes))
        return CALIBRATORS.version(study), VOLUME_INTERVALS.version(study)

    calibrated, intervals = versions()
    assert versions(seeds=[1, 2, 3])[0] == calibrated
    more = versions(sets={"train": [1, 2], "validation": [5, 6], "test": [7, 8]})
    assert more[0] != calibrated
    assert more[1] != intervals


def test_an_organ_to_learn_trains_again_and_one_to_score_does_not(finished):
    before = finished()
    first, *_ = PHANTOM["organs"]
    one = before.edited(evaluation=PHANTOM["evaluation"] | {"organs": [first]})
    assert one.finish() == {"scores": list(PREDICTED)}
    scored = one.edited(evaluation=PHANTOM["evaluation"])
    assert scored.coming().keys() == {"scores"} | {one for one in scored.coming() if one not in {r.name for r in CELLS}}
    assert scored.finish() == {"scores": list(PREDICTED)}
    assert scored.out_of_date() == []
    organs = {name: label for name, label in PHANTOM["organs"].items() if label < len(PHANTOM["organs"])}
    fewer = scored.edited(organs=organs)
    (sentence,) = told_of_trainings(fewer.staleness, fewer.coming())
    assert "organs" in sentence
    made = fewer.finish()
    assert made["trained_model"] == [str(one) for one in fewer.study.models]
    assert made["softmax"] == cells(fewer.study.models)


def test_a_value_to_ignore_reads_scans_again_and_makes_nothing_else(finished):
    """Whose files hold the value was refused before, and is a patient who comes: no class of another one changes."""
    before = finished(organs={name: 10 * label for name, label in PHANTOM["organs"].items()})
    after = before.edited(ignored_labels=[255])
    assert after.finish() == {"scan": ["PHANTOM001", "PHANTOM002", *PREDICTED]}
    assert after.out_of_date() == []
    assert ENSEMBLE_SOFTMAX.version(Study.model_validate(small(ignored_labels=[255]))) == ENSEMBLE_SOFTMAX.version(
        Study.model_validate(small())
    )


def test_who_leaves_is_an_orphan_and_comes_back_as_it_was(finished):
    whole = finished()
    study = whole.study

    one_seed = whole.edited(seeds=[1])
    gone = [str(one) for one in study.models if one.seed == 2]
    # with one seed, the ensembles of single annotators are models, so they leave, too
    left = ["ensemble_anno1", "ensemble_anno2", "ensemble_anno3"]
    of_fewer = {
        "ensemble_softmax": cells(["ensemble_all"]),
        "scores": list(PREDICTED),
        "viewer_preview": list(PREDICTED),
    }
    assert one_seed.finish() == of_fewer
    assert one_seed.orphans() == {
        *(("trained_model", one) for one in gone),
        *(("softmax", cell) for cell in cells(gone)),
        *(("ensemble_softmax", cell) for cell in cells(left)),
    }

    back = one_seed.edited(seeds=[1, 2])
    assert back.finish() == of_fewer
    assert back.orphans() == set()

    two = back.edited(annotators=PHANTOM["annotators"][:2])
    made = two.finish()
    assert {asset: one for asset, one in made.items() if asset in MADE_BY_NETWORKS} == {}
    assert made["ensemble_softmax"] == cells(["ensemble_all"])
    gone = [str(one) for one in study.models if one.annotator == "anno3"]
    assert two.orphans() == {
        ("training_cases", "anno3"),
        ("preprocessed_dataset", "anno3"),
        *(("trained_model", one) for one in gone),
        *(("softmax", cell) for cell in cells(gone)),
        *(("ensemble_softmax", cell) for cell in cells(["ensemble_anno3"])),
    }
    assert two.out_of_date() == []


def test_a_patient_who_leaves_is_an_orphan_of_what_was_predicted(finished):
    whole = finished()
    fewer = whole.edited(sets={"train": [1, 2], "validation": [6], "test": [7]})
    assert fewer.due() == {}
    assert fewer.orphans() == {
        ("test_scan", "PHANTOM008"),
        ("scores", "PHANTOM008"),
        ("viewer_preview", "PHANTOM008"),
        *(("softmax", cell) for cell in cells(whole.study.models, ["PHANTOM008"])),
        *(("ensemble_softmax", cell) for cell in cells(whole.study.ensemble_ids, ["PHANTOM008"])),
    }  # the scan stays the patient's, of whom the study makes nothing
    excluded = whole.edited(exclusions={"PHANTOM008": "consent withdrawn"})
    assert ("scan", "PHANTOM008") in excluded.orphans()


def test_an_ensemble_says_who_joined_and_who_left(finished):
    whole = finished()
    other = whole.edited(seeds=[1, 3])
    status = other.staleness.status(key_of(ENSEMBLE_SOFTMAX), "ensemble_anno1|PHANTOM007")
    assert status.reasons == ("has new members: anno1_init3_foldall", "has lost members: anno1_init2_foldall")
    assert status.due


def test_a_forecast_of_a_study_that_grows_counts_what_is_new(finished):
    before = finished()
    grown = before.edited(annotators=[*PHANTOM["annotators"], FOURTH])
    for patient in ("PHANTOM001", "PHANTOM007"):  # files that were uploaded since
        grown.lineage.change_files(patient, "with a fourth annotation")
    coming, new = grown.coming(), new_models(before, grown)
    assert len(coming["scan"]) == 5
    assert coming["preprocessed_dataset"] == ["anno4"]
    assert coming["trained_model"] == new
    assert set(coming["softmax"]) == set(cells(new))
    assert told_of_trainings(grown.staleness, coming) == []

    # Files that changed while the study file did not may be images and annotations of any kind.
    before.lineage.change_files("PHANTOM001", "something")
    coming = before.edited().coming()
    assert coming["trained_model"] == sorted(str(one) for one in before.study.models)
    (sentence,) = told_of_trainings(before.staleness, coming)
    assert "files of training patients" in sentence


def test_a_store_of_the_earlier_version_trains_nothing_again(finished):
    """Datasets were made of scans then, without training cases; ensembles knew the members of all in their version."""
    grown = finished()
    instance, graph = grown.instance, grown.graph
    definition = graph.assets_def_for_key(dg.AssetKey("preprocessed_dataset"))
    instance.wipe_assets([dg.AssetKey("training_cases")])
    tags = provenance_tags(instance, graph.assets_def_for_key(dg.AssetKey("training_cases")), "an earlier run")
    tags["dagster/code_version"] = definition.code_versions_by_key[definition.key]
    for label in grown.study.label_names:
        stored = Stored("", grown.contents["preprocessed_dataset", label])
        instance.report_runless_asset_event(cell_event(definition, label, stored, {}, tags))
    assert set(grown.due()) == {"training_cases", "preprocessed_dataset"}
    coming = grown.coming()
    assert "trained_model" not in coming
    assert grown.finish() == dict.fromkeys(("training_cases", "preprocessed_dataset"), grown.study.label_names)
    assert grown.out_of_date() == []


def test_of_65_patients_and_9_models_only_what_is_new_is_made():
    raw = load_study("curvas").model_dump(mode="json")
    with dg.DagsterInstance.ephemeral() as instance:
        whole = Grown(Study.model_validate(raw), instance)
        predicted = whole.study.predicted_patients()  # 65 test patients and 5 to fit on
        everything = whole.finish()
        assert (len(everything["trained_model"]), len(everything["softmax"])) == (9, 9 * len(predicted))
        assert len(everything["softmax"]) == 630

        fewer = whole.edited(seeds=raw["seeds"][:2])
        assert set(fewer.due()) == {"ensemble_softmax", "scores"}
        assert len(fewer.orphans()) == 3 * (1 + len(predicted))

        grown = whole.edited(annotators=[*raw["annotators"], FOURTH])
        new = new_models(whole, grown)
        made = grown.finish(upto="trained_model")
        assert (made["preprocessed_dataset"], made["trained_model"]) == (["anno4"], new)
        assert grown.out_of_date(of=("preprocessed_dataset", "trained_model")) == []
        due = grown.due()
        assert set(due) == {"softmax", "ensemble_softmax", "scores", "viewer_preview"}
        assert sorted(due["softmax"]) == sorted(cells(new, predicted))
        assert sorted(due["ensemble_softmax"]) == sorted(cells(["ensemble_anno4", "ensemble_all"], predicted))
        assert due["scores"] == predicted
