"""Claims proved here, in processes whose files may not grow beyond a limit, as a quota has it.

- A full disk is told as a full disk by dataset and training, with what the work needs there, whichever library meets it first:
  NumPy, blosc2 (whose words say nothing), torch (`inline_container.cc`), Python. Nothing is published then.
- So it is when a model or a dataset made elsewhere is taken in.
- Another failure on a disk with room is not put down to it, nor is our own finding.
"""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from curvas_assets.disk import full, is_full, told_of_disk
from curvas_assets.errors import DiskError, SegmentationError, StorageError
from curvas_assets.segmentation import adopt_dataset
from curvas_assets_tests.segmentation import without_disk
from curvas_assets_tests.segmentation.conftest import ANNOTATOR, tiny_study

ROOT = Path(__file__).resolve().parents[2]


TRIALS = {
    "dataset:1": "OSError",
    "dataset:30": "OSError: [Errno 27] File too large",
    "scaled:30": "requested and",
    "dataset:300": "RuntimeError: Error while creating the NDArray",
    "training:30": "RuntimeError: [enforce fail at inline_container.cc",
}
"""What, with files of so many KiB at most, and who meets the limit."""


def test_a_full_disk_is_told_with_what_is_needed(dataset, scans, tmp_path):
    command = [sys.executable, "-m", without_disk.__name__, ",".join(TRIALS), str(scans), str(dataset), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    told = done.stdout.splitlines()
    assert len(told) == len(TRIALS), done.stderr
    for line, library in zip(told, TRIALS.values(), strict=True):
        assert line.startswith("DiskError "), line
        assert "is full, or a quota on it is used up: the work needs about" in line
        assert "Free space there or point CURVAS_SCRATCH to a larger disk" in line
        assert library in line
    assert not list(tmp_path.rglob("checkpoint_best.pth"))
    assert not list(tmp_path.rglob("splits_final.json"))


def test_so_it_is_when_a_dataset_is_taken_in(dataset, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", refused)
    with pytest.raises(DiskError, match=rf"dataset of {ANNOTATOR}: taking in the preprocessing failed: the disk"):
        adopt_dataset(tiny_study(), ANNOTATOR, dataset, tmp_path / "ours")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("shapes do not match"), False),
    ],
    ids=repr,
)
def test_only_a_full_disk_is_put_down_to_the_disk(tmp_path, error, expected):
    assert is_full(error, tmp_path) is expected
    wrapped = SegmentationError("preprocessing the scan", "P1", "nnU-Net stopped", "Look.")
    wrapped.__cause__ = error
    assert is_full(wrapped, tmp_path) is expected


def test_the_origin_is_told_and_errors_of_a_store_pass(tmp_path):
    first = OSError(errno.ENOSPC, "No space left on device")
    second = SegmentationError("preprocessing the scan", "P1", "nnU-Net stopped", "If the scan is at fault …")
    second.__cause__ = first
    told = full("preparing", "P1", tmp_path / "not" / "there", second, 3 * 2**30)
    assert "needs about 3.0 GiB there" in str(told)
    assert "OSError: [Errno 28] No space left on device" in str(told)
    assert "at fault" not in str(told)
    with pytest.raises(StorageError, match="no room there"), told_of_disk("training", "P1", tmp_path):
        raise StorageError("storing", "P1", "no room there: no space left on device", "Ask the store's keeper.")
