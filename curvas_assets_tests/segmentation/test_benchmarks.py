"""Claims proved here, at a tiny size and without a GPU.

- `benchmarks.gpu` runs each of its parts with the options it was given, and prints a table of what they measured.
- It says that it measures nothing where there is no GPU, and that it takes two epochs to measure one.
- It fails exactly if our epoch takes more than 1.05 times stock nnU-Net's.
"""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu

TINY = "--device cpu --patch 16 24 24 --features 4 8 16 --epochs 2 --iterations 2 --workers 0 --patient 20 40 40 --models 2"


def _run_here(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """What a part's own process would print, without starting one."""
    options = gpu._options(command[command.index("-m") + 2 :])
    found = gpu.measure(options.part, options, Path(options.folder))
    return subprocess.CompletedProcess(command, 0, f"something of torch's\n{json.dumps(found)}\n")


def test_the_gpu_benchmark_prints_a_table_of_its_parts(dataset, monkeypatch, capsys):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", cudnn.benchmark)  # as before, afterwards
    monkeypatch.setattr(cudnn, "deterministic", cudnn.deterministic)
    monkeypatch.setattr(gpu, "make_dataset", lambda study, shape, folder: (folder / "dataset").symlink_to(dataset))
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=_run_here, PIPE=subprocess.PIPE))
    monkeypatch.setattr(gpu, "TARGET", 1e9)
    gpu.main(TINY.split())
    first, head, stock, ours, models, ratio, patient = capsys.readouterr().out.splitlines()
    assert first.startswith("cpu, ")
    assert "2 × 16 × 24 × 24 voxels a batch, feature maps [4, 8, 16], 2 + 1 batches an epoch" in first
    assert head.split() == ["first,", "s", "each,", "s", "all,", "s", "GPU", "%", "GPU", "GiB"]
    for line, name in ((stock, "epoch of stock nnU-Net"), (ours, "epoch of ours"), (models, "2 models of one patient")):
        assert line.startswith(name)
        seconds = [float(number) for number in line.removeprefix(name).replace("–", "").split()]
        assert len(seconds) == (3 if line is models else 2)
        assert min(seconds) >= 0
    assert "met; ours the training process itself loads; stock 0 loader processes of nnU-Net" in ratio
    assert patient.startswith("the patient has 20 × 40 × 40 voxels of 1 × 0.8 × 0.8 mm, without mirroring")


def test_the_gpu_benchmark_measures_nothing_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "choose_device", lambda _: torch.device("cpu"))
    gpu.main([])
    assert capsys.readouterr().out.startswith("no GPU here: nothing is measured")


def test_the_gpu_benchmark_wants_an_epoch_beside_the_first(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--epochs", "1"])
    assert "--epochs must be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize(("ours", "fails"), [(1.04, False), (1.06, True)])
def test_the_gpu_benchmark_fails_if_our_epoch_is_too_slow(ours, fails, monkeypatch, capsys):
    row = {"first_s": 1.0, "utilisation": 97.0, "gpu_gib": 8.0, "device": "a GPU", "loading": "somehow"}
    found = {
        "stock": {**row, "epoch_s": 1.0},
        "ours": {**row, "epoch_s": ours},
        "prediction": {**row, "model_s": 2.0, "all_s": 18.0},
    }
    monkeypatch.setattr(gpu, "make_dataset", lambda study, shape, folder: None)
    monkeypatch.setattr(gpu, "_apart", lambda part, options, folder: found[part])
    if fails:
        with pytest.raises(SystemExit, match=r"more than 1\.05 times"):
            gpu.main(["--device", "cpu"])
    else:
        gpu.main(["--device", "cpu"])
    assert f"ours : stock {ours:.2f}, target 1.05: {'NOT met' if fails else 'met'}" in capsys.readouterr().out
