"""The columns of the tables that a study stores. A table with other columns is refused on writing and on reading.

A number is null where it is undefined, which the rows of scores explain in `note`.
"""

from collections.abc import Container, Iterable

import pyarrow as pa

from curvas_assets.storage.schemas import TableSchema

TEXT, WHOLE, NUMBER, YES_OR_NO = pa.string(), pa.int64(), pa.float64(), pa.bool_()


def _columns(
    *fields: tuple[str, pa.DataType], nullable: Container[str] = (), optional: Iterable[str] = ()
) -> TableSchema:
    """Columns, of which numbers and those named nullable may be null."""
    columns = [pa.field(name, kind, nullable=kind == NUMBER or name in nullable) for name, kind in fields]
    return TableSchema(pa.schema(columns), frozenset(optional))


_OF_A_PREDICTOR = (("patient", TEXT), ("predictor", TEXT), ("family", TEXT), ("group", TEXT))

SCORES = _columns(
    *_OF_A_PREDICTOR,
    ("metric", TEXT),
    ("organ", TEXT),
    ("annotator", TEXT),
    ("value", NUMBER),
    ("unit", TEXT),
    ("note", TEXT),
)
"""One row per score; `organ` and `annotator` are empty where a metric has none. Annotators stand there by name."""
RELIABILITY = _columns(
    *_OF_A_PREDICTOR,
    ("annotator", TEXT),
    ("bin", WHOLE),
    ("lower", NUMBER),
    ("upper", NUMBER),
    ("count", WHOLE),
    ("confidence", NUMBER),
    ("accuracy", NUMBER),
)
"""One row per bin of confidence behind `ece`."""
RISK_COVERAGE = _columns(*_OF_A_PREDICTOR, ("annotator", TEXT), ("coverage", NUMBER), ("risk", NUMBER))
"""One row per point of the curve behind `aurc`."""
COHORT = _columns(
    ("patient", TEXT),
    ("set", TEXT),
    ("group", TEXT),
    ("status", TEXT),
    ("reason", TEXT),
    ("exclusions", TEXT),
    ("doubts", TEXT),
    ("slices", NUMBER),
    ("shape", TEXT),
    ("spacing_mm", TEXT),
    nullable=("shape", "spacing_mm"),
    optional=("slices", "shape", "spacing_mm"),
)
"""One row per patient. Columns from the scan are null for patients not taken in, and absent if nobody was taken in."""
FAMILY_COMPARISONS = _columns(
    ("metric", TEXT),
    ("alternative", TEXT),
    ("pair", TEXT),
    ("first", TEXT),
    ("second", TEXT),
    ("kind", TEXT),
    ("n_first", WHOLE),
    ("n_second", WHOLE),
    ("nan_first", WHOLE),
    ("nan_second", WHOLE),
    ("U", NUMBER),
    ("p", NUMBER),
    ("p_bonferroni", NUMBER),
    ("n_pairs", WHOLE),
    ("unpaired_patients", WHOLE),
    ("win_probability", NUMBER),
    ("p_randomisation", NUMBER),
    ("p_randomisation_two_sided", NUMBER),
    ("p_randomisation_holm", NUMBER),
    ("p_smallest", NUMBER),
    ("mean_difference", NUMBER),
    ("interval_low", NUMBER),
    ("interval_high", NUMBER),
    ("note", TEXT),
    ("question", TEXT),
    ("p_adjusted", NUMBER),
    ("adjustment", TEXT),
)
"""One row per metric and pair of families or predictors."""
VARIANCE_COMPONENTS = _columns(
    ("metric", TEXT),
    ("unit", TEXT),
    ("question", TEXT),
    ("component", TEXT),
    ("degrees_of_freedom", WHOLE),
    ("mean_square", NUMBER),
    ("variance", NUMBER),
    ("low", NUMBER),
    ("high", NUMBER),
    ("share", NUMBER),
    ("share_low", NUMBER),
    ("share_high", NUMBER),
    ("n_patients", WHOLE),
    ("n_annotators", WHOLE),
    ("n_seeds", WHOLE),
    ("n_references", WHOLE),
    ("left_out", WHOLE),
    ("note", TEXT),
)
"""One row per metric and component of its variance; without numbers where the design allows none, and `note` says why."""
LEADERBOARD = _columns(
    ("metric", TEXT),
    ("column", TEXT),
    ("kind", TEXT),
    ("entry", TEXT),
    ("value", NUMBER),
    ("unit", TEXT),
    ("rank", WHOLE),
    ("n_patients", WHOLE),
    ("n_nan", WHOLE),
    ("definition", TEXT),
    ("region", TEXT),
    ("comparable", YES_OR_NO),
    ("comparability", TEXT),
    nullable=("rank", "n_patients", "n_nan"),
)
"""One row per metric and entry; who was not ranked has no rank."""
VOLUME_INTERVALS = _columns(
    ("patient", TEXT),
    ("group", TEXT),
    ("predictor", TEXT),
    ("organ", TEXT),
    ("target", TEXT),
    ("volume", NUMBER),
    ("lower", NUMBER),
    ("upper", NUMBER),
    ("margin", NUMBER),
    ("drawn_mean", NUMBER),
    ("annotators", WHOLE),
    ("covered", NUMBER),
    ("level", NUMBER),
    ("attainable", NUMBER),
    ("claimed", NUMBER),
    ("n_fitted", WHOLE),
    ("note", TEXT),
)
"""One row per test patient, predictor, organ and target; volumes in mm³. `claimed` is null where nothing is claimed."""
COST = _columns(
    ("stage", TEXT),
    ("count", WHOLE),
    ("hours", NUMBER),
    ("gb_down", NUMBER),
    ("gb_up", NUMBER),
    ("gb_stored", NUMBER),
    ("peak_memory_gib", NUMBER),
    ("euros", NUMBER),
    ("study_count", WHOLE),
    ("study_hours", NUMBER),
    ("study_gb_down", NUMBER),
    ("study_gb_up", NUMBER),
    nullable=("study_count",),
)
"""One row per stage, and the total; what the study itself used is null where its report does not tell."""
PREDICTOR_COST = _columns(
    ("predictor", TEXT),
    ("family", TEXT),
    ("trainings", WHOLE),
    ("predictions", WHOLE),
    ("patients", WHOLE),
    ("training_gpu_hours", NUMBER),
    ("training_cpu_hours", NUMBER),
    ("inference_gpu_hours", NUMBER),
    ("inference_cpu_hours", NUMBER),
    ("combining_hours", NUMBER),
    ("unrecorded", WHOLE),
    ("estimated", WHOLE),
)
"""One row per predictor: what it needs, and the hours that this took."""
STUDY_COMPARISON = _columns(
    ("other", TEXT),
    ("metric", TEXT),
    ("question", TEXT),
    ("level", TEXT),
    ("first", TEXT),
    ("second", TEXT),
    ("n_pairs", WHOLE),
    ("unpaired_patients", WHOLE),
    ("mean_first", NUMBER),
    ("mean_second", NUMBER),
    ("mean_difference", NUMBER),
    ("interval_low", NUMBER),
    ("interval_high", NUMBER),
    ("win_probability", NUMBER),
    ("p", NUMBER),
    ("p_adjusted", NUMBER),
    ("note", TEXT),
)
"""One row per other study, primary metric and pair of namesakes."""
PUBLISHED_COMPARISON = _columns(
    ("metric", TEXT),
    ("family", TEXT),
    ("unit", TEXT),
    ("n", NUMBER),
    ("mean", NUMBER),
    ("sd", NUMBER),
    ("published_unit", TEXT),
    ("published_n", NUMBER),
    ("published_mean", NUMBER),
    ("published_sd", NUMBER),
    ("comparability", TEXT),
    nullable=("unit",),
)
"""One row per metric and family of the published table; what this run does not have of it is null."""
