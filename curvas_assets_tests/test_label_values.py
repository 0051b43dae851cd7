"""Claims proved here.

- Any values of label files become classes 1 … n, and classes the values; ignored values become background, others are told.
- Files with the values 1, 2, 5, 7 and 9 go all the way: intake, training labels, scores, ensembles' and downloaded label maps,
  and those are annotations of the same study again.
- Merged organs are one class, and come back as their first value.
- The intake's record says what was merged and ignored in the files, and is the same whatever else the study ignores; a value that
  nobody named is refused with a remedy.
- Reordering an annotation keeps its values, also those beyond 255.
"""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvas_assets.cohort import bring_onto_scan, read_annotations, read_patient
from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.errors import PatientError, SegmentationError
from curvas_assets.geometry import Grid
from curvas_assets.label_values import UNKNOWN, LabelValues
from curvas_assets.orchestration.operations.download import download
from curvas_assets.segmentation import TrainingScans
from curvas_assets.stages import cohort, ensemble, table
from curvas_assets.stages.patients import fetch_files
from curvas_assets.storage.layout import Cell
from curvas_assets.storage.softmax import SoftmaxWriter
from curvas_assets.study import Study
from curvas_assets_tests.cohort.volumes import reorder
from curvas_assets_tests.stages.test_stages import NONE, PATIENT, SHAPE, SPACING, STUDY, Bench

TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64)


def _study(organs: dict, **changes) -> Study:
    raw = STUDY.model_dump(mode="json")
    raw["checks"]["volume_ml"] = {}
    return Study.model_validate(raw | {"organs": organs, **changes})


ODD = _study({"spleen": 9, "kidney": 2, "liver": 5, "aorta": 7, "pancreas": 1})
MERGED = _study({"liver": [300, 4], "kidney": [2, 7]}, ignored_labels=[255, 9])


@st.composite
def values_and_files(draw):
    """Organs with some values each, values to ignore, and a file that holds these and others."""
    numbers = draw(st.lists(st.integers(1, 65535), min_size=2, max_size=12, unique=True))
    organs = {f"organ{k}": tuple(numbers[k::3]) for k in range(min(3, len(numbers) - 1))}
    organs = dict(sorted(organs.items(), key=lambda item: min(item[1])))
    ignored = draw(st.sampled_from(["rest", (), (numbers[-1] % 65535 + 1,)]))
    if ignored != "rest" and any(set(ignored) & set(of) for of in organs.values()):
        ignored = ()
    present = draw(st.lists(st.sampled_from([0, 0, *numbers, 8, -3, 70000]), min_size=1, max_size=40))
    return LabelValues(organs, ignored), np.array(present).reshape(-1, 1, 1)


@given(values_and_files())
def test_values_become_classes_by_the_definition(case):
    values, file = case
    read = values.read(file)
    told = {one for one, number in read.voxels.items() if number}
    assert read.voxels == {v: int((file == v).sum()) for v in np.unique(file).tolist() if v}
    for value, found in zip(file.ravel().tolist(), read.classes.ravel().tolist(), strict=True):
        of = [c for c, several in enumerate(values.organs.values(), 1) if value in several]
        expected = of[0] if of else 0 if not value or values.ignored == "rest" or value in values.ignored else UNKNOWN
        assert values.class_of(value) == expected
        if not values.unknown(told):
            assert found == expected
    assert values.unknown(told) == [one for one in told if values.class_of(one) == UNKNOWN]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("values", [ODD.label_values, STUDY.label_values], ids=["odd", "plain"])
def test_classes_and_values_are_each_others_inverse_in_every_type(values, dtype):
    classes = np.arange(len(values.organs) + 1, dtype=np.uint8).reshape(1, 1, -1)
    written = values.written(classes)
    assert written.dtype == values.value_type == np.uint8
    np.testing.assert_array_equal(values.read(written.astype(dtype)).classes, classes)


def _upload(bench: Bench) -> Path:
    made = write_cohort(
        bench.folder / "cohort", patients=[PATIENT], shape=SHAPE, spacing_mm=SPACING, seed=3,
        organs=bench.study.labels, label_values=bench.study.label_values,
    )  # fmt: skip
    for path in made[0].iterdir():
        bench.objects.upload(bench.layout.patient_file(PATIENT, path.name), path)
    return made[0]


