"""Reading one value out of a table of scores."""

import pandas as pd


def value_of(table: pd.DataFrame, metric: str, organ: str = "", annotator: object = "") -> float:
    """The value of one row; there must be exactly one."""
    (row,) = table[(table.metric == metric) & (table.organ == organ) & (table.annotator == str(annotator))].to_dict(
        "records"
    )
    return row["value"]
