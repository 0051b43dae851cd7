"""Claims proved here.

- The lock file pins every package that the project and its profiles ask for, in the range they ask for.
- The oldest Python that the package asks for is the one that the documents name, and takes every pinned package.
- The image installs all that is in the lock file and nothing else, and runs as the user that the cluster expects.
- Built without a target, the image is the platform's; its base can be replaced, and the submission's carries no Dagster settings.
- Manifests that Helm makes of the chart's values are judged: an instance file that Dagster refuses, another password for the
  database, keys of the bucket that are missing, another image, and settings of runs that were lost are each named.
- The workflow renders the chart of the Dagster that the lock file pins, as the values' head tells people to.
- The number of GPU steps at a time is a setting of the local deployment.
"""

import copy
import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import dagster as dg
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from curvas_assets.local.deployment import LocalDeployment
from curvas_assets.orchestration.execution import GPU_POOL
from curvas_assets_tests.orchestration.rendered_chart import VALUES, problems

ROOT = Path(__file__).resolve().parents[1]


def _pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_lock_file_has_what_the_project_and_its_profiles_ask_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {"celery", "kubernetes", "postgres"} <= set(extras)
    pins = _pins()
    for asked in map(Requirement, [*project["dependencies"], *(one for extra in extras.values() for one in extra)]):
        assert pins[canonicalize_name(asked.name)] in asked.specifier, asked


def test_one_oldest_python_is_told_and_takes_the_lock_file():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (oldest,) = re.findall(r">=([\d.]+)", asked)
    for page in ("README.md", "CONTRIBUTING.md", "Makefile", ".ci/run", "deploy/Dockerfile"):
        text = (ROOT / page).read_text().replace("\n# ", " ")
        assert set(re.findall(r"Python (3\.[\d.]+\d)", text)) == {oldest}, page
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in (ROOT / "Makefile").read_text()
    needs = {name: distribution(name).metadata["Requires-Python"] for name in _pins()}
    assert [name for name, need in needs.items() if need and oldest not in SpecifierSet(need)] == []


def test_the_image_installs_the_lock_file_and_runs_as_nobody_special():
    recipe = (ROOT / "deploy" / "Dockerfile").read_text()
    first, rest = re.findall(r"grep -v?E '(\^\([^']+)' requirements\.lock", recipe)
    assert first == rest  # what is installed first, and what is left for later, are the two halves
    lines = (ROOT / "requirements.lock").read_text().split()
    assert [line.partition("==")[0] for line in lines if re.match(first, line)] == ["torch", "torchvision"]
    (user,) = set(re.findall(r"^USER (\d+)$", recipe, re.MULTILINE))
    values = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text())
    assert int(user) == values["runLauncher"]["config"]["k8sRunLauncher"]["securityContext"]["runAsUser"] > 0


