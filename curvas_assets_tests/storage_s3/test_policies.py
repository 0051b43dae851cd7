"""Claims proved here: the policies of `deploy/s3`, as they stand, enforced by a real S3 server (SeaweedFS).

- The reader reads and lists, and changes nothing.
- The pipeline stores artefacts of every kind and removes its own; it neither deletes, overwrites nor adds input.
- The admin puts input there. None of the three reaches another bucket.
- The pipeline's own check of the store, and its directories, work with no more than its policy.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from curvas_assets.errors import StorageError
from curvas_assets.local.server import EmbeddedS3
from curvas_assets.storage import directories
from curvas_assets.storage.connection import S3Settings, check, connect
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import S3Objects

POLICIES = Path(__file__).resolve().parents[2] / "deploy" / "s3"
ROLES = ("reader", "pipeline", "admin")
INPUT = "data/UKCHLL001/image.nii.gz"
BUCKET = "study"


class ServerWithPolicies(EmbeddedS3):
    """The embedded server whose further identities have the example policies, word for word, and nothing else."""

    def _write_identities(self, config: dict[str, Any]) -> None:
        super()._write_identities(config)
        path = self.folder / "identities.json"
        identities = json.loads(path.read_text())
        identities["policies"] = []
        for role in ROLES:
            text = (POLICIES / f"{role}.json").read_text().replace("BUCKET", BUCKET)
            identities["policies"].append({"name": role, "content": text})
            keys = [{"accessKey": role, "secretKey": f"{role}-secret"}]
            identities["identities"].append({"name": f"a-{role}", "credentials": keys, "policyNames": [role]})
        path.write_text(json.dumps(identities))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Role → the study's bucket as that role sees it, with one patient's file in it."""
    with ServerWithPolicies(tmp_path_factory.mktemp("policies")) as server:
        environment = server.environment()
        owner = connect(S3Settings.from_environment(environment))
        owner.client.create_bucket(Bucket=BUCKET)
        connect(S3Settings.from_environment(environment | {"S3_BUCKET": BUCKET})).put(INPUT, b"scan")
        stores = {}
        for role in ROLES:
            keys = {"AWS_ACCESS_KEY_ID": role, "AWS_SECRET_ACCESS_KEY": f"{role}-secret", "S3_BUCKET": BUCKET}
            stores[role] = connect(S3Settings.from_environment(environment | keys))
        yield stores


def _refused(action) -> None:
    with pytest.raises(StorageError, match="AccessDenied"):
        action()


def _input_is_untouched(stores: dict[str, S3Objects]) -> bool:
    reader = stores["reader"]
    return [i.key for i in reader.list("data/")] == [INPUT] and reader.get(INPUT) == b"scan"


def test_the_reader_reads_and_changes_nothing(stores):
    reader = stores["reader"]
    check(reader)
    assert reader.get(INPUT) == b"scan"
    for key in (INPUT, "output/p/a", "reports/report/x"):
        _refused(lambda key=key: reader.put(key, b"mine"))
        _refused(lambda key=key: reader.delete([key]))
    assert _input_is_untouched(stores)


def test_the_pipeline_stores_artefacts_and_leaves_the_input_alone(stores, tmp_path):
    pipeline, layout = stores["pipeline"], Layout()
    check(pipeline)
    (tmp_path / "file").write_bytes(b"content")
    large = tmp_path / "large"
    large.write_bytes(bytes(40 << 20))  # in several parts
    for key in (layout.dataset("anno1"), layout.model("m"), layout.scores("p"), layout.report()):
        directories.write_directory(pipeline, key, tmp_path)
        assert directories.read_file(pipeline, key, "file") == b"content"
    for key in (layout.scan("p"), layout.softmax("p", "m"), layout.table("cohort"), layout.merged_csv()):
        assert pipeline.put(key, b"x")
        pipeline.delete([key])
    for key in (INPUT, "data/UKCHLL002/image.nii.gz"):
        _refused(lambda key=key: pipeline.put(key, b"mine"))
        _refused(lambda key=key: pipeline.upload(key, large))
        _refused(lambda key=key: pipeline.delete([key]))
    assert _input_is_untouched(stores)


def test_the_admin_puts_input_there_and_nobody_reaches_another_bucket(stores):
    admin = stores["admin"]
    admin.put("data/UKCHLL003/image.nii.gz", b"new")
    admin.delete(["data/UKCHLL003/image.nii.gz"])
    assert _input_is_untouched(stores)
    for role, store in stores.items():
        other = S3Objects(store.client, "curvas")
        _refused(lambda other=other: list(other.list("")))
        _refused(lambda other=other, role=role: other.put(f"from-{role}", b"x"))
