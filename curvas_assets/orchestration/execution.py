"""What each stage needs to run, and what "gpu" and "large memory" mean. No other module says this.

A step says what it needs; the deployment says where to find that. Pools limit across runs on one instance; the queue
and Kubernetes tags act when the executor is Celery or Kubernetes and are inert otherwise. `CURVAS_EXECUTOR` picks the
executor.
"""

from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Literal

import dagster as dg

from curvas_assets.orchestration.environment import deployment, variable
from curvas_assets.predictors import KEPT_APART
from curvas_assets.study import Study

GPU_POOL = "gpu"
EXECUTORS = ("local", "celery", "kubernetes", "in_process", "multiprocess")
"""`local` and `multiprocess` are the same: a process a step, on this machine."""
SCRATCH_MOUNT = "/scratch"
LARGE_MEMORY_GIB = 16
"""Memory of a training beside its loaders, GiB. On a CPU, batches of 2 × 128³ took 10.2 with nnU-Net's usual network, whose
activations are in this memory there, and 2.6 with a small one: on a GPU, which was not measured, that and CUDA's own."""
WEIGHTS_GIB = {"ExperimentPlanner": 0.12}
LARGE_WEIGHTS_GIB = 0.55
"""Weights of one network, GiB: nnU-Net's plain network of six stages has 31 M parameters, its residual encoder 102 M in six
stages and 142 M in seven (counted). Of each the training keeps `segmentation.snapshots.most_kept` in memory."""
AUTO_LOADERS_CPUS = 6
"""Cores that a training asks for if the number of its loader processes is `auto`: for 5 of them, and the training itself. On
a node with more cores it starts up to 12; if it asked for them all, its pod would wait for such a node."""
PREPROCESSING_GIB = 8
"""Memory of a step that preprocesses scans one after the other, GiB. 2.9 measured for 866 × 512 × 512 voxels resampled from
1 × 0.8 × 0.8 to 1.1 × 0.8 × 0.8 mm (`benchmarks.intake --full`): 0.9 of process, 2 that grow with the voxels of the scan and
of the target grid. So three times as many voxels fit. The sizes are known where a step runs, not where it is declared: a
scan that needs more is refused there with what it needs (`segmentation.preprocessing.estimate_memory`)."""
KEPT_LABELS_GIB = 1.3
"""What that step takes besides for each annotator whose labels a dataset keeps, GiB: int16 for each voxel of the target grid,
of three times the voxels of a scan of full size."""
STAPLE_GIB = 2
"""Memory that STAPLE takes beside scoring, GiB: 0.9 measured for an organ in a box of 300 × 300 × 280 voxels and five annotators."""
REPORT_GIB = 4
"""Memory of the report's step, GiB: 0.6 measured for 65 patients (`benchmarks.report`), and one label map of full size, 0.2."""
PLANNED_GPU_GB = {"nnUNetPlannerResEncL": 24, "nnUNetPlannerResEncXL": 40}
"""GPU memory for which nnU-Net's planners plan if they are not told, GB; the others plan for 8."""
BYTES_A_VOXEL = 6.3
"""Of a training batch: float32, and int16 labels for each output of the network."""
SOFT_BYTES_A_VOXEL = 4.6
"""Of each class in the targets of soft labels: float32 for each output of the network, of which each has an eighth of the
voxels of the one before."""
BATCH_GIB_A_GB = 0.0031
"""Size of a training batch as loader processes pass it, GiB per GB of GPU memory for which it is planned: 25 MiB (2 × 128³
voxels, measured) for 8 GB."""


