"""Claims proved here.

- Every public function either takes what it is given or refuses it by an error of the platform's own, never by a raw one.
- Paths come as text or path objects, sizes as lists, tuples or arrays, label maps of any whole type, and give the same result.
- A path that does not exist is told in our own words; nothing is written beside a refusal.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from curvas_assets.cohort import body_region, read_annotations, read_patient
from curvas_assets.cohort.phantom import write_cohort
from curvas_assets.ensembling import average
from curvas_assets.errors import (
    CurvasError,
    EnsembleError,
    PatientError,
    ScoringError,
    SegmentationError,
    StatisticsError,
    StudyError,
)
from curvas_assets.scoring import PatientReference, score
from curvas_assets.segmentation import Predictor, adopt_dataset, adopt_model, prepare_dataset, train_model
from curvas_assets.statistics import (
    annotator_agreement,
    best_predictors,
    compare_all_families,
    compare_families,
    dice_against_entropy,
    failure_over_patients,
    leaderboard_wide,
    non_inferiority,
    out_of_distribution,
    paired_scores,
    projected_precision,
    rank_among_teams,
    read_published_scores,
    reduce_scores,
    summarise,
    variance_components,
)
from curvas_assets.storage.labels import PackedLabels
from curvas_assets.storage.nnunet_exchange import export_nnunet_prediction, import_nnunet_prediction
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import read_softmax, write_softmax
from curvas_assets.study import ModelId, load_study


def shown(value: object) -> str:
    """A value in a test's name: without addresses, so that two processes agree."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


SHAPE = (6, 8, 9)
SOFTMAX = np.full((2, *SHAPE), 0.5, np.float32)
DRAWN = np.zeros((2, *SHAPE), np.uint8)
DRAWN[:, 2:5, 2:5, 2:6] = 1
GIVEN = {"softmax": SOFTMAX, "annotations": DRAWN, "spacing_mm": (3.0, 1.0, 1.0), "organs": {"a": 1}}
STUDY = load_study("phantom")
MODEL = STUDY.models[0]
COHORT = {"shape": (6, 24, 24), "spacing_mm": (10.0, 8.0, 8.0)}

PATHS = [
    None,
    3,
    1.5,
    "",
    " ",
    b"bytes",
    "no/such/place",
    Path("no/such/place"),
    "a\0b",
    "~no-such-user/x",
    "x" * 5000,
    [],
    {},
    ["x"],
]
NOTHING = [None, 3, "text", object(), [], {}, np.nan, np.zeros(3), torch.zeros(2)]
SOFTMAXES = [*NOTHING, SOFTMAX * 3, SOFTMAX - 3, SOFTMAX * np.nan, SOFTMAX[0], DRAWN, torch.full((2, *SHAPE), np.inf)]
SPACINGS = [None, 1.0, "111", (1, 1), (1, 1, 0), (1, 1, -1), (1, np.nan, 1), (1, np.inf, 1), ["1", "1", "1"], {1, 2, 3}, object(),
            np.eye(3), (True,) * 3, (1j, 1, 1)]  # fmt: skip
NUMBERS = [-1, np.nan, np.inf, -np.inf, "1", [1], (1, 2), {}, object(), True, 1j, 10**400, np.zeros(2)]


