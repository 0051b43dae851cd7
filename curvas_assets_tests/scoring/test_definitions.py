"""Claims proved here.

- `scoring/definitions.md` defines every registered metric, and no metric that is not registered.
- It is part of the package, and the README leads to it.
"""

import re
import tomllib
from importlib import resources
from pathlib import Path

from curvas_assets.scoring import METRICS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (resources.files("curvas_assets.scoring") / "definitions.md").read_text()


def test_every_metric_is_defined_and_every_definition_is_of_a_metric():
    defined = [
        name
        for row in TEXT.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([a-z0-9_]+)`", row.split("|")[1])
    ]
    assert sorted(defined) == sorted(METRICS)


def test_every_metric_it_speaks_of_is_registered():
    other = {"body", "image", "mean", "organ"}
    assert set(re.findall(r"`([a-z][a-z0-9_]*)`", TEXT)) - other <= set(METRICS)


def test_it_is_packaged_and_the_readme_leads_to_it():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "scoring/definitions.md" in packaged["curvas_assets"]
    assert "(curvas_assets/scoring/definitions.md)" in (ROOT / "README.md").read_text()