def _values(path: Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj).transpose(2, 1, 0)


def _predict_as_drawn(bench: Bench, model: str, labels: np.ndarray, grid: Grid) -> None:
    """A prediction that is sure of one annotator's label map."""
    softmax = np.moveaxis(np.eye(len(bench.study.class_names), dtype=np.float32)[labels], -1, 0)
    with SoftmaxWriter(
        bench.objects, bench.layout.softmax(PATIENT, model), grid, class_names=bench.study.class_names, provenance={}
    ) as writer:
        writer.write(0, softmax)


def test_odd_values_go_in_and_come_back(tmp_path):
    assert ODD.labels == {"spleen": 5, "kidney": 2, "liver": 3, "aorta": 4, "pancreas": 1}
    assert ODD.class_names == ["background", "pancreas", "kidney", "liver", "aorta", "spleen"]
    bench = Bench(tmp_path, ODD)
    made = _upload(bench)
    files = [annotator.file for annotator in ODD.annotators]
    drawn = np.stack([_values(made / file) for file in files])
    assert set(np.unique(drawn).tolist()) == {0, 1, 2, 5, 7, 9}
    bench.make(cohort.take_in, cohort.SCAN_CHECKS, [PATIENT])
    scans = bench.of(table.SCAN, [PATIENT])
    record = scans[PATIENT].record()
    counted = record["facts"]["label_values"]["anno1"]
    assert counted["organs"]["spleen"] == {"9": int((drawn[0] == 9).sum())}
    assert counted["ignored"] == {}

    folder = tmp_path / "fetched" / PATIENT
    fetch_files(bench.objects, record, folder, [ODD.image, *files])
    classes = read_annotations(folder, ODD)[...]
    np.testing.assert_array_equal(ODD.label_values.written(classes), drawn)
    assert set(np.unique(classes).tolist()) == {0, 1, 2, 3, 4, 5}
    training = TrainingScans(ODD, tmp_path / "scans")
    for r, file in enumerate(files):
        seen = training.labels(PATIENT, (folder / ODD.image,), folder / file)
        np.testing.assert_array_equal(seen[0, : SHAPE[0]], classes[r])

    grid = Grid(SHAPE, np.asarray(record["affine"]))
    for model in ODD.models:
        _predict_as_drawn(bench, str(model), classes[0], grid)
    members = bench.of(table.SOFTMAX, [str(Cell(str(model), PATIENT)) for model in ODD.models])
    cells = [str(Cell(str(one), PATIENT)) for one in ODD.ensemble_ids]
    bench.make(ensemble.build_ensembles, ensemble.CHECKS, cells, softmax=members, variant_softmax=NONE)
    bench.score_uncalibrated(members, bench.of(table.ENSEMBLE_SOFTMAX, cells), scans)
    scores = bench.of(table.SCORES, [PATIENT])[PATIENT].table("scores")
    own = scores[(scores["metric"] == "dice_annotator") & (scores["annotator"] == ODD.annotators[0].name)]
    assert dict.fromkeys(ODD.organs, 1.0) == own.groupby("organ")["value"].min().to_dict()

    for what, predictor in (("ensembles", "ensemble_all"), ("predictions", str(ODD.models[0]))):
        download(bench.objects, bench.layout, ODD, what, [PATIENT], [predictor], tmp_path / "down", lambda _: None)
        back = tmp_path / "down" / what / PATIENT / predictor / "labels.nii.gz"
        np.testing.assert_array_equal(_values(back), drawn[0])
        shutil.copyfile(back, folder / files[1])
        np.testing.assert_array_equal(read_annotations(folder, ODD)[1, : SHAPE[0]], classes[0])