@pytest.fixture(scope="module")
def patient(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    return write_cohort(str(folder), patients="PHANTOM001", **COHORT)[0]


def _never_raw(call, *values, **named):
    """The call's result, or the error by which it was refused in our own words; a raw error fails the test."""
    try:
        return call(*values, **named)
    except CurvasError as error:
        told = error
    assert all(text.strip() for text in (told.attempted, told.subject, told.found, told.remedy))
    return told


# Scoring -------------------------------------------------------------------------------------------------------------

REFUSED_BY_SCORING = {
    "softmax": SOFTMAXES,
    "annotations": [*NOTHING, DRAWN[0], DRAWN + 0.5, DRAWN.astype(float) * np.nan, -DRAWN.astype(int), DRAWN.astype(int) * 256,
                    DRAWN * 7, DRAWN.astype(complex), DRAWN.astype(object), DRAWN[:0], DRAWN[:, :0], DRAWN[..., :4],
                    np.repeat(DRAWN, 40, axis=0), [DRAWN[0], DRAWN[0, :2]], PackedLabels(2, (5, 8, 9)), SOFTMAX],
    "spacing_mm": SPACINGS,
    "organs": [None, ["a"], "a", 1, {}, {"a": 2}, {"a": 0}, {"a": "1"}, {"a": 1.0}, {"a": True}, {1: 1}, {"a": 1, "b": 1},
               {"a": None}, {"a": 1, "b": 2}, pd.DataFrame()],
    "region": ["body", 3, np.ones(SHAPE, bool), torch.ones(SHAPE), (slice(0, 6, 2), slice(None), slice(None)), (slice(None),) * 2,
               (slice(0.0, 3.0), slice(None), slice(None)), (slice(4, 2), slice(None), slice(None)), [(0, 3), (0, 3)],
               [(0, 3), (0, 3), (0, "3")], [(9, 99)] * 3, (slice(6, 0, -1), slice(None), slice(None)), [1, 2, 3], np.zeros((3, 2)),
               {}, [True, True, True], [(0, True)] * 3],
    "members": [3, "ab", SOFTMAX, torch.from_numpy(SOFTMAX), {"m": SOFTMAX}, [SOFTMAX[0]], [SOFTMAX, None], [SOFTMAX - 3],
                np.zeros((0, 3)), object(), [SOFTMAX[:, :3]], [np.stack([SOFTMAX[0] * 0.4, SOFTMAX[1] * 1.6])]],
    "ece_bins": [*NUMBERS, 0, 10.0, None, 10**9],
    "ace_bins": [*NUMBERS, 0, 10.0, None, 10**9],
    "tolerance_mm": [*NUMBERS, None],
    "entropy_threshold": NUMBERS,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "i"), [(name, i) for name, odd in REFUSED_BY_SCORING.items() for i in range(len(odd))]
)
def test_scoring_refuses(name, i):
    with pytest.raises(ScoringError):
        score(**GIVEN | {name: REFUSED_BY_SCORING[name][i]})


TAKEN_BY_SCORING = {
    "softmax": [torch.from_numpy(SOFTMAX), SOFTMAX.tolist(), SOFTMAX.astype(np.float16), torch.from_numpy(SOFTMAX).bfloat16()],
    "annotations": [list(DRAWN), DRAWN.tolist(), torch.from_numpy(DRAWN), list(torch.from_numpy(DRAWN)), DRAWN.astype(bool),
                    *(DRAWN.astype(kind) for kind in (np.int8, np.int64, np.float32, np.float64, np.uint16))],
    "spacing_mm": [[3, 1, 1], np.array([3.0, 1, 1]), torch.tensor([3.0, 1, 1]), (np.float32(3), 1, np.int64(1))],
    "organs": [{"a": np.int64(1)}, {"a": np.uint8(1)}],
    "region": [None, (slice(None),) * 3, [slice(0, n) for n in SHAPE], [(0, n) for n in SHAPE], [[0, n] for n in SHAPE],
               np.array([(0, n) for n in SHAPE]), (slice(0, 99), slice(None, None, 1), slice(np.int64(0), None))],
    "ece_bins": [np.int64(50), np.array(50), torch.tensor(50)],
    "ace_bins": [np.uint8(20)],
    "tolerance_mm": [1, np.float32(1), torch.tensor(1.0)],
    "entropy_threshold": [None],
    "members": [None, []],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "i"), [(name, i) for name, some in TAKEN_BY_SCORING.items() for i in range(len(some))]
)
def test_scoring_takes_what_people_pass(name, i):
    pd.testing.assert_frame_equal(score(**GIVEN | {name: TAKEN_BY_SCORING[name][i]}), score(**GIVEN))


