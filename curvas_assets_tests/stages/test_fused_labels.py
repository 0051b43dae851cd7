"""Claims proved here, of one line in a study file, `training_labels`, without Dagster.

- From files in a bucket to scores: each of the four ways to fuse annotators gets a dataset, trains, predicts and is scored by
  the stages as one annotator does. Metadata and models say how labels were fused.
- A patient whom one annotator did not annotate is in every fused dataset, of those who did, and the check names the patient; one
  whom a single annotator drew is used as drawn; in that annotator's own dataset such a patient is left out, as before.
- A dataset that was downloaded can be uploaded as what it was, and as nothing else.
- The order of annotators in the study file changes no dataset.
- A training label that is added makes nothing of the others stale. An annotator who is added, renamed or given another file
  changes the record of every scan, and so makes every fused dataset stale.
- A name that is a fusion's is an annotator's if an annotator has it.
- What a step needs, and what a forecast foretells, grows with fused labels, and is as it was without.
"""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks.prediction import artefacts, tools_of
from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.errors import SegmentationError
from curvas_assets.orchestration.execution import StageNeeds
from curvas_assets.orchestration.operations.upload_artefacts import upload_preprocessing
from curvas_assets.predictors import FUSIONS
from curvas_assets.stages import cohort, ensemble, predict, prepare, score, table, train
from curvas_assets.stages.checks import StepChecks
from curvas_assets.stages.sizes import StudySizes
from curvas_assets.stages.stored import Stored
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage.layout import Cell
from curvas_assets.study import Study, load_study
from curvas_assets_tests.segmentation.conftest import tiny_study
from curvas_assets_tests.stages.test_stages import NONE, no_calibrators

PATIENTS = ["PHANTOM001", "PHANTOM002", "PHANTOM003", "PHANTOM007"]
TEST = "PHANTOM007"
LABELS = ("anno1", "anno2", *FUSIONS)


def study_of(*labels: str, **changed) -> Study:
    raw = tiny_study(epochs=1).model_dump(mode="json") | {"training_labels": labels, "seeds": [7]}
    raw["prediction"]["mirroring"] = False
    return Study.model_validate(raw | changed)


STUDY = study_of(*LABELS)


