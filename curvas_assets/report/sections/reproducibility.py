"""Commit, packages and data that the report was made from."""

from collections.abc import Mapping

import pandas as pd

from curvas_assets.report.blocks import Absent, Block, Text
from curvas_assets.report.facts import Facts


def write(facts: Facts) -> list[Block]:
    """Where the report comes from; a sentence stands for what was not recorded."""
    w, provenance = facts.words, facts.inputs.provenance
    origin = w(
        "reproducibility_text",
        commit=provenance.git_commit or w("unknown"),
        date=provenance.generated_at or w("unknown"),
        fingerprint=facts.study.fingerprint(),
    )
    return [
        Text(origin),
        _versions(facts, "package", provenance.packages, w("packages"), w("no_packages")),
        _versions(facts, "artefact", provenance.data_versions, w("data_versions"), w("no_data_versions")),
    ]


def _versions(facts: Facts, of: str, versions: Mapping[str, str], caption: str, absent: str) -> Block:
    if not versions:
        return Absent(absent)
    table = pd.DataFrame([(str(name), str(version)) for name, version in versions.items()], columns=[of, "version"])
    return facts.table(table, facts.headings(of, "version"), caption=caption, folded=len(table) > 20)
