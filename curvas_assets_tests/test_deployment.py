"""Claims proved here.

- The lock file pins every package that the project and its profiles ask for, in the range they ask for.
- The image installs all that is in the lock file and nothing else, and runs as the user that the cluster expects.
- The number of GPU steps at a time is a setting of the local deployment.
"""

import re
import tomllib
from pathlib import Path

import dagster as dg
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from curvas_assets.local.deployment import LocalDeployment
from curvas_assets.orchestration.execution import GPU_POOL

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


def test_the_image_installs_the_lock_file_and_runs_as_nobody_special():
    recipe = (ROOT / "deploy" / "Dockerfile").read_text()
    first, rest = re.findall(r"grep -v?E '(\^\([^']+)' requirements\.lock", recipe)
    assert first == rest  # what is installed first, and what is left for later, are the two halves
    lines = (ROOT / "requirements.lock").read_text().split()
    assert [line.partition("==")[0] for line in lines if re.match(first, line)] == ["torch", "torchvision"]
    (user,) = re.findall(r"^USER (\d+)$", recipe, re.MULTILINE)
    values = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text())
    assert int(user) == values["runLauncher"]["config"]["k8sRunLauncher"]["securityContext"]["runAsUser"] > 0


def test_gpu_steps_at_a_time_are_a_setting(tmp_path):
    deployment = LocalDeployment(tmp_path, study="phantom")
    deployment.set_gpu_slots(3)
    with dg.DagsterInstance.from_config(str(deployment.home)) as instance:
        assert instance.event_log_storage.get_concurrency_info(GPU_POOL).slot_count == 3