def blank(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Toolkit:
    """A bucket with four patients: anno2 did not annotate the second, and anno3 alone annotated the third."""
    folder = tmp_path_factory.mktemp("study")
    write_cohort(folder / "cohort", patients=PATIENTS, shape=(30, 56, 56), spacing_mm=(8, 6, 6), seed=5)
    blank(folder / "cohort/PHANTOM002/annotation_2.nii.gz")
    for number in (1, 2):
        blank(folder / f"cohort/PHANTOM003/annotation_{number}.nii.gz")
    made = tools_of(STUDY, folder)
    for path in sorted((folder / "cohort").rglob("*.nii.gz")):
        made.objects.upload(made.layout.patient_file(path.parent.name, path.name), path)
    return made


def run(stage, checks, *given, **inputs) -> tuple[dict[str, Stored], StepChecks]:
    looked = StepChecks(*checks)
    outcomes = dict(stage(*given, looked, **inputs))
    assert all(isinstance(one, Stored) for one in outcomes.values()), outcomes
    return outcomes, looked


@pytest.fixture(scope="module")
def scans(tools):
    return run(cohort.take_in, cohort.SCAN_CHECKS, tools, PATIENTS)[0]


@pytest.fixture(scope="module")
def datasets(tools, scans):
    return prepared(tools, LABELS)


def prepared(tools, labels) -> tuple[dict[str, Stored], StepChecks]:
    """The datasets of these labels, from their training cases."""
    taken = artefacts(tools, table.SCAN, STUDY.training_patients())
    run(prepare.select_training_cases, prepare.CASES_CHECKS, tools, labels, scan=taken)
    cases = artefacts(tools, table.TRAINING_CASES, labels)
    return run(prepare.prepare_datasets, prepare.CHECKS, tools, labels, training_cases=cases)


def test_datasets_are_of_those_who_annotated_and_say_so(tools, datasets, tmp_path):
    stored, checks = datasets
    found = checks["training_patients_are_complete"].found
    partly = ["PHANTOM002 is of anno1, anno3 alone", "PHANTOM003 is of anno3 alone"]
    assert found == {
        "anno1": ["did not annotate PHANTOM003"],
        "anno2": ["did not annotate PHANTOM002", "did not annotate PHANTOM003"],
        **dict.fromkeys(FUSIONS, partly),
    }
    assert [stored[label].metadata["cases"] for label in LABELS] == [2, 1, 3, 3, 3, 3]
    assert stored["majority"].metadata["labels"] == "the label of most of anno1, anno2, anno3"
    assert stored["soft"].metadata["of fewer annotators"] == "; ".join(partly)
    assert "labels" not in stored["anno1"].metadata
    assert stored["random"].data_version != stored["soft"].data_version
    alone = artefacts(tools, table.PREPROCESSED_DATASET, ["staple"])["staple"].folder(tmp_path / "staple")
    assert '"PHANTOM003": {\n    "annotators": [\n     "anno3"\n    ]' in (alone / "dataset.json").read_text()


def test_each_fused_label_trains_predicts_and_is_scored(tools, scans, datasets):
    run(cohort.select_test_scans, cohort.TEST_SCAN_CHECKS, tools, [TEST], scan=artefacts(tools, table.SCAN, [TEST]))
    models = [str(model) for model in STUDY.models]
    given = artefacts(tools, table.PREPROCESSED_DATASET, LABELS)
    trained, _ = run(train.train_models, train.CHECKS, tools, models, preprocessed_dataset=given)
    how = {name: one.metadata.get("labels") for name, one in trained.items()}
    assert how["anno1_init7_foldall"] is None
    assert how["soft_init7_foldall"] == "the mean of the one-hot labels of anno1, anno2, anno3"
    cells = [str(Cell(model, TEST)) for model in models]
    run(
        predict.predict,
        predict.CHECKS,
        tools,
        cells,
        trained_model=artefacts(tools, table.TRAINED_MODEL, models),
        test_scan=artefacts(tools, table.TEST_SCAN, [TEST]),
    )
    softmax = artefacts(tools, table.SOFTMAX, cells)
    means = [str(Cell(str(one), TEST)) for one in STUDY.ensemble_ids]
    run(ensemble.build_ensembles, ensemble.CHECKS, tools, means, softmax=softmax, variant_softmax=NONE)
    scored, _ = run(
        score.score_patients,
        score.CHECKS,
        tools,
        [TEST],
        softmax=softmax,
        variant_softmax=NONE,
        ensemble_softmax=artefacts(tools, table.ENSEMBLE_SOFTMAX, means),
        calibrators=no_calibrators(tools.objects),
        scan=artefacts(tools, table.SCAN, [TEST]),
    )
    assert scored[TEST].metadata["predictors"] == len(STUDY.predictors)
    merged, _ = score.merge_scores(tools, artefacts(tools, table.SCORES, [TEST]))
    dice = merged[(merged["metric"] == "dice") & (merged["organ"] == "liver")].set_index("predictor")["value"]
    assert set(dice.index) == set(STUDY.predictors)
    fused = [str(model) for model in STUDY.models if STUDY.family(str(model)) == "fused"]
    assert [STUDY.fusion(name.partition("_")[0]) for name in fused] == list(FUSIONS)
    assert dice[fused].notna().all()


def test_a_dataset_that_was_downloaded_is_uploaded_as_what_it_was(tools, datasets, tmp_path):
    for rule in ("soft", "staple"):
        folder = artefacts(tools, table.PREPROCESSED_DATASET, [rule])[rule].folder(tmp_path / rule)
        uploaded = upload_preprocessing(tools.objects, tools.layout, STUDY, rule, folder, "a copy")
        assert uploaded.data_version == datasets[0][rule].data_version
        assert uploaded.metadata["labels"] == f"fused of several annotators: {rule}"
    with pytest.raises(SegmentationError, match="fuses annotators by 'soft', and random is the fusion random"):
        upload_preprocessing(tools.objects, tools.layout, STUDY, "random", tmp_path / "soft", "a copy")


def test_the_order_of_annotators_in_the_study_file_changes_no_dataset(tools, scans, datasets):
    turned = study_of(*LABELS, annotators=[one.model_dump() for one in reversed(STUDY.annotators)])
    made, _ = prepared(replace(tools, study=turned), FUSIONS)
    for rule in FUSIONS:
        assert made[rule].data_version == datasets[0][rule].data_version


def test_an_added_label_makes_nothing_stale_and_a_changed_annotator_every_fused_dataset(tools, scans, tmp_path):
    plain = study_of()
    cases = table.TRAINING_CASES
    for row in (table.SCAN, table.TEST_SCAN, cases, table.PREPROCESSED_DATASET, table.TRAINED_MODEL, table.SOFTMAX):
        assert row.version(STUDY) == row.version(plain) == row.version(study_of("soft", "anno3"))
    files = [one.model_dump() for one in STUDY.annotators]
    renamed = [{**files[0], "name": "senior"}, *files[1:]]
    fewer = files[:2]
    swapped = [{**files[0], "file": files[1]["file"]}, {**files[1], "file": files[0]["file"]}, files[2]]
    for annotators in (renamed, fewer, swapped):
        changed = study_of("majority", annotators=annotators)
        assert table.SCAN.version(changed) != table.SCAN.version(STUDY)
        again, _ = run(cohort.take_in, cohort.SCAN_CHECKS, replace(tools, study=changed), ["PHANTOM001"])
        assert again["PHANTOM001"].data_version != scans["PHANTOM001"].data_version
    run(cohort.take_in, cohort.SCAN_CHECKS, tools, ["PHANTOM001"])  # as it was, for other tests


def test_an_annotator_may_have_the_name_of_a_fusion_that_is_not_asked_for():
    raw = load_study("phantom").model_dump(mode="json")
    raw["annotators"][0]["name"] = "soft"
    study = Study.model_validate(raw)
    assert study.fusion("soft") is None
    assert study.family("soft_init112233_foldall") == "individual"
    assert study.family("ensemble_all") == "general"
    assert [study.fusion(rule) for rule in ("majority", "anno2", "nobody")] == ["majority", None, None]


def test_needs_and_forecasts_grow_with_fused_labels_alone():
    large = STUDY.plans.model_copy(update={"patch_size": (128, 128, 128)})

    def needs(*labels: str) -> StageNeeds:
        training = STUDY.training.model_copy(update={"loader_workers": 12})
        return StageNeeds.of(study_of(*labels).model_copy(update={"training": training, "plans": large}))

    assert needs("anno1", "anno2") == needs()
    fused = needs("anno1", "majority")
    assert fused == needs()
    assert needs("random").dataset.memory_gib == needs("soft").dataset.memory_gib == fused.dataset.memory_gib + 4
    assert needs("random").training == needs().training
    assert needs("soft").training.memory_gib > needs().training.memory_gib
    sizes = StudySizes(STUDY, {}, {})
    row = table.PREPROCESSED_DATASET
    plain, kept = sizes.of(row, "anno1"), sizes.of(row, "soft")
    assert plain == StudySizes(study_of(), {}, {}).of(row, "anno1")
    assert kept.work == sizes.of(row, "staple").work > plain.work
    assert kept.read == plain.read
    assert kept.stored > sizes.of(row, "staple").stored == plain.stored