@pytest.fixture
def merged(tmp_path) -> tuple[Path, np.ndarray]:
    """A patient whose kidneys have a value each, with ignored values; and its classes."""
    made = write_cohort(
        tmp_path, patients=[PATIENT], shape=SHAPE, spacing_mm=SPACING, seed=3, organs={"liver": 2, "kidney": 1}
    )[0]
    classes = []
    for annotator in MERGED.annotators:
        image = nib.Nifti1Image.from_filename(made / annotator.file)
        own = np.asarray(image.dataobj)
        values = np.array([0, 2, 300], np.int32)[own]
        values[: own.shape[0] // 2][own[: own.shape[0] // 2] == 1] = 7
        values[0, 0, :3] = 255
        nib.save(nib.Nifti1Image(values, image.affine), made / annotator.file)
        classes.append(own.transpose(2, 1, 0))
    return made, np.stack(classes)


def test_merged_organs_are_one_class_and_the_record_counts_them(merged):
    folder, classes = merged
    assert MERGED.labels == {"liver": 2, "kidney": 1}
    found = read_patient(folder, MERGED)
    np.testing.assert_array_equal(found.annotations, classes)
    assert found.warnings == ()
    values = _values(folder / MERGED.annotators[0].file)
    assert found.facts["label_values"]["anno1"] == {
        "organs": {
            "kidney": {"2": int((values == 2).sum()), "7": int((values == 7).sum())},
            "liver": {"300": int((values == 300).sum())},
        },
        "ignored": {"255": 3},
    }
    assert (values == 7).any()
    written = MERGED.label_values.written(classes)
    assert written.dtype == np.uint16
    np.testing.assert_array_equal(written, np.array([0, 2, 300])[classes])


def test_a_value_that_nobody_named_is_refused_with_a_remedy(merged, tmp_path):
    folder, classes = merged
    strict = MERGED.model_copy(update={"ignored_labels": (9,)})
    for name in ("label_values", "labels"):
        strict.__dict__.pop(name, None)
    with pytest.raises(
        PatientError, match=r"label 255 \(allowed: 0 background, 2 kidney, 4 liver, .*9 ignored"
    ) as told:
        read_patient(folder, strict)
    assert "ignored_labels" in told.value.remedy
    with pytest.raises(SegmentationError, match="label 255, which is no organ"):
        TrainingScans(strict, tmp_path / "s").labels(
            PATIENT, (folder / strict.image,), folder / strict.annotators[0].file
        )
    rest = _study({"kidney": [2, 7]}, ignored_labels="rest")
    np.testing.assert_array_equal(read_patient(folder, rest).annotations, classes == 1)


def test_a_record_tells_ignored_values_of_the_files_and_not_of_the_study(tmp_path):
    """Else whatever is made from a record would be made again when the study ignores one more value."""
    folder = write_cohort(tmp_path / "plain", patients=[PATIENT], shape=SHAPE, spacing_mm=SPACING, seed=3)[0]
    plain = read_patient(folder, STUDY)
    more = STUDY.model_copy(update={"ignored_labels": (255, 9)})
    more.__dict__.pop("label_values", None)
    assert more.label_values.ignored == (255, 9)
    seen = read_patient(folder, more)
    assert seen.facts == plain.facts
    np.testing.assert_array_equal(seen.annotations, plain.annotations)
    path = folder / STUDY.annotators[1].file
    image = nib.Nifti1Image.from_filename(path)
    values = np.asarray(image.dataobj).copy()
    drawn = values.transpose(2, 1, 0).copy()
    values[0, 0, :4], drawn[:4, 0, 0] = 9, 0
    nib.save(nib.Nifti1Image(values, image.affine), path)
    seen = read_patient(folder, more)
    assert seen.facts["label_values"]["anno2"]["ignored"] == {"9": 4}
    np.testing.assert_array_equal(seen.annotations[1], drawn)


def test_a_map_of_ignored_values_alone_is_blank(merged):
    folder, _ = merged
    path = folder / MERGED.annotators[1].file
    image = nib.Nifti1Image.from_filename(path)
    nib.save(nib.Nifti1Image(np.full(image.shape, 255, np.uint8), image.affine), path)
    found = read_patient(folder, MERGED)
    assert found.not_annotated == ("anno2",)
    assert "is blank but for ignored labels: not annotated" in found.exclusions[0]["reason"]


def test_a_reordered_annotation_keeps_its_values(merged):
    folder, classes = merged
    path = folder / MERGED.annotators[0].file
    before = _values(path)
    reorder(path, "RAS")
    found = read_patient(folder, MERGED)
    np.testing.assert_array_equal(found.annotations, classes)
    assert bring_onto_scan(path, found.grid)
    np.testing.assert_array_equal(_values(path), before)
    np.testing.assert_array_equal(read_annotations(folder, MERGED), classes)
