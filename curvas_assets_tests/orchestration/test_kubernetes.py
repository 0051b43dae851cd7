"""Claims proved here, on the Jobs that dagster-k8s sends to a (refusing) Kubernetes API for the first step of each stage.

- Each Job is valid by Kubernetes' own schema, and a wrong one is not.
- Training and prediction ask for one GPU, a GPU node and tolerate its taint; no other step does, nor the run's own pod.
- Memory, cores, `/dev/shm` and the node's GPU memory follow the study's settings; scratch is bounded, at most half of 100 GB.
- Image, service account and the S3 secret are the deployment's; no key stands in a manifest.
"""

import base64
import json
import os
import subprocess
import sys
import zlib
from typing import Any

import kubernetes_validate
import pytest
import yaml

from curvas_assets.geometry import Grid
from curvas_assets.orchestration.execution import Needs, StageNeeds
from curvas_assets.segmentation.loading import Loading, plan_loading
from curvas_assets.segmentation.prediction import estimate_steps
from curvas_assets.stages.table import STAGES
from curvas_assets.study import Study, load_study
from curvas_assets_tests.orchestration import manifests
from curvas_assets_tests.orchestration.services import ROOT

VERSIONS = ("1.30", kubernetes_validate.latest_version())
GPU_STAGES = {"train_models", "predict", "predict_variants"}
ONYXIA_DISK_GIB = 100e9 / 2**30


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Stage → Job, of the published study on GPUs of 24 GB with 4 loader processes."""
    study = tmp_path_factory.mktemp("study") / "study.yaml"
    raw = load_study("curvas").model_dump(mode="json")
    raw["plans"]["gpu_memory_gb"], raw["training"]["loader_workers"] = 24, 4
    raw["cheap_ensembles"]["flips"] = ["anno1_init112233_foldall"]
    study.write_text(yaml.safe_dump(raw))
    environment = {
        **os.environ,
        "CURVAS_STUDY": str(study),
        "CURVAS_EXECUTOR": "kubernetes",
        "AWS_SECRET_ACCESS_KEY": "markedsecret",
        "AWS_SESSION_TOKEN": "markedtoken",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", manifests.__name__]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_every_stage_has_a_job_that_kubernetes_accepts(jobs):
    assert set(jobs) == {*STAGES, manifests.WHOLE_RUN}
    for version in VERSIONS:
        for job in jobs.values():
            kubernetes_validate.validate(job, version, strict=True)
    wrong = json.loads(json.dumps(jobs["predict"]))
    wrong["spec"]["template"]["spec"]["nodeselector"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_gpus_are_asked_for_where_they_are_used_and_nowhere_else(jobs):
    for stage, job in jobs.items():
        pod, container = _pod(job)
        gpu = stage in GPU_STAGES
        assert container["resources"]["limits"].get("nvidia.com/gpu") == ("1" if gpu else None), stage
        assert pod.get("nodeSelector") == ({"nvidia.com/gpu.present": "true"} if gpu else None), stage
        tolerated = [taint["key"] for taint in pod.get("tolerations", [])]
        assert tolerated == (["nvidia.com/gpu"] if gpu else []), stage
        assert ("affinity" in pod) is gpu
        shared = [v["emptyDir"] for v in pod.get("volumes", []) if v["name"] == "shm"]
        assert shared == ([{"medium": "Memory", "sizeLimit": "3Gi"}] if gpu else [])
        assert ("/dev/shm" in {m["mountPath"] for m in container["volumeMounts"]}) is gpu
    (rule,) = _pod(jobs["train_models"])[0]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert rule == {
        "matchExpressions": [{"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["22800"]}],
    }


def test_needs_follow_the_studys_settings_and_differ_by_stage(jobs):
    asked = {stage: _pod(job)[1]["resources"]["requests"] for stage, job in jobs.items()}
    assert asked["train_models"]["cpu"] == "6"  # four of them load
    assert asked["train_models"]["memory"] == f"{(16 + 10 + 3) * 1024}Mi"
    heavy = ("train_models", "predict", "build_ensembles", "score_patients")
    assert len({tuple(sorted(asked[stage].items())) for stage in heavy}) == len(heavy)
    more = load_study("curvas").model_dump(mode="json")
    more["organs"]["spleen"], more["annotators"] = (
        4,
        [*more["annotators"], {"name": "anno4", "file": "annotation_4.nii.gz"}],
    )
    few, many = StageNeeds.of(load_study("curvas")), StageNeeds.of(Study.model_validate(more))
    assert many.prediction.memory_gib > few.prediction.memory_gib
    assert many.scoring.memory_gib > few.scoring.memory_gib
    organs = {f"organ{label}": label for label in range(1, 65)}
    large = StageNeeds.of(load_study("curvas").model_copy(update={"organs": organs})).preview
    assert (large.memory_gib, large.hours) == (few.preview.memory_gib + 3, pytest.approx(0.2 * 65 / 9))
    assert StageNeeds.of(load_study("phantom")).training.hours < few.training.hours == 24


def test_scoring_asks_for_what_a_patients_predictors_take():
    raw = load_study("curvas").model_dump(mode="json")

    def asked(**parts: Any) -> float:
        return StageNeeds.of(Study.model_validate(raw | parts)).scoring.memory_gib

    assert asked() == 4 + 3 + 1  # 13 predictors × (3 organs and the background × 0.01 + 0.035)
    organs = {**raw["organs"], **{f"organ{c}": c for c in range(4, 9)}}
    assert asked(seeds=list(range(15)), organs=organs) == 4 + 3 + 7  # 49 × (9 × 0.01 + 0.035) = 6.1
    validated = {
        "sets": {"train": raw["sets"]["train"]},
        "groups": {},
        "in_distribution_group": None,
        "folds": [0, 1, 2, 3, 4],
        "seeds": list(range(5)),
    }
    assert asked(organs=organs, **validated) == 4 + 3 + 3  # one fold's models predict a patient: 19 × 0.125 = 2.4


def _plan(wanted: int | str, needs: Needs, batch_bytes: int, cores: int) -> Loading:
    """How a training loads in a pod that has the memory its stage asks for, on a node of so many cores."""
    return plan_loading(
        wanted,
        "cuda",
        batch_bytes,
        cores=cores,
        memory_bytes=round(needs.memory_gib * 2**30),
        shared_bytes=needs.shared_memory_gib * 2**30,
    )


@pytest.mark.parametrize(("gpu_memory_gb", "batch_mib"), [(None, 25), (24, 77), (80, 260)])
def test_a_training_asks_for_what_its_loader_processes_take(gpu_memory_gb, batch_mib):
    raw = load_study("curvas").model_dump(mode="json")
    raw["plans"]["gpu_memory_gb"] = gpu_memory_gb
    for wanted, cpus, cores, workers in (("auto", 6, 6, 5), ("auto", 6, 64, 12), (3, 5, 5, 3), (1, 4, 4, 1)):
        raw["training"]["loader_workers"] = wanted
        needs = StageNeeds.of(Study.model_validate(raw)).training
        assert needs.cpus == cpus
        plan = _plan(wanted, needs, batch_mib << 20, cores)
        assert (plan.workers, plan.through) == (workers, "shared memory")
    raw["training"] |= {"loader_workers": "auto", "device": "cpu"}
    assert StageNeeds.of(Study.model_validate(raw)).training.cpus == 4


def test_several_channels_ask_for_what_they_take():
    raw = load_study("curvas").model_dump(mode="json", exclude={"image", "channels"})
    raw["evaluation"] = {name: of for name, of in raw["evaluation"].items() if name != "region"}

    def asked(*normalisations: str) -> StageNeeds:
        channels = [
            {"name": f"C{number}", "file": f"c{number}.nii.gz", "normalisation": one}
            for number, one in enumerate(normalisations)
        ]
        return StageNeeds.of(Study.model_validate(raw | {"channels": channels}))

    one, ct, four = StageNeeds.of(load_study("curvas")), asked("ct"), asked(*["zscore"] * 4)
    assert ct == one
    grid = Grid.with_voxels((866, 512, 512), (1.0, 0.8, 0.8))
    for many, channels, whole in ((asked("ct", "none"), 2, False), (asked("zscore"), 1, True), (four, 4, True)):
        more = [
            estimate_steps(grid, (1.0, 0.8, 0.8), 4, channels=of, whole=seen).preparing / 2**30
            for of, seen in ((1, False), (channels, whole))
        ]
        for before, after in ((one.prediction, many.prediction), (one.dataset, many.dataset)):
            assert after.memory_gib - before.memory_gib >= more[1] - more[0] - 1  # which a single CT leaves free
    assert four.intake.memory_gib == one.intake.memory_gib + 6
    batch = round(25 * (6.3 + 3 * 4) / 6.3)  # MiB
    plan = _plan("auto", four.training, batch << 20, 64)
    assert (plan.workers, plan.through) == (12, "shared memory")


def test_scratch_is_a_bounded_volume_of_its_own(jobs):
    for stage in STAGES:
        pod, container = _pod(jobs[stage])
        (scratch,) = [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "scratch"]
        assert 2 * int(scratch.removesuffix("Gi")) <= ONYXIA_DISK_GIB, stage
        mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        env = {e["name"]: e.get("value") for e in container["env"]}
        assert env["CURVAS_SCRATCH"] == mounts["scratch"]


def test_the_deployment_says_image_account_and_secret_and_no_key_is_in_a_manifest(jobs):
    for stage, job in jobs.items():
        pod, container = _pod(job)
        assert container["image"] == manifests.IMAGE, stage
        assert pod["serviceAccountName"] == "curvas"
        assert container["envFrom"] == [{"secretRef": {"name": "curvas-s3"}}]
        assert container["securityContext"]["runAsNonRoot"] is True
        packed = [e["value"] for e in container["env"] if e["name"].startswith("DAGSTER_COMPRESSED")]
        told = json.dumps(job) + "".join(zlib.decompress(base64.b64decode(value)).decode() for value in packed)
        assert "marked" not in told


def _pod(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container
