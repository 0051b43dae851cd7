"""The state of the lineage as one table: for each asset, what is made, stale, missing or made elsewhere, and why.

For people: Dagster's own pages show what was materialised, and show a partition that is out of date as green.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable

import pandas as pd

from curvas_assets.orchestration.asset_keys import name_of
from curvas_assets.orchestration.dagster_internals import (
    StaleStatus,
)
from curvas_assets.orchestration.staleness import PartitionStatus, Staleness
from curvas_assets.stages.table import VARIANT_SOFTMAX

COLUMNS = ("asset", "partitions", "made", "stale", "missing", "elsewhere", "why")
MOST_REASONS = 4


def state_table(staleness: Staleness, without: Collection[str] = ()) -> pd.DataFrame:
    """One row for each asset, in the order of the lineage.

    Args:
        staleness: what there is.
        without: assets to leave out.

    Returns:
        Columns asset, partitions (in the study), made (of these), stale, missing, elsewhere, why. `elsewhere` counts
        partitions that were uploaded, or are not needed here because what is made from them was uploaded; they count
        neither as stale nor as missing.
    """
    rows: list[list[object]] = []
    for key in staleness.graph.toposorted_asset_keys:
        name = name_of(key)
        if staleness.graph.get(key).is_external or name in without:
            continue
        found = [staleness.status(key, partition) for partition in staleness.partitions(key)]
        if name == VARIANT_SOFTMAX.name and not found:  # of a study without cheap ensembles
            continue
        here = [one for one in found if not one.elsewhere]
        stale = [one for one in here if one.status is StaleStatus.STALE]
        elsewhere = [one for one in found if one.elsewhere]
        missing = sum(one.status is StaleStatus.MISSING for one in here)
        made = sum(one.status is not StaleStatus.MISSING for one in found)
        why = [*_reasons(stale), *_reasons(elsewhere, "made elsewhere, left alone: ")]
        rows.append([name, len(found), made, len(stale), missing, len(elsewhere), "; ".join(why)])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _reasons(found: Iterable[PartitionStatus], before: str = "") -> list[str]:
    """Why partitions are out of date: the most frequent reasons first, each with its number of partitions."""
    counts: Counter[str] = Counter()
    for one in found:
        counts.update({re.sub(r" of \S+ has ", " has ", reason) for reason in one.reasons})
    told = [f"{before}{reason} ({n})" for reason, n in counts.most_common(MOST_REASONS)]
    return [*told, f"{before}{len(counts) - MOST_REASONS} more reasons"] if len(counts) > MOST_REASONS else told
