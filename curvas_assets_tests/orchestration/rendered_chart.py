"""Judges what Helm makes of deploy/kubernetes/values.yaml: prints what is wrong, and exits with 1 if anything is.

helm template dagster dagster/dagster --version … -f deploy/kubernetes/values.yaml > rendered.yaml
python -m curvas_assets_tests.orchestration.rendered_chart rendered.yaml
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import kubernetes_validate
import yaml
from dagster._core.errors import DagsterInvalidConfigError
from dagster._core.instance.config import dagster_instance_config

ROOT = Path(__file__).resolve().parents[2]
Manifest = Mapping[str, Any]
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/kubernetes/values.yaml").read_text())
S3, PASSWORD = "curvas-s3", VALUES["global"]["postgresqlSecretName"]


def problems(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What is wrong with the manifests of a rendered chart."""
    held = [one for one in manifests if one]
    for one in held:
        name = f"{one['kind']} {one['metadata']['name']}"
        try:
            kubernetes_validate.validate(_without_nulls(one), kubernetes_validate.latest_version(), strict=False)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {error.message}"
        if one["kind"] == "Secret" and "postgresql-password" in (one.get("data") or {}):
            yield f"{name}: the database gets a password that the chart made up, not that of {PASSWORD}"
    containers = [c for one in held if one["kind"] in ("Deployment", "StatefulSet") for c in _containers(one)]
    yield from _of_passwords(containers)
    (ours,) = VALUES["dagster-user-deployments"]["deployments"]
    image = f"{ours['image']['repository']}:{ours['image']['tag']}"
    servers = [c for c in containers if c["image"] == image]
    if len(servers) != 1:
        yield f"{len(servers)} containers run {image}"
    for server in servers:
        if server["args"][-2:] != ours["dagsterApiGrpcArgs"] or str(ours["port"]) not in server["args"]:
            yield f"{server['name']}: it is started by {server['args']}"
        env = {entry["name"]: entry.get("value") for entry in server["env"]}
        if missing := [e for e in ours["env"] if env.get(e["name"]) != e["value"]]:
            yield f"{server['name']}: it lacks {missing}"
    with_s3 = sum(S3 in str(c.get("envFrom")) for c in containers)
    if with_s3 < 3:
        yield f"{with_s3} containers have the keys of the bucket, which code location, daemon and webserver read"
    texts = [one["data"]["dagster.yaml"] for one in held if "dagster.yaml" in (one.get("data") or {})]
    if len(texts) != 1:
        yield f"{len(texts)} instance files"
    for text in texts:
        yield from _of_instance(text)


def _without_nulls(value: Any) -> Any:
    """The manifest as the cluster takes it: a key without a value is none."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _containers(manifest: Manifest) -> list[dict[str, Any]]:
    return manifest["spec"]["template"]["spec"]["containers"]


def _of_passwords(containers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    found = 0
    for container in containers:
        for entry in container.get("env") or ():
            if entry["name"] in ("DAGSTER_PG_PASSWORD", "POSTGRES_PASSWORD"):
                found += 1
                secret = entry["valueFrom"]["secretKeyRef"]["name"]
                if secret != PASSWORD:
                    yield f"{container['name']}: its password of the database is that of {secret}, not {PASSWORD}"
    if not found:
        yield "no container has a password of the database"


def _of_instance(text: str) -> Iterator[str]:
    """The instance file, read by the Dagster that is installed here."""
    with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, {"DAGSTER_PG_PASSWORD": "none"}):
        Path(home, "dagster.yaml").write_text(text)
        try:
            settings, _ = dagster_instance_config(home)
        except DagsterInvalidConfigError as error:
            yield f"Dagster refuses the instance file: {error}"
            return
    launcher, wanted = settings["run_launcher"], VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    config = launcher["config"]
    facts = {
        "the run launcher": (launcher["class"], VALUES["runLauncher"]["type"]),
        "the runs' secrets": (config.get("env_secrets"), [one["name"] for one in wanted["envSecrets"]]),
        "the runs' variables": (config.get("env_vars"), wanted["envVars"]),
        "the runs' memory and cores": (config.get("resources"), wanted["resources"]),
        "the runs' user": (config.get("security_context"), wanted["securityContext"]),
        "the runs' service account": (config.get("service_account_name"), VALUES["serviceAccount"]["name"]),
        "the pools' limit": (
            settings.get("concurrency", {}).get("pools", {}).get("default_limit"),
            VALUES["concurrency"]["pools"]["defaultLimit"],
        ),
        "the runs' limits": (
            settings.get("concurrency", {}).get("runs", {}).get("tag_concurrency_limits"),
            VALUES["concurrency"]["runs"]["tagConcurrencyLimits"],
        ),
        "the run coordinator": (settings.get("run_coordinator", {}).get("class"), "QueuedRunCoordinator"),
    }
    yield from (
        f"{what}: {found}, and the values say {asked}" for what, (found, asked) in facts.items() if found != asked
    )


if __name__ == "__main__":
    told = list(problems(list(yaml.safe_load_all(Path(sys.argv[1]).read_text()))))
    print("\n".join(told) or "nothing is wrong")
    sys.exit(bool(told))
