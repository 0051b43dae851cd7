"""Claims proved here.

- That an artefact was stored is proved by what stands at its key or below it, never by what only begins like it.
"""

import dagster as dg
import pytest

from curvas_assets.errors import StorageError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.io_manager import ArtefactIOManager
from curvas_assets.stages.stored import Stored


def test_a_key_that_begins_like_another_is_no_proof_that_it_was_stored(bucket_environment, monkeypatch):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket()
    manager, objects = ArtefactIOManager(bucket=bucket), bucket.objects()
    objects.put("artifacts/models/anno1_init12/manifest.json", b"{}")
    objects.put("output/P1/scan.json2", b"{}")
    for key in ("artifacts/models/anno1_init1", "output/P1/scan.json"):
        with pytest.raises(StorageError, match="nothing is there"):
            manager.handle_output(dg.build_output_context(step_key="made"), Stored(key, "1"))
    objects.put("output/P1/scan.json", b"{}")
    for key in ("artifacts/models/anno1_init12", "output/P1/scan.json"):
        manager.handle_output(dg.build_output_context(step_key="made"), Stored(key, "1"))
