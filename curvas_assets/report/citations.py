"""Which publications and packages a study used, and their BibTeX.

Belongs here: the choice of entries. Does not belong here: the entries (`references.bib`), sentences (`sections.methods`).
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources

from curvas_assets.study import Study

SOFTWARE = {
    "curvas-assets": "curvasassets",
    "nnunetv2": "isensee2021nnunet",
    "torch": "paszke2019pytorch",
    "numpy": "harris2020numpy",
    "scipy": "virtanen2020scipy",
    "numba": "lam2015numba",
    "pandas": "mckinney2010pandas",
    "dagster": "dagster",
}
"""Package → the entry that it asks to be cited by."""
TESTS = ("phipson2010permutation", "holm1979procedure", "benjamini1995rate", "efron1987bootstrap")
METRICS = ("gneiting2007scoring", "nikolov2021surface", "kahl2024values")
"""Where metrics that every study has are from: CRPS and Brier score, surface Dice, the uncertainty measures."""


def cited(study: Study) -> list[str]:
    """Keys of the entries that a study used, each once, in the order of its work."""
    return list(dict.fromkeys(_used(study)))


def _used(study: Study) -> Iterator[str]:
    yield "isensee2021nnunet"
    if study.plans.planner != "ExperimentPlanner":
        yield "isensee2024revisited"
    if study.ensemble_ids:
        yield "lakshminarayanan2017ensembles"
    if study.cheap_ensembles.flips:
        yield "wang2019augmentation"
    if study.cheap_ensembles.snapshots:
        yield "huang2017snapshot"
    if "staple" in study.label_names or study.evaluation.reference == "staple":
        yield "warfield2004staple"
    if study.calibrated.temperature:
        yield "guo2017calibration"
    if study.calibrated.isotonic:
        yield "zadrozny2002isotonic"
    if study.interval_predictors:
        yield "lei2018conformal"
    yield from METRICS
    yield from TESTS
    yield from SOFTWARE.values()


def bibtex(study: Study, packages: Mapping[str, str]) -> str:
    """BibTeX of what a study used: its data as the study file cites them, publications, and packages with their versions.

    Args:
        study: its `report.data_citation` comes first.
        packages: package → version; of those that are not given, the entry has no version.
    """
    versions = {SOFTWARE[name]: number for name, number in packages.items() if name in SOFTWARE}
    entries = [study.report.data_citation.strip()] if study.report.data_citation.strip() else []
    for key in cited(study):
        entry = _entries()[key]
        if key in versions:
            entry = f"{entry.removesuffix('}')}  note = {{Version {versions[key]}}},\n}}"
        entries.append(entry)
    return "\n\n".join(entries) + "\n"


@cache
def _entries() -> dict[str, str]:
    """Key → entry, as the file has it."""
    text = resources.files("curvas_assets.report").joinpath("references.bib").read_text(encoding="utf-8")
    return {found[1]: found[0] for found in re.finditer(r"^@\w+\{(\w+),\n(?:  .*\n)+\}", text, re.MULTILINE)}