def test_scoring_takes_extreme_numbers():
    table = score(**GIVEN, tolerance_mm=1e6, entropy_threshold=1e300, ece_bins=1, ace_bins=10_000)
    assert table.loc[table.metric == "nsd", "value"].notna().all()
    assert table.loc[table.metric == "predictive_entropy_above", "note"].ne("").all()


def test_members_may_be_an_array():
    members = [SOFTMAX, SOFTMAX]
    table = score(**GIVEN, members=members)
    for same in (tuple(members), np.stack(members), torch.from_numpy(np.stack(members)), iter(members)):
        pd.testing.assert_frame_equal(score(**GIVEN, members=same), table)


def test_label_maps_are_not_copied_where_they_fit():
    packed = PackedLabels(2, SHAPE)
    packed.put(0, 0, DRAWN[0])
    for annotations in (packed, DRAWN):
        assert PatientReference(annotations, (3, 1, 1), organs={"a": 1}).annotations is annotations
    annotations = PatientReference(torch.from_numpy(DRAWN).long(), (3, 1, 1), organs={"a": 1}).annotations
    assert annotations.dtype == np.uint8


@pytest.mark.parametrize(
    "odd", [value for value in SOFTMAXES if not isinstance(value, list)], ids=lambda v: type(v).__name__
)
def test_average_refuses(odd):
    assert isinstance(_never_raw(average, odd), EnsembleError)
    assert isinstance(_never_raw(average, [SOFTMAX, odd]), EnsembleError)


def test_average_takes_arrays_and_tensors():
    mean = average(np.stack([SOFTMAX, SOFTMAX])).mean
    np.testing.assert_array_equal(
        average([torch.from_numpy(SOFTMAX).bfloat16(), SOFTMAX.astype(np.float16)]).mean, mean
    )


