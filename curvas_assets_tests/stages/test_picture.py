"""Claims proved here, without Dagster, on a phantom's files in a bucket.

- The patients shown are the typical one, then the worst of each primary metric and outliers, each once and not too many.
- A worst case shows the slice with the most voxels that no annotator drew so; contours, segmentation, entropy and mutual information
  are those of that slice, and its caption says why the patient is shown.
- Without ensembles the first model's own probabilities are shown. A patient whose volumes are gone is left out, with a warning.
- Organ volumes are the intake's; an annotator who did not annotate has no row.
- Entropy is SciPy's.
"""

import numpy as np
import pandas as pd
import pytest
import scipy

from curvas_assets.report.pictures import annotators_on_slice, most_wrong_slice, uncertainty_on_slice
from curvas_assets.report.words import Words
from curvas_assets.stages import cohort, ensemble, table
from curvas_assets.stages.picture import MOST_CASES, Case, anatomy, choose_cases, entropy, pictures
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.maps import download_map
from curvas_assets_tests.report.studies import make_scores, make_study
from curvas_assets_tests.stages.test_stages import MODELS, NONE, PATIENT, STUDY, Bench


@pytest.fixture
def bench(tmp_path) -> Bench:
    """A patient taken in, predicted by every model, with the general ensemble."""
    bench = Bench(tmp_path)
    bench.upload([PATIENT])
    bench.make(cohort.take_in, cohort.SCAN_CHECKS, [PATIENT])
    for model in MODELS:
        bench.predict(model, PATIENT)
    members = bench.of(table.SOFTMAX, [str(Cell(model, PATIENT)) for model in MODELS])
    bench.make(
        ensemble.build_ensembles,
        ensemble.CHECKS,
        [str(Cell("ensemble_all", PATIENT))],
        softmax=members,
        variant_softmax=NONE,
    )
    return bench


