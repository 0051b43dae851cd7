"""What dagster-k8s sends to Kubernetes for the first step of each stage, recorded by an API server that refuses it.

Run by `test_kubernetes` in a process of its own, with the executor `kubernetes`; prints stage → Job as JSON.
"""

import json
import os
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher import LaunchRunContext

from curvas_assets.definitions import build_definitions
from curvas_assets.stages.table import STAGES
from curvas_assets.study import load_study
from curvas_assets_tests.orchestration.services import ROOT

IMAGE = "registry.example.org/curvas-assets:1a2b3c-cuda"
NAMESPACE = "study"
PATIENTS = ("UKCHLL001", "UKCHLL003")
WHOLE_RUN = "the run itself"


class Recorder(BaseHTTPRequestHandler):
    """Keeps each Job it is sent, and answers that it may not be made."""

    sent: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = json.dumps({"kind": "Status", "status": "Failure", "code": 403, "message": "recorded"}).encode()
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def launcher_config(values: dict[str, Any], kubeconfig: Path) -> dict[str, Any]:
    """The run launcher's configuration that the chart makes of its values."""
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    return {
        "service_account_name": values["serviceAccount"]["name"],
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
        "dagster_home": "/opt/dagster/dagster_home",
        "job_namespace": NAMESPACE,
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig),
        "image_pull_policy": launcher["imagePullPolicy"],
        "env_secrets": [secret["name"] for secret in launcher["envSecrets"]],
        "env_vars": launcher["envVars"],
        "resources": launcher["resources"],
        "security_context": launcher["securityContext"],
        "run_k8s_config": {
            "pod_spec_config": launcher["runK8sConfig"]["podSpecConfig"],
            "job_spec_config": launcher["runK8sConfig"]["jobSpecConfig"],
        },
    }


def main() -> None:
    values = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    study = load_study(os.environ["CURVAS_STUDY"])
    definitions = build_definitions(study, executor="kubernetes")
    repository = ReconstructableRepository.for_module(
        "curvas_assets.definitions", "defs", working_directory=None, container_image=IMAGE
    )
    with tempfile.TemporaryDirectory() as home:
        kubeconfig = Path(home, "kubeconfig")
        kubeconfig.write_text(yaml.safe_dump(_cluster(server.server_port)))
        launcher = {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher_config(values, kubeconfig)}
        Path(home, "dagster.yaml").write_text(
            yaml.safe_dump({"telemetry": {"enabled": False}, "run_launcher": launcher})
        )
        made: dict[str, dict[str, Any]] = {}
        with dg.DagsterInstance.from_config(home) as instance:
            instance.add_dynamic_partitions("patient", list(PATIENTS))
            instance.add_dynamic_partitions("test_patient", [PATIENTS[1]])
            graph = definitions.resolve_asset_graph()
            for stage, (asset, *_) in STAGES.items():
                partitions = graph.get(dg.AssetKey(asset)).partitions_def
                keys = partitions.get_partition_keys(dynamic_partitions_store=instance) if partitions else [None]
                job = repository.get_reconstructable_job(stage)
                tags = {"dagster/partition": str(keys[0])} if keys[0] else {}
                dg.execute_job(job, instance=instance, tags=tags)
                made[stage] = Recorder.sent.pop()
            run = instance.get_runs(limit=1)[0]._replace(job_code_origin=job.get_python_origin())
            try:
                instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
            except Exception:
                made[WHOLE_RUN] = Recorder.sent.pop()
    server.shutdown()
    print(json.dumps(made))


def _cluster(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }


if __name__ == "__main__":
    main()
