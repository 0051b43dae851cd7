"""Preview of a patient for the bundle: seconds, memory, and bytes in the bundle, extrapolated to 65 patients.

Run `python -m benchmarks.previews` for 216 × 256 × 256 voxels, `--full` for 866 × 512 × 512. The patient is a noisy phantom with
three annotations, an ensemble's probabilities of a network that was trained a little (whose maps are the noisiest), and a map of
mutual information. The preview is made in a process of its own, whose CPU seconds and highest resident set are printed. Fails
when it takes 1 GiB or more, or when 65 patients would not stay below 200 MB.
"""

import argparse
import contextlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import phantoms
from benchmarks.intake import ANNOTATIONS, IMAGE, PATIENT, Shape, study
from curvas_assets.geometry import Grid
from curvas_assets.sharing.bundle import volumes_script
from curvas_assets.stages import cohort, preview, table
from curvas_assets.stages.checks import StepChecks
from curvas_assets.stages.stored import Artefact, Artefacts, Stored
from curvas_assets.stages.toolkit import Toolkit
from curvas_assets.storage.layout import Cell, Layout
from curvas_assets.storage.maps import MapWriter
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.softmax import SoftmaxWriter

SMALL_SIZE = (216, 256, 256)
PATIENTS, MOST_BYTES = 65, 200e6
MOST_GIB = 1.0
STUDY = study()


def toolkit(folder: Path) -> Toolkit:
    """The study's tools on a bucket in a folder."""

    @contextlib.contextmanager
    def scratch(subject: str, needed_bytes: int = 0):
        with tempfile.TemporaryDirectory(dir=folder) as lent:
            yield Path(lent)

    def nothing(_: str) -> None:
        pass

    objects = MeteredObjects(FolderObjects(folder / "bucket"))
    return Toolkit(
        STUDY, objects, Layout(), nothing, nothing, scratch, lambda: contextlib.nullcontext(None), lambda *_: {}
    )


def prepare(folder: Path, shape: Shape) -> None:
    """A patient who was taken in, and the ensemble's volume and map."""
    tools = toolkit(folder)
    phantoms.write_patient(folder / "files" / PATIENT, shape, IMAGE, ANNOTATIONS)
    for path in (folder / "files" / PATIENT).iterdir():
        tools.objects.upload(tools.layout.patient_file(PATIENT, path.name), path)
    ((_, taken),) = cohort.take_in(tools, [PATIENT], StepChecks(*cohort.SCAN_CHECKS))
    assert isinstance(taken, Stored), taken
    predictor, grid = preview.predictor_shown(STUDY, PATIENT), Grid(shape, phantoms.AFFINE)
    volume = SoftmaxWriter(
        tools.objects,
        tools.layout.softmax(PATIENT, predictor),
        grid,
        class_names=STUDY.class_names,
        provenance={},
        scratch=folder,
    )
    key = tools.layout.ensemble_map(PATIENT, predictor, "mutual_information")
    with volume, MapWriter(tools.objects, key, grid, kind="entropy", scratch=folder) as information:
        for z0, slab in phantoms.softmax_slabs(shape):
            volume.write(z0, slab)
            information.write(z0, 0.3 * (1 - slab.max(axis=0)))


def make(folder: Path) -> dict[str, float]:
    """The preview, and what it took."""
    tools = toolkit(folder)
    predictor = preview.predictor_shown(STUDY, PATIENT)

    def artefacts(row: table.Asset, key: str) -> Artefacts:
        return Artefacts({key: Artefact(tools.objects, row.place(tools.layout, key), row.kind, key)})

    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    ((_, made),) = preview.preview_patients(
        tools,
        [PATIENT],
        StepChecks(*preview.CHECKS),
        softmax=Artefacts({}),
        ensemble_softmax=artefacts(table.ENSEMBLE_SOFTMAX, str(Cell(predictor, PATIENT))),
        scan=artefacts(table.SCAN, PATIENT),
    )
    if not isinstance(made, Stored):
        raise made
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = preview.stored_preview(Artefact(tools.objects, made.key, "folder", PATIENT), out := folder / "fetched")
    print({one["file"]: one["bytes"] for one in facts["volumes"]}, made.metadata["shape"], made.metadata["spacing_mm"])
    return {
        "seconds": time.monotonic() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "gib": _peak_gib(),
        "bytes": float(made.metadata["bytes"]),
        "script": float(len(volumes_script(PATIENT, facts, out))),
    }


def _peak_gib() -> float:
    """The highest resident set of this program alone; `ru_maxrss` begins with that of the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 2**20


def main(shape: Shape) -> int:
    """Measure, print, and say whether the targets are met."""
    with tempfile.TemporaryDirectory(prefix="previews-") as name:
        folder = Path(name)
        prepare(folder, shape)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.previews", "--part", name], stdout=subprocess.PIPE, text=True, check=True
        )
    *told, last = done.stdout.strip().splitlines()
    print("\n".join(told))
    found = json.loads(last)
    print(
        f"{' × '.join(map(str, shape))}: {found['seconds']:.0f} s, {found['cpu_seconds']:.0f} CPU s, {found['gib']:.2f} GiB; "
        f"{found['bytes'] / 1e6:.2f} MB, in a bundle {found['script'] / 1e6:.2f} MB; "
        f"{PATIENTS} patients: {PATIENTS * found['script'] / 1e6:.0f} MB"
    )
    return int(found["gib"] >= MOST_GIB or PATIENTS * found["script"] >= MOST_BYTES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--part", type=Path)
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(make(asked.part)))
    else:
        sys.exit(main(phantoms.FULL_SIZE if asked.full else SMALL_SIZE))