def test_a_worst_case_shows_its_worst_slice_with_maps_and_reason(bench, tmp_path):
    import nibabel as nib

    case = Case(PATIENT, "worst", "dice")
    (view,), organs = pictures(bench.tools, [case], "ensemble_all", tmp_path / "shown")
    maps = {}
    for name in ("labels", "entropy", "mutual_information"):
        path = download_map(
            bench.objects, bench.layout.ensemble_map(PATIENT, "ensemble_all", name), tmp_path / f"{name}.nii.gz"
        )
        maps[name] = np.asarray(nib.Nifti1Image.from_filename(path).dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(view.segmentation, maps["labels"][view.z])
    np.testing.assert_allclose(view.predictive_entropy, maps["entropy"][view.z])
    np.testing.assert_allclose(view.mutual_information, maps["mutual_information"][view.z])
    assert len(view.annotations) == len(view.annotators) == 3
    files = [bench.folder / "cohort" / PATIENT / one.file for one in STUDY.annotators]
    drawn = np.stack([np.asarray(nib.Nifti1Image.from_filename(path).dataobj).transpose(2, 1, 0) for path in files])
    np.testing.assert_array_equal(view.annotations, drawn[:, view.z])
    wrong = np.all(drawn != maps["labels"], axis=0).sum(axis=(1, 2))
    assert wrong[view.z] == wrong.max() > 0
    for chart in (
        annotators_on_slice(view, STUDY.annotator_names, Words("en")),
        uncertainty_on_slice(view, STUDY.class_names, Words("en")),
    ):
        assert chart.caption.startswith("Worst case: the worst patient of ensemble_all in “Dice”")
    assert uncertainty_on_slice(view, STUDY.class_names, Words("fr")).caption.startswith("Pire cas")
    assert organs is not None
    assert organs.source == "ensemble_all"


def test_without_ensembles_a_models_own_probabilities_are_shown(bench, tmp_path):
    model = MODELS[0]
    (view,), _ = pictures(bench.tools, [Case(PATIENT, "typical")], model, tmp_path / "shown")
    probabilities = (
        bench.of(table.SOFTMAX, [f"{model}|{PATIENT}"])[f"{model}|{PATIENT}"].volume().slab(view.z, view.z + 1)
    )
    np.testing.assert_array_equal(view.segmentation, probabilities[:, 0].argmax(axis=0))
    np.testing.assert_allclose(view.predictive_entropy, scipy.stats.entropy(probabilities[:, 0], axis=0), atol=1e-5)
    assert view.mutual_information is None


def test_a_patient_whose_volumes_are_gone_is_left_out_with_a_warning(bench, tmp_path):
    cases = [Case("PHANTOM008", "typical"), Case(PATIENT, "outlier", "ece")]
    slices, organs = pictures(bench.tools, cases, "ensemble_all", tmp_path / "shown")
    assert [view.patient for view in slices] == [PATIENT]
    assert organs is not None
    assert bench.warnings[0].startswith("no picture of PHANTOM008")
    nothing, none = pictures(bench.tools, cases[:1], "ensemble_all", tmp_path / "shown")
    assert (nothing, none) == ([], None)


def test_organ_volumes_are_the_intakes(bench):
    found = anatomy(STUDY, bench.objects, bench.layout, [PATIENT, "PHANTOM008"])
    assert set(found["patient"]) == {PATIENT}
    assert len(found) == len(STUDY.organs) * len(STUDY.annotators)
    scans = bench.of(table.SCAN, [PATIENT])
    volumes = scans[PATIENT].record()["facts"]["organ_volumes_ml"]
    for row in found.itertuples():
        assert row.volume_ml == volumes[row.organ][row.annotator]


def scores_with(values: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Dice and ECE of the general ensemble, by patient."""
    rows = [
        (patient, "ensemble_all", "general", metric, value)
        for patient, both in values.items()
        for metric, value in zip(("dice", "ece"), both, strict=True)
    ]
    return pd.DataFrame(rows, columns=["patient", "predictor", "family", "metric", "value"])


def test_the_patients_shown_are_typical_worst_and_outliers():
    study = make_study(patients=10)
    ids = study.scored_patients()
    values = {one: (0.90 + 0.002 * index, 0.01 + 0.0001 * index) for index, one in enumerate(ids)}
    values[ids[0]], values[ids[1]], values[ids[2]] = (0.2, 0.01), (0.3, 0.01), (0.95, 0.5)
    cases = choose_cases(study, scores_with(values))
    assert cases[0].kind == "typical"
    assert cases[0].patient not in ids[:3]
    assert [(case.patient, case.kind, case.metric) for case in cases[1:]] == [
        (ids[0], "worst", "dice"),
        (ids[2], "worst", "ece"),
        (ids[1], "outlier", "dice"),
    ]
    for index in range(3, 10):
        values[ids[index]] = (0.9, 0.01)
    assert len(choose_cases(study, scores_with(values))) <= 1 + MOST_CASES


@pytest.mark.parametrize("patients", [1, 2, 3])
def test_of_few_patients_each_is_shown_once(patients):
    study = make_study(patients=patients)
    cases = choose_cases(study, make_scores(study))
    assert len({case.patient for case in cases}) == len(cases) <= patients
    assert cases


def test_the_slice_with_the_most_labels_that_nobody_drew():
    annotations = np.zeros((2, 3, 2, 2), np.uint8)
    annotations[1, 1] = 1
    labels = np.zeros((3, 2, 2), np.uint8)
    labels[1] = 1  # one annotator drew it so
    assert most_wrong_slice(annotations, labels) == 1  # no wrong voxel: the most disputed slice
    labels[2, 0, 0] = 2
    assert most_wrong_slice(annotations, labels) == 2


def test_entropy_is_scipys():
    p = np.random.default_rng(0).dirichlet(np.ones(4), (5, 6)).transpose(2, 0, 1).astype(np.float32)
    p[:, 0, 0] = (1, 0, 0, 0)
    np.testing.assert_allclose(entropy(p), scipy.stats.entropy(p, axis=0), atol=1e-6)
    assert entropy(p)[0, 0] == 0