# Cohort and study ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", PATHS, ids=shown)
def test_no_path_is_told(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doors = {
        "read_patient": lambda: read_patient(odd, STUDY),
        "read_annotations": lambda: read_annotations(odd, STUDY),
        "load_study": lambda: load_study(odd),
        "study": lambda: read_patient("x", odd),
        "read_softmax": lambda: read_softmax(odd),
        "open": lambda: Predictor(STUDY).open(odd, "P"),
        "load": lambda: Predictor(STUDY).load(odd),
        "train_model": lambda: train_model(STUDY, MODEL, odd, tmp_path / "m"),
        "adopt_model": lambda: adopt_model(STUDY, MODEL, odd, tmp_path / "m"),
        "adopt_dataset": lambda: adopt_dataset(STUDY, "anno1", odd, tmp_path / "d"),
        "prepare_dataset": lambda: prepare_dataset(STUDY, "anno1", {"P": (odd, odd)}, tmp_path / "d"),
        "pairs": lambda: prepare_dataset(STUDY, "anno1", {"P": odd}, tmp_path / "d"),
        "import": lambda: import_nnunet_prediction(
            odd, odd, FolderObjects(tmp_path / "s"), "k", class_names=["b", "a"], shape=SHAPE, affine=np.eye(4)
        ),
    }
    for name, call in doors.items():
        with pytest.raises(CurvasError) as told:
            call()
        assert told.value.remedy, name
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("odd", PATHS, ids=shown)
def test_no_folder_to_write_to_is_told(odd, tmp_path, monkeypatch, patient):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    write_softmax("v.zip", SOFTMAX)
    for target in (odd, "file", "file/below"):
        _never_raw(write_cohort, target, patients=1, **COHORT)
        _never_raw(write_softmax, target, SOFTMAX)
        _never_raw(export_nnunet_prediction, read_softmax("v.zip"), target, "case")
        _never_raw(adopt_model, STUDY, MODEL, patient, target)
    for target in ("file/below", 3):
        _never_raw(prepare_dataset, STUDY, "anno1", {"P": (patient / "image.nii.gz",) * 2}, target)


def test_folders_and_damaged_files_in_place_of_files_are_told(tmp_path):
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(b"\x1f\x8bnothing")
    for path in (tmp_path, damaged):
        with pytest.raises(CurvasError):
            read_softmax(path)
        with pytest.raises(StudyError):
            load_study(path)
        with pytest.raises(SegmentationError):
            Predictor(STUDY).open(str(path), "P")
        with pytest.raises(SegmentationError):
            prepare_dataset(STUDY, "anno1", {"P": (path, path)}, tmp_path / "d")


def test_text_is_a_path(patient, tmp_path):
    one, other = read_patient(patient, STUDY), read_patient(str(patient), "phantom")
    np.testing.assert_array_equal(one.scan, other.scan)
    np.testing.assert_array_equal(read_annotations(str(patient), "phantom")[...], one.annotations)
    assert Predictor("phantom").open(str(patient / "image.nii.gz"), "P").grid.shape == one.scan.shape
    (tmp_path / "of.yaml").write_text(
        (Path(load_study.__code__.co_filename).parent / "studies/phantom.yaml").read_text()
    )
    assert load_study(str(tmp_path / "of.yaml")) == load_study(tmp_path / "of.yaml") == load_study(STUDY) == STUDY
    write_softmax(str(tmp_path / "v.zip"), torch.from_numpy(SOFTMAX), spacing_mm=[3, 1, 1])
    volume = read_softmax(str(tmp_path / "v.zip"))
    assert volume.grid.spacing_mm == (3, 1, 1)
    files = export_nnunet_prediction(volume, str(tmp_path / "new" / "out"), "case")
    store = FolderObjects(tmp_path / "store")
    names = list(volume.class_names)
    given = {"class_names": names, "shape": list(SHAPE), "affine": volume.grid.affine.tolist()}
    facts = import_nnunet_prediction(str(files.probabilities), str(files.labels), store, "k", **given)
    assert facts.label_voxels == (int(np.prod(SHAPE)), 0)
    for name, odd in {
        "class_names": [None, "ba", 3], "shape": [None, 3, (1, 2), (0, 1, 1), "678", (6.5, 8, 9)],
        "affine": [None, 3, np.eye(3), np.full((4, 4), np.nan), "x"], "labels": [3, {"background": [0]}, ["a"]],
        "scratch": [3, "no/such/place"],
    }.items():  # fmt: skip
        for value in odd:
            with pytest.raises(CurvasError):
                import_nnunet_prediction(files.probabilities, files.labels, store, "k2", **given | {name: value})
    assert not list(store.list("k2"))


@pytest.mark.parametrize(
    "odd", [None, 3, "scan.nii.gz", [], np.zeros((3, 3)), np.zeros((2, 2, 2), complex), object(), [[1], [1, 2]]]
)
def test_body_region_refuses(odd):
    with pytest.raises(PatientError):
        body_region(odd)


def test_body_region_takes_lists_and_tensors():
    scan = np.zeros(SHAPE)
    scan[:, 2:4, 3:5] = 1
    for same in (scan, scan.tolist(), torch.from_numpy(scan), scan > 0):
        assert body_region(same) == (slice(0, 6), slice(2, 4), slice(3, 5))


@pytest.mark.parametrize(
    "odd",
    [*({"patients": value} for value in (0, -1, None, 1.5, [], [1], [""], object())),
     *({"shape": value} for value in (None, 3, (1, 2), (0, 8, 8), (8.0, 8.0, 8.0), "888")),
     *({"spacing_mm": value} for value in SPACINGS),
     *({"annotators": value} for value in (0, -1, 1.5, None, "3")),
     {"groups": ["A"]}],
    ids=shown,
)  # fmt: skip
def test_write_cohort_refuses(odd, tmp_path):
    with pytest.raises(PatientError):
        write_cohort(tmp_path / "cohort", **COHORT | odd)
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize("odd", [None, 3, "nonsense", "anno1", object(), ("anno1", 1, "all")], ids=shown)
def test_no_model_or_study_is_told(odd, tmp_path):
    with pytest.raises(StudyError):
        ModelId.of(odd)
    for call in (train_model, adopt_model):
        with pytest.raises(StudyError):
            call(STUDY, odd, tmp_path, tmp_path / "m")
        with pytest.raises(StudyError):
            call(odd, MODEL, tmp_path, tmp_path / "m")
    with pytest.raises(StudyError):
        Predictor(odd)
    assert ModelId.of(MODEL) is MODEL
    assert ModelId.of(str(MODEL)) == MODEL


@pytest.mark.parametrize("odd", [None, 3, [("P", "x")], "scans", {}], ids=shown)
def test_no_scans_are_told(odd, tmp_path):
    with pytest.raises(SegmentationError):
        prepare_dataset(STUDY, "anno1", odd, tmp_path / "d")
    with pytest.raises(SegmentationError):
        Predictor(STUDY).predict(odd, tmp_path)


def test_an_adopted_model_is_not_written_over(tmp_path, patient):
    (tmp_path / "there").mkdir()
    shutil.copy(patient / "image.nii.gz", tmp_path / "there")
    with pytest.raises(SegmentationError):
        adopt_model(STUDY, str(MODEL), str(tmp_path), str(tmp_path / "there"))


# Storage and statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", SOFTMAXES, ids=lambda v: type(v).__name__)
def test_write_softmax_refuses_and_leaves_no_file(odd, tmp_path):
    with pytest.raises(CurvasError):
        write_softmax(tmp_path / "v.zip", odd)
    with pytest.raises(CurvasError):
        export_nnunet_prediction(odd, tmp_path / "out", "case")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "odd",
    [*({"spacing_mm": value} for value in SPACINGS if value is not None),
     *({"affine": value} for value in (3, "x", np.eye(3), np.full((4, 4), np.inf), np.zeros((4, 4)))),
     {"spacing_mm": (3, 1, 1), "affine": np.eye(4)},
     *({"class_names": value} for value in ("abc", ["a"], 3, ["a", "b", "c"], [])),
     *({"provenance": value} for value in (3, {"a": object()}, "text"))],
    ids=shown,
)  # fmt: skip
def test_write_softmax_refuses_odd_descriptions(odd, tmp_path):
    with pytest.raises(CurvasError):
        write_softmax(tmp_path / "v.zip", SOFTMAX, **odd)


@pytest.mark.parametrize(
    "odd", ["metrics.csv", Path("metrics.csv"), None, 3, [], {"metric": ["dice"]}, np.zeros(3)], ids=shown
)
def test_a_published_table_that_is_none_is_refused(odd):
    with pytest.raises(StatisticsError):
        read_published_scores(odd)


@pytest.mark.parametrize(
    "odd", ["metrics.csv", Path("metrics.csv"), None, 3, [], {"metric": ["dice"]}, np.zeros(3)], ids=shown
)
def test_statistics_refuse_what_is_no_table(odd):
    for call in (
        reduce_scores,
        summarise,
        compare_all_families,
        lambda table: compare_families(table, "dice", "greater"),
        non_inferiority,
        variance_components,
        projected_precision,
        lambda table: rank_among_teams(table, region="body"),
        leaderboard_wide,
        annotator_agreement,
        dice_against_entropy,
        failure_over_patients,
        lambda table: out_of_distribution(table, "A"),
        lambda table: best_predictors(table, {}),
        lambda table: paired_scores(table, "dice", "ece"),
    ):
        with pytest.raises(StatisticsError, match=r"pandas\.read_csv"):
            call(odd)
