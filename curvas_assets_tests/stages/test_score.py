"""Claims proved here.

- A stored table of an earlier version, which numbers the annotators, is read by name; one that names them stays as it is.
- Means by predictor are of rows for all annotators, also where an annotator is called by a number.
"""

import pandas as pd
import pytest

from curvas_assets.stages.score import means_by_predictor, of_the_study
from curvas_assets_tests.report.studies import make_study

MODEL = "anno1_init112233_foldall"


def study_of(*names: str):
    study = make_study(seeds=1)
    annotators = [{"name": name, "file": f"{name}.nii.gz"} for name in names]
    raw = study.model_dump(include={"name", "title", "patients", "organs", "sets", "seeds"})
    return type(study).model_validate({**raw, "annotators": annotators})


def stored(study, annotators: list[str]) -> pd.DataFrame:
    row = {
        "patient": "UKCHLL001",
        "predictor": str(study.models[0]),
        "metric": "ece",
        "organ": "",
        "unit": "",
        "note": "",
    }
    return pd.DataFrame([row | {"annotator": name, "value": float(v)} for v, name in enumerate(annotators)])


@pytest.mark.parametrize(
    ("names", "held", "read"),
    [
        (("anna", "bo-ris", "1"), ["1", "2", "3", "1-3", "mean", ""], ["anna", "bo-ris", "1", "anna/1", "mean", ""]),
        (("anna", "bo-ris"), ["anna", "bo-ris", "anna/bo-ris", "mean"], ["anna", "bo-ris", "anna/bo-ris", "mean"]),
        (("1", "2"), ["1", "2", "1/2", "mean"], ["1", "2", "1/2", "mean"]),
        (("anna", "boris"), ["carla", "mean"], ["carla", "mean"]),  # who has left the study since
        (("anna", "boris"), ["1", "2", "3", "mean"], ["1", "2", "3", "mean"]),  # as many as the study had then
    ],
)
def test_a_table_that_numbers_annotators_is_read_by_name(names, held, read):
    study = study_of(*names)
    assert of_the_study(study, "UKCHLL001", stored(study, held))["annotator"].tolist() == read


def test_means_by_predictor_are_of_all_annotators():
    study = study_of("1", "anna")
    means = means_by_predictor(stored(study, ["1", "anna", "mean"]))
    assert means["ece"].tolist() == [2.0]
