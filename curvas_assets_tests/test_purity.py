"""Claims proved here.

- The pure packages load neither dagster nor torch; definitions load neither torch nor nnunetv2, in little more time than their libraries take.
- Only the three places that may import dagster do, and only `segmentation` names torch or nnunetv2.
"""

import subprocess
import sys
import time
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "curvas_assets"
PURE = (
    "study",
    "study_schema",
    "cohort",
    "cohort.discovery",
    "cohort.phantom",
    "scoring",
    "calibration",
    "ensembling",
    "statistics",
    "storage.softmax",
    "submission",
    "report.document",
    "sharing",
    *(
        f"stages.{name}"
        for name in (
            "cohort",
            "prepare",
            "train",
            "predict",
            "ensemble",
            "calibrate",
            "score",
            "compare",
            "preview",
            "write_up",
        )
    ),
    "stages.places",
)
MAY_IMPORT_DAGSTER = ("definitions.py", "assets/", "orchestration/", "local/")


def _loaded(*modules: str) -> list[set[str]]:
    """What a fresh interpreter has loaded after each of these imports."""
    lines = [f"import {module}; print(*sys.modules)" for module in modules]
    command = [sys.executable, "-c", "\n".join(["import sys", *lines])]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [set(line.split()) for line in told.splitlines()]


def test_the_pure_packages_load_neither_dagster_nor_torch():
    """All in one process: the first that has one of them loaded, and those after it, are named."""
    names = [*PURE, "segmentation"]
    loaded = _loaded(*(f"curvas_assets.{name}" for name in names))
    unwanted = {name: {"dagster", "torch", "nnunetv2"} & seen for name, seen in zip(names, loaded, strict=True)}
    assert {name: found for name, found in unwanted.items() if found} == {}


def test_definitions_load_without_what_steps_alone_need_and_in_little_more_time_than_their_libraries():
    """Five seconds on a quiet machine; on a busy one, twice what Dagster, pandas and SciPy take alone just then."""
    start = time.monotonic()
    _loaded("dagster, dagster_aws.s3, pandas, scipy.stats, numba")
    libraries = time.monotonic() - start
    (loaded,) = _loaded("curvas_assets.definitions")
    assert not {"torch", "nnunetv2", "scipy.stats", "matplotlib", "plotly"} & loaded
    assert time.monotonic() - start - libraries < max(5, 2 * libraries)


def test_imports_stay_where_they_belong():
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    dagster = {name for name, text in texts.items() if "import dagster" in text or "from dagster" in text}
    networks = {
        name for name, text in texts.items() if "import torch" in text or "nnunetv2" in text.replace('"nnunetv2"', "")
    }
    assert "definitions.py" in dagster
    assert {name for name in dagster if not name.startswith(MAY_IMPORT_DAGSTER)} == set()
    assert "segmentation/trainer.py" in networks
    assert {name for name in networks if not name.startswith("segmentation/")} == set()