def test_the_images_of_one_recipe():
    recipe = (ROOT / "deploy" / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", recipe, re.MULTILINE)
    assert stages == [("$BASE", "installed"), ("installed", "submission"), ("installed", "platform")]
    submission = recipe[recipe.index("AS submission") : recipe.index("AS platform")]
    assert "DAGSTER" not in submission
    assert "COPY --from=exported . /opt/submission" in submission
    assert '"curvas_assets.submission", "--models", "/opt/submission"' in submission
    assert re.search(r"^ARG BASE=\S+:3\.11-slim", recipe, re.MULTILINE)


def _container(name: str, image: str = "postgres", *, s3: bool = True) -> dict:
    reference = {"secretKeyRef": {"name": "curvas-postgres", "key": "postgresql-password"}}
    env = [{"name": "POSTGRES_PASSWORD" if image == "postgres" else "DAGSTER_PG_PASSWORD", "valueFrom": reference}]
    return {"name": name, "image": image, "env": env, "envFrom": [{"secretRef": {"name": "curvas-s3"}}] if s3 else []}


def _deployment(name: str, container: dict) -> dict:
    labels = {"app": name}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"selector": {"matchLabels": labels}, "template": pod}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def _rendered() -> tuple[list[dict], dict]:
    """Manifests as Helm makes them of the values, as few as are judged; and the instance file in them."""
    (ours,) = VALUES["dagster-user-deployments"]["deployments"]
    server = _container("server", f"{ours['image']['repository']}:{ours['image']['tag']}")
    server["args"] = ["dagster", "api", "grpc", "-p", str(ours["port"]), *ours["dagsterApiGrpcArgs"]]
    server["env"] += ours["env"]
    wanted, coordinator = VALUES["runLauncher"]["config"]["k8sRunLauncher"], VALUES["dagsterDaemon"]["runCoordinator"]
    instance = {
        "run_launcher": {
            "module": "dagster_k8s",
            "class": VALUES["runLauncher"]["type"],
            "config": {
                "load_incluster_config": True,
                "service_account_name": VALUES["serviceAccount"]["name"],
                "env_secrets": [one["name"] for one in wanted["envSecrets"]],
                "env_vars": wanted["envVars"],
                "resources": wanted["resources"],
                "security_context": wanted["securityContext"],
            },
        },
        "run_coordinator": coordinator["config"]["customRunCoordinator"],
        "concurrency": {
            "pools": {"default_limit": VALUES["concurrency"]["pools"]["defaultLimit"], "granularity": "op"},
            "runs": {
                "max_concurrent_runs": 10,
                "tag_concurrency_limits": VALUES["concurrency"]["runs"]["tagConcurrencyLimits"],
            },
        },
    }
    manifests = [
        _deployment("server", server),
        _deployment("daemon", _container("daemon", "dagster")),
        _deployment("webserver", _container("webserver", "dagster")),
        _deployment("database", _container("database", s3=False)),
    ]
    return copy.deepcopy(manifests), copy.deepcopy(instance)


def _judged(manifests: list[dict], instance: dict) -> list[str]:
    text = yaml.safe_dump(instance)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "i"}, "data": {"dagster.yaml": text}}
    return list(problems([*manifests, config]))


def test_manifests_as_they_should_be_are_accepted():
    assert _judged(*_rendered()) == []


def _first(manifests: list[dict], number: int) -> dict:
    return manifests[number]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m, i: i["run_coordinator"]["config"].update(max_concurrent_runs=-1), "Dagster refuses"),
        (lambda m, i: i["concurrency"].pop("runs"), "the runs' limits"),
        (lambda m, i: i["concurrency"].pop("pools"), "the pools' limit"),
        (lambda m, i: i["run_launcher"]["config"].pop("env_secrets"), "the runs' secrets"),
        (lambda m, i: i["run_launcher"]["config"]["security_context"].pop("runAsUser"), "the runs' user"),
        (lambda m, i: _first(m, 0).update(image="other:1"), "0 containers run REGISTRY/curvas-assets:TAG"),
        (lambda m, i: _first(m, 0).update(args=["dagster"]), "it is started by"),
        (lambda m, i: _first(m, 0)["env"].pop(), "server: it lacks"),
        (lambda m, i: _first(m, 1).update(envFrom=[]), "have the keys of the bucket"),
        (lambda m, i: _first(m, 3)["env"][0]["valueFrom"]["secretKeyRef"].update(name="own"), "that of own"),
        (lambda m, i: m[2]["spec"].pop("selector"), "Deployment webserver"),
    ],
)
def test_manifests_that_would_not_run_are_named(spoil, says):
    manifests, instance = _rendered()
    spoil(manifests, instance)
    assert any(says in told for told in _judged(manifests, instance))


def test_the_workflow_renders_the_pinned_chart_as_people_are_told_to():
    workflow = yaml.safe_load((ROOT / ".github/workflows/image-and-chart.yaml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    head = (ROOT / "deploy/kubernetes/values.yaml").read_text().partition("global:")[0]
    assert f"--version {_pins()['dagster']} -f deploy/kubernetes/values.yaml" in head
    assert any("--version $(grep -oP '^dagster==\\K.*' requirements.lock)" in step for step in steps)
    assert f"python -m {problems.__module__} rendered.yaml" in steps


def test_gpu_steps_at_a_time_are_a_setting(tmp_path):
    deployment = LocalDeployment(tmp_path, study="phantom")
    deployment.set_gpu_slots(3)
    with dg.DagsterInstance.from_config(str(deployment.home)) as instance:
        assert instance.event_log_storage.get_concurrency_info(GPU_POOL).slot_count == 3
