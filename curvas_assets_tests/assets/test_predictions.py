"""Claims proved here: a patient whom a model has seen is not predicted by it; a model that does not say whom, predicts all."""

import json

import pytest

from curvas_assets.errors import SegmentationError
from curvas_assets.stages.predict import require_unseen

MODEL = "anno1_init1_foldall"


def test_a_patient_whom_the_model_has_seen_is_refused(tmp_path):
    record = tmp_path / "training.json"
    record.write_text(json.dumps({"trained_on": ["PHANTOM001"]}))
    require_unseen(tmp_path, MODEL, "PHANTOM007")
    with pytest.raises(SegmentationError, match=f"{MODEL} of PHANTOM001: predicting failed: the model was trained on"):
        require_unseen(tmp_path, MODEL, "PHANTOM001")


@pytest.mark.parametrize("record", [None, "{}", "[]", "not JSON", '{"trained_on": null}', '{"trained_on": 3}'])
def test_a_model_that_does_not_say_whom_it_saw_predicts_everybody(tmp_path, record):
    if record is not None:
        (tmp_path / "training.json").write_text(record)
    require_unseen(tmp_path, MODEL, "PHANTOM001")
