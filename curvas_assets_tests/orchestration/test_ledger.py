"""Claims proved here.

- Every materialisation has a row of what it used, however many there are; assets without records have none.
- Repeated materialisations are all counted, what is stored only once; a GPU's hour and a CPU's have their own prices.
- The sums stand beside the study's own figures; the total is theirs.
- Peak memory is that of the materialisation, not of an earlier, larger one; so it is where memory has to be sampled.
- Assets that are one table record what they used as well.
"""

import time

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from curvas_assets.orchestration import ledger, usage
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.io_manager import ArtefactIOManager
from curvas_assets.orchestration.ledger import cost_table, materialisation_ledger
from curvas_assets.orchestration.usage import PeakMemory, Usage
from curvas_assets.stages.stored import Artefacts
from curvas_assets.storage.metering import MeteredObjects
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.study import Prices

GB = 10**9


def _made(instance, asset, partition, **used):
    instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition, metadata=used))


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_every_materialisation_has_a_row(instance, monkeypatch):
    monkeypatch.setattr(ledger, "PAGE", 3)
    for i in range(8):
        _made(instance, "softmax", f"m|P{i}", seconds=1.0 + i, bytes_down=i, bytes_up=2 * i, peak_memory_mib=100.0 + i)
    _made(instance, "softmax", "m|P8", bytes=5)
    _made(instance, "scan", "P1", seconds=2.0, bytes_down=7, bytes_up=0, peak_memory_mib=50.0, device="cpu")
    found = materialisation_ledger(instance)
    assert len(found) == 9
    cells = found[found["asset"] == "softmax"].sort_values("partition")
    assert cells["seconds"].tolist() == [1.0 + i for i in range(8)]
    assert cells["bytes_up"].tolist() == [2 * i for i in range(8)]
    assert found[found["asset"] == "scan"]["device"].item() == "cpu"


def test_what_was_used_is_summed_beside_the_studys_figures(instance):
    hour = {"bytes_down": 2 * GB, "bytes_up": GB, "bytes": GB}
    _made(instance, "softmax", "m|P1", seconds=3600.0, peak_memory_mib=4096.0, device="cuda (A100) 0", **hour)
    _made(instance, "softmax", "m|P1", seconds=1800.0, peak_memory_mib=1024.0, device="cuda (A100) 0", **hour)
    _made(instance, "softmax", "m|P2", seconds=1800.0, peak_memory_mib=2048.0, device="cpu", **hour)
    _made(instance, "family_comparisons", None, seconds=36.0, bytes_down=0, bytes_up=0, peak_memory_mib=1.0)
    prices = Prices(gpu_hour_eur=2, cpu_hour_eur=0.5, storage_gb_month_eur=0.3, egress_gb_eur=0.1, storage_days=10)
    table = cost_table(materialisation_ledger(instance), prices).set_index("stage")
    row = table.loc["inference"]
    assert row["count"] == 3
    assert row["hours"] == pytest.approx(2)
    assert (row["gb_down"], row["gb_up"], row["gb_stored"]) == pytest.approx((6, 3, 2))
    assert row["peak_memory_gib"] == pytest.approx(4)
    assert row["euros"] == pytest.approx(1.5 * 2 + 0.5 * 0.5 + 2 * 0.3 / 3 + 6 * 0.1)
    assert (row["study_count"], row["study_hours"], row["study_gb_up"]) == (576, 576, 2304)
    assert table.loc["reporting", "hours"] == pytest.approx(0.01)
    assert pd.isna(table.loc["reporting", "study_hours"])
    assert table.loc["total", "hours"] == pytest.approx(2.01)
    assert table.loc["total", "study_hours"] == 216 + 576 + 128 + 64
    assert table.loc["total", "peak_memory_gib"] == pytest.approx(4)


def test_an_empty_ledger_costs_nothing(instance):
    table = cost_table(materialisation_ledger(instance), Prices()).set_index("stage")
    assert table.loc["total", "euros"] == 0
    assert table.loc["training", "study_gb_down"] == 54


@pytest.mark.parametrize("sampled", [False, True])
def test_peak_memory_is_that_of_the_work_not_of_the_process(tmp_path, monkeypatch, sampled):
    if sampled:
        monkeypatch.setattr(usage, "RESET", tmp_path)  # a folder: it cannot be written to
    elif not usage.RESET.exists():
        pytest.skip("this system has no /proc/self/clear_refs")
    memory = PeakMemory()
    quiet = memory.peak()
    large = np.ones(300 << 20, np.uint8)
    time.sleep(3 * usage.SAMPLE_SECONDS)
    del large
    assert memory.peak() - quiet > 250 << 20
    memory.restart()
    assert abs(memory.peak() - quiet) < 50 << 20


def test_a_lap_counts_from_the_last_one(tmp_path):
    objects = MeteredObjects(FolderObjects(tmp_path))
    objects.put("before", b"12345")
    used = Usage(objects)
    objects.put("one", b"123")
    first = used.lap()
    assert (first["bytes_up"], first["bytes_down"]) == (3, 0)
    objects.get("before")
    second = used.lap()
    assert (second["bytes_up"], second["bytes_down"]) == (0, 5)
    assert 0 <= second["seconds"] < 5


def test_an_asset_that_is_one_table_records_what_it_used(bucket_environment, monkeypatch):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    both = dg.StaticPartitionsDefinition(["a", "b"])

    @dg.asset(partitions_def=both)
    def scores(context: dg.AssetExecutionContext) -> pd.DataFrame:
        text = ("patient", "predictor", "family", "group", "metric", "organ", "annotator", "unit", "note")
        return pd.DataFrame({**dict.fromkeys(text, "a"), "value": np.arange(1000.0)})

    @dg.asset(ins={"scores": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())})
    def study_scores(scores: Artefacts) -> pd.DataFrame:
        time.sleep(0.3)
        return pd.concat([scores[key].table() for key in scores])

    with dg.DagsterInstance.ephemeral() as instance:
        bucket = Bucket()
        resources = {"io_manager": ArtefactIOManager(bucket=bucket), "bucket": bucket}
        for key in ("a", "b"):
            assert dg.materialize([scores], instance=instance, resources=resources, partition_key=key).success
        assert dg.materialize(
            [scores, study_scores], selection=[study_scores], instance=instance, resources=resources
        ).success
        rows = materialisation_ledger(instance).set_index("asset")
    assert len(rows) == 3
    whole = rows.loc["study_scores"]
    assert 0.3 <= whole["seconds"] < 10
    assert whole["bytes_down"] > 0
    assert whole["bytes_up"] > 0
    assert whole["peak_memory_mib"] > 10