@dataclass(frozen=True)
class Needs:
    """What one step of a stage asks of the machine it runs on.

    Args:
        cpus: cores it keeps busy.
        memory_gib: memory it may use, GiB; a step that uses more is killed.
        hours: how long one partition may take, h; used to warn in time that keys expire.
        scratch_gib: disk it may use while it works, GiB.
        gpus: whole GPUs. A step with one stands in the pool and the queue `gpu`.
        gpu_memory_gb: memory each of those must have, GB; None if any will do.
        shared_memory_gib: size of `/dev/shm`, GiB, where loader processes pass arrays; part of the memory.
    """

    cpus: int
    memory_gib: float
    hours: float
    scratch_gib: int
    gpus: int = 0
    gpu_memory_gb: float | None = None
    shared_memory_gib: int = 0

    @property
    def queue(self) -> Literal["cpu", "gpu"]:
        return "gpu" if self.gpus else "cpu"

    @property
    def pool(self) -> str | None:
        return GPU_POOL if self.gpus else None

    @property
    def op_tags(self) -> dict[str, Any]:
        """Tags of the step's op: the Celery queue, and what its pod is made of. Job tags do not reach backfills."""
        return {
            "curvas/needs": self.queue,
            "dagster-celery/queue": self.queue,
            "dagster-k8s/config": {"container_config": self._container(), "pod_spec_config": self._pod()},
        }

    def _container(self) -> dict[str, Any]:
        memory = f"{round((self.memory_gib + self.shared_memory_gib) * 1024)}Mi"
        held = {"memory": memory, "ephemeral-storage": f"{self.scratch_gib + 1}Gi"}  # 1: logs and what Python writes
        mounts = [{"name": "scratch", "mount_path": SCRATCH_MOUNT}]
        if self.shared_memory_gib:
            mounts.append({"name": "shm", "mount_path": "/dev/shm"})
        return {
            "resources": {
                "requests": {"cpu": str(self.cpus), **held},
                "limits": held | ({"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}),
            },
            "env": [
                {"name": variable("scratch"), "value": SCRATCH_MOUNT},
                {"name": variable("scratch_gib"), "value": str(self.scratch_gib)},
            ],
            "volume_mounts": mounts,
        }

    def _pod(self) -> dict[str, Any]:
        volumes: list[dict[str, Any]] = [{"name": "scratch", "empty_dir": {"size_limit": f"{self.scratch_gib}Gi"}}]
        if self.shared_memory_gib:
            shared = {"medium": "Memory", "size_limit": f"{self.shared_memory_gib}Gi"}
            volumes.append({"name": "shm", "empty_dir": shared})
        pod: dict[str, Any] = {"volumes": volumes}
        if self.gpus:
            pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
            labels = deployment().gpu_node_labels()
            if labels:
                pod["node_selector"] = labels
            if labels and self.gpu_memory_gb is not None:
                enough = {
                    "key": "nvidia.com/gpu.memory",
                    "operator": "Gt",
                    "values": [f"{self.gpu_memory_gb * 950:.0f}"],
                }
                terms = [{"match_expressions": [enough]}]  # MiB; a "24 GB" GPU reports a little less
                pod["affinity"] = {
                    "node_affinity": {
                        "required_during_scheduling_ignored_during_execution": {"node_selector_terms": terms}
                    }
                }
        return pod


CHANNEL_GIB = 1.7
"""What each channel of a scan beyond the first takes, GiB: float32 of 866 × 512 × 512 voxels as they are read, and on the target grid;
or, at intake, of twice the voxels."""
WHOLE_SCAN_GIB = 3.6
"""What a normalisation that looks at the whole scan takes, GiB: at that size, 17 bytes a voxel
(`segmentation.preprocessing.NORMALISING_BYTES`)."""
MOST_CLASSES_MEASURED = 9
"""Eight organs and the background: up to here, hours and what is held beside the voxels were measured; beyond, they grow with them."""


@dataclass(frozen=True)
class StageNeeds:
    """What each stage of one study needs."""

    table: Needs
    intake: Needs
    dataset: Needs
    training: Needs
    prediction: Needs
    ensembling: Needs
    scoring: Needs
    preview: Needs
    report: Needs

    @classmethod
    def of(cls, study: Study) -> "StageNeeds":
        """Needs scaled by the study's settings: annotators, classes, channels, loader processes, GPU memory, epochs.

        Hours are the study's own (its report, table 4: a training 24 h, a volume 1 h, an ensemble 2 h, a patient's
        scores 1 h) and upper bounds here. Two steps of the greediest stage fit on Onyxia's 100 GB of disk.
        """
        plans, training = study.plans, study.training
        annotators, classes = len(study.annotators), len(study.class_names)
        longer = max(1.0, classes / MOST_CLASSES_MEASURED)
        workers, batch_gib = training.most_loader_workers, _batch_gib(study)
        gpu: dict[str, Any] = {
            "gpus": 1,
            "gpu_memory_gb": plans.gpu_memory_gb,
            # Each loader process is four batches ahead; a training whose batches fill more takes pipes, which are slower.
            "shared_memory_gib": 1 + ceil(5 * workers * batch_gib),
        }
        full_training = 300 * 250
        return cls(
            table=Needs(cpus=1, memory_gib=4, hours=0.1, scratch_gib=2),
            # A CT of 866 × 512 × 512 takes 0.4 GiB as int16, an annotation 0.2: 1.3 measured with three. Twice the voxels,
            # and a CT that is stored as float64 (1.7), fit.
            intake=Needs(cpus=2, memory_gib=3 + 0.5 * annotators + ceil(_further_gib(study)), hours=0.1, scratch_gib=5),
            dataset=Needs(
                cpus=2,
                memory_gib=PREPROCESSING_GIB + _kept_labels_gib(study) + ceil(_further_gib(study) + _whole_gib(study)),
                hours=2,
                scratch_gib=40,
            ),
            training=Needs(
                cpus=AUTO_LOADERS_CPUS if training.loader_workers == "auto" and workers else max(4, 2 + workers),
                memory_gib=LARGE_MEMORY_GIB
                + ceil(workers * (1 + 20 * batch_gib))  # twice what they are estimated to take
                + ceil(_kept_gib(study)),
                hours=24 * training.epochs * training.iterations_per_epoch / full_training,
                scratch_gib=40,
                **gpu,
            ),
            # Logits of every class at full size, beside the scan.
            prediction=Needs(
                cpus=4,
                memory_gib=6 + 2.5 * classes + ceil(_further_gib(study) + _whole_gib(study)),
                hours=longer,
                scratch_gib=20,
                **gpu,
            ),
            # Streamed: with nine members, 1.6 GiB measured on two cores (`benchmarks.volumes`).
            ensembling=Needs(cpus=2, memory_gib=max(8, ceil(_streamed_gib(study))), hours=2 * longer, scratch_gib=20),
            scoring=Needs(
                cpus=2,
                memory_gib=4
                + annotators
                + ceil(_counted_gib(study) + STAPLE_GIB * (study.evaluation.reference == "staple")),
                hours=longer,
                scratch_gib=5,
            ),
            # Streamed: measured at full size with three annotators, 0.6 GiB (docs/sharing.md). Beyond the classes that were
            # measured, 16 slices of 512 × 512 voxels of each class's probabilities beside what is made of them.
            preview=Needs(
                cpus=2,
                memory_gib=3 + ceil(0.05 * max(0, classes - MOST_CLASSES_MEASURED)),
                hours=0.2 * longer,
                scratch_gib=5,
            ),
            report=Needs(cpus=2, memory_gib=REPORT_GIB, hours=0.5, scratch_gib=5),
        )


def _further_gib(study: Study) -> float:
    """What the channels beyond the first take, GiB."""
    return CHANNEL_GIB * (len(study.images) - 1)


def _whole_gib(study: Study) -> float:
    """What normalisations take of which one looks at the whole scan, GiB; channels are normalised one after the other."""
    return WHOLE_SCAN_GIB * any(channel.normalisation in ("zscore", "rescale_to_0_1") for channel in study.images)


def _kept_gib(study: Study) -> float:
    """Weights from which a training chooses its snapshots, GiB."""
    from curvas_assets.segmentation.snapshots import most_kept  # its package is not needed to start

    return most_kept(study.training.snapshots) * WEIGHTS_GIB.get(study.plans.planner, LARGE_WEIGHTS_GIB)


def _streamed_gib(study: Study) -> float:
    """What the ensembles of one pass over their members hold, GiB, for slices of 512 × 512 voxels: 16 slices of codes of each
    member, and of probabilities in sums and means of each ensemble. Next to nothing with few classes.
    """
    classes, members = len(study.class_names), max((len(study.members(one)) for one in study.ensemble_ids), default=0)
    if classes <= MOST_CLASSES_MEASURED:
        return 0
    return 2 + classes * (0.008 * members + 0.05 * len(study.ensemble_ids))


def _counted_gib(study: Study) -> float:
    """What one pass over a patient holds of all its predictors, GiB, for slices of 512 × 512 voxels.

    Of each predictor: 16 slices of codes (0.008 for each organ), how often each code occurs by how up to four annotators
    answer (up to 0.002 for each organ), and entropies, labels, confidences and maps (0.035; 0.005 more where the tumour's
    probability is compared with cuts). Of a variant, which is a member only, the codes and no more than these maps. With 13
    predictors, 3 organs and 3 annotators the whole step took 1.5 GiB, measured on two cores (`benchmarks.scoring`).
    """
    # Under cross-validation, a fold's models predict whom it holds out, all models the validation patients: one of each.
    alike = [study.fitting_patients, *(study.held_out(fold) for fold in study.folds if fold != "all")]
    patients = [some[0] for some in alike if some] if study.cross_validated else []
    counts = [(len(study.predictors_of(one)), len(study.variants_of(one))) for one in patients]
    predictors, variants = max(counts, default=(len(study.predictors), len(study.variants)))
    groups, classes = ceil(len(study.annotators) / 4), len(study.class_names)
    vessels = bool(study.evaluation.vascular.vessels)
    counted = predictors * ((0.008 + 0.002 * groups) * classes + 0.035 + 0.005 * vessels)
    # Then four predictors at a time are scored from int64 copies of what was counted: little up to eight organs.
    scored = 4 * 0.004 * groups * max(0, classes - MOST_CLASSES_MEASURED)
    return counted + scored + variants * (0.008 * classes + 0.035)


def _kept_labels_gib(study: Study) -> float:
    """What datasets that keep each annotator's labels take beside, GiB; 0 if no training label does."""
    kept = any(study.fusion(label) in KEPT_APART for label in study.label_names)
    return ceil(KEPT_LABELS_GIB * len(study.annotators)) if kept else 0


def _batch_gib(study: Study) -> float:
    """About the size of a training batch with its targets, GiB; with all channels, and with soft labels of theirs."""
    plans, a_voxel = study.plans, BYTES_A_VOXEL
    if any(study.fusion(label) == "soft" for label in study.label_names):
        a_voxel = 4 + SOFT_BYTES_A_VOXEL * len(study.class_names)
    a_voxel += 4 * (len(study.images) - 1)
    if plans.patch_size is not None and plans.batch_size is not None:
        return plans.batch_size * prod(plans.patch_size) * a_voxel / 2**30
    planned = BATCH_GIB_A_GB * (plans.gpu_memory_gb or PLANNED_GPU_GB.get(plans.planner, 8))
    return planned * a_voxel / BYTES_A_VOXEL


RETRY = dg.RetryPolicy(max_retries=4, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For temporary faults of the store or the machine, including a killed step process: retries after 5, 10, 20 and 40 s.
Errors that only a person can fix are not retried (`cells`)."""


def executor(name: str) -> dg.ExecutorDefinition:
    """The executor of every job.

    Args:
        name: one of `EXECUTORS`.

    Raises:
        ValueError: another name, or its package is not installed.
    """
    if name in ("local", "multiprocess"):
        return dg.multiprocess_executor.configured({"start_method": {"forkserver": {}}})
    if name == "in_process":
        return dg.in_process_executor
    if name not in EXECUTORS:
        raise ValueError(f"CURVAS_EXECUTOR={name!r}: allowed is one of {', '.join(EXECUTORS)}.")
    try:
        if name == "celery":
            from curvas_assets.orchestration.workers import watched_celery_executor

            return watched_celery_executor
        from dagster_k8s import k8s_job_executor

        return k8s_job_executor
    except ImportError as error:
        raise ValueError(f"CURVAS_EXECUTOR={name!r}: {error}; pip install 'curvas-assets[{name}]'.") from error
