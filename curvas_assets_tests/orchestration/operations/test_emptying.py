"""Claims proved here.

- A survey lists what would go, and its bytes; nothing goes unless the prefix's full name is typed.
- Emptying one prefix touches no object of another, though its name begins alike.
- Each asset stands below exactly one prefix, so that Dagster forgets exactly what was removed.
"""

import pytest

from curvas_assets.errors import StorageError
from curvas_assets.orchestration.operations.emptying import assets_below, contents, empty
from curvas_assets.stages.table import PATIENT_FILES, PUBLISHED_TABLE, STAGES
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects

LAYOUT = Layout()


@pytest.fixture
def objects(tmp_path):
    store = FolderObjects(tmp_path / "curvas")
    for key in (
        "data/P001/image.nii.gz",
        "data2/P001/image.nii.gz",
        "artifacts/models/m1/manifest.json",
        "artifacts/preprocessing/anno1/v/case.b2nd",
        "artifacts/preprocessing/anno1/manifest.json",
        "output/P001/scan.json",
    ):
        store.put(key, b"12345")
    return store


def _keys(objects):
    return [item.key for item in objects.list("")]


def test_a_survey_tells_what_would_go(objects):
    found = contents(objects, "artifacts")
    assert (len(found.objects), found.size) == (3, 15)
    assert str(found).endswith("/artifacts: 3 objects, 15 B")
    table = found.by_folder("artifacts").set_index("folder")
    assert table.loc["preprocessing/anno1", "objects"] == 2
    assert table.loc["models/m1", "bytes"] == 5


@pytest.mark.parametrize("typed", ["", "artifacts", "yes", "curvas/artifacts", "data"])
def test_nothing_goes_unless_the_full_name_is_typed(objects, typed):
    before = _keys(objects)
    with pytest.raises(StorageError, match="exactly, to remove 3 objects, 15 B"):
        empty(objects, "artifacts", typed, print)
    assert _keys(objects) == before


@pytest.mark.parametrize(("prefix", "gone"), [("data", 1), ("artifacts", 3), ("output", 1), ("reports", 0)])
def test_only_the_prefix_goes_and_what_went_is_told(objects, prefix, gone):
    before, told = _keys(objects), []
    removed = empty(objects, prefix, f"{objects.name}/{prefix}", told.append, every=2)
    assert len(removed.objects) == gone
    assert _keys(objects) == [key for key in before if not key.startswith(f"{prefix}/")]
    assert [o.key for o in removed.objects if o.key not in "\n".join(told)] == []


def test_each_asset_stands_below_one_prefix():
    assets = {PATIENT_FILES, PUBLISHED_TABLE, *(asset for made in STAGES.values() for asset in made)}
    prefixes = (LAYOUT.data, LAYOUT.artifacts, LAYOUT.output, LAYOUT.metrics, LAYOUT.reports)
    below = {prefix: assets_below(LAYOUT, prefix, assets) for prefix in prefixes}
    assert sorted(asset for found in below.values() for asset in found) == sorted(assets)
    assert below["data"] == [PATIENT_FILES]
    assert below["artifacts"] == ["preprocessed_dataset", "trained_model", "training_cases"]
    assert below["output"] == ["ensemble_softmax", "scan", "softmax", "test_scan", "variant_softmax", "viewer_preview"]
