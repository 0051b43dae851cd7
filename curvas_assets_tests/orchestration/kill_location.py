"""A code location of the study's shape with cheap work, real storage, the real executor, pool and jobs: what is killed in
`benchmarks/kills.py` and `test_kills`.

A training goes on from its checkpoint. Each epoch that is begun, and each partition whose work has ended, is a line in
`KILL_NOTES`, so that what was done twice is seen.
"""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pandas as pd

from curvas_assets.orchestration import operations
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.cells import materialise
from curvas_assets.orchestration.devices import leased_device
from curvas_assets.orchestration.environment import deployment
from curvas_assets.orchestration.execution import RETRY, StageNeeds, executor
from curvas_assets.orchestration.io_manager import ArtefactIOManager
from curvas_assets.orchestration.jobs import stage_jobs
from curvas_assets.orchestration.partitions import Partitions
from curvas_assets.orchestration.restarts import keep_going
from curvas_assets.orchestration.study_run import study_job
from curvas_assets.orchestration.warm_starts import keep_warm
from curvas_assets.stages import table
from curvas_assets.stages.stored import Stored, one_by_one
from curvas_assets.stages.table import STAGES
from curvas_assets.stages.train import Checkpoints
from curvas_assets.storage import directories, tables
from curvas_assets.study import Study, load_study

EPOCHS = 8
UNIT_SECONDS = float(os.environ.get("KILL_UNIT_SECONDS", "0.3"))
TABLES = list(dict.fromkeys(["cohort", *STAGES["write_report"]]))  # the report's run remakes the cohort


def note(*words: object) -> None:
    with Path(os.environ["KILL_NOTES"]).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def build(study: Study) -> dg.Definitions:
    partitions, needs, bucket = Partitions.of(study), StageNeeds.of(study), Bucket()
    by, same = dg.AssetIn, dg.IdentityPartitionMapping()
    assets = [
        _asset("scan", partitions.patient, {}, needs.intake, 50),
        _asset("test_scan", partitions.test_patient, {"scan": by(partition_mapping=same)}, needs.intake, 50),
        _asset(
            "training_cases",
            partitions.annotator,
            {"scan": by(partition_mapping=partitions.training_patients)},
            needs.table,
            100,
        ),
        _asset(
            "preprocessed_dataset",
            partitions.annotator,
            {"training_cases": by(partition_mapping=same)},
            needs.dataset,
            1,
        ),
        _asset(
            "trained_model",
            partitions.model,
            {"preprocessed_dataset": by(partition_mapping=partitions.annotator_of_model)},
            needs.training,
            1,
        ),
        _asset(
            "softmax",
            partitions.patient_by_model,
            {
                "trained_model": by(partition_mapping=partitions.same("model")),
                "test_scan": by(partition_mapping=partitions.same("patient")),
            },
            needs.prediction,
            9,
        ),
        _asset("variant_softmax", partitions.patient_by_variant, {}, needs.prediction, 9),
        _asset(
            "ensemble_softmax",
            partitions.patient_by_ensemble,
            {"softmax": by(partition_mapping=partitions.between("patient_by_model", "patient_by_ensemble"))},
            needs.ensembling,
            40,
        ),
        _asset(
            "scores",
            partitions.test_patient,
            {
                "softmax": by(partition_mapping=partitions.same("patient")),
                "ensemble_softmax": by(partition_mapping=partitions.same("patient")),
            },
            needs.scoring,
            10,
        ),
        _asset(
            "viewer_preview",
            partitions.test_patient,
            {"ensemble_softmax": by(partition_mapping=partitions.same("patient"))},
            needs.preview,
            20,
        ),
        *(_table(name, "scores" if name == "study_scores" else TABLES[i - 1]) for i, name in enumerate(TABLES) if i),
        _table("cohort", "scan"),
        _table("calibrators", "ensemble_softmax"),
    ]
    chosen = executor(deployment().executor)
    return dg.Definitions(
        assets=assets,
        jobs=[*stage_jobs(chosen), study_job(study, partitions, bucket), *operations.build(study, partitions, bucket)],
        sensors=[keep_going()],
        resources={"bucket": bucket, "io_manager": ArtefactIOManager(bucket=bucket)},
        executor=chosen,
    )


def _asset(name: str, definition: dg.PartitionsDefinition, ins: dict, needs, limit: int) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        ins=ins,
        partitions_def=definition,
        backfill_policy=dg.BackfillPolicy.multi_run(limit),
        output_required=False,
        pool=needs.pool,
        op_tags=needs.op_tags,
        retry_policy=RETRY,
        code_version="1",
    )
    def made(context: dg.AssetExecutionContext, bucket: Bucket, **inputs) -> dg.Output | None:
        objects, layout = bucket.checked_objects(), bucket.layout

        def produce(key: str) -> Stored:
            for one in inputs.values():
                assert len(one)
            afterwards = []
            with tempfile.TemporaryDirectory() as folder:
                if needs.gpus:
                    with leased_device(context.log.info, devices=["a", "b"]):
                        if name == "trained_model":
                            afterwards.append(_train(objects, layout.unfinished_training(key), key, Path(folder)))
                        else:
                            time.sleep(UNIT_SECONDS)
                else:
                    time.sleep(UNIT_SECONDS)
                Path(folder, "state.json").unlink(missing_ok=True)
                for number in range(3):
                    Path(folder, f"{number}.txt").write_text(f"{name} {key} {number}" * 1000)
                where = table.asset(name).place(layout, key) + ".made"
                stored = directories.write_directory(objects, where, Path(folder))
            note("done", name, key)
            return Stored(where, stored.version, afterwards=lambda: [one() for one in afterwards])

        yield from materialise(context, objects, one_by_one(produce))

    return made


def _train(objects, key: str, model: str, folder: Path):
    """Epochs, each with a checkpoint; what removes the last one."""
    unfinished = Checkpoints(objects, key, print)
    found = unfinished.fetch(folder / "unfinished")
    start = json.loads(found.read_text())["epoch"] if found else 0
    for epoch in range(start, EPOCHS):
        note("epoch", model, epoch)
        time.sleep(UNIT_SECONDS)
        path = folder / "state.json"
        path.write_text(json.dumps({"epoch": epoch + 1}))
        unfinished.keep(path, epoch)
    if found:
        found.unlink()
        found.parent.rmdir()
    return unfinished.remove


def _table(name: str, before: str) -> dg.AssetsDefinition:
    @dg.asset(name=name, deps=[before], retry_policy=RETRY, code_version="1")
    def made(context: dg.AssetExecutionContext) -> dg.Output[pd.DataFrame]:
        time.sleep(UNIT_SECONDS)
        note("done", name, "")
        return dg.Output(_rows(name), data_version=dg.DataVersion(name))

    return made


def _rows(name: str) -> pd.DataFrame:
    """A hundred rows, in the columns that the asset promises."""
    schema = table.asset(name).schemas.get(name)
    values = {"string": name, "int64": 1, "double": 1.0, "bool": True}
    fields = {one.name: values[str(one.type)] for one in schema.columns} if schema else {"name": name}
    return pd.DataFrame([fields] * 100)


def read_back(study: Study, bucket: Bucket, folder: Path, assets: Sequence[str] = ()) -> list[str]:
    """Everything that a finished study has stored, or of these assets, read and verified; what is missing or torn raises.
    Its keys.
    """
    objects, layout, read = bucket.objects(), bucket.layout, []
    partitions = {
        "scan": sorted(p for members in study.sets.values() for p in members),
        "test_scan": study.scored_patients(),
        "training_cases": study.annotator_names,
        "preprocessed_dataset": study.annotator_names,
        "trained_model": [str(m) for m in study.models],
        "softmax": [f"{m}|{p}" for p in study.scored_patients() for m in study.models],
        "ensemble_softmax": [f"{e}|{p}" for p in study.scored_patients() for e in study.ensemble_ids],
        "scores": study.scored_patients(),
        "viewer_preview": study.scored_patients(),
    }
    for name, keys in partitions.items():
        if assets and name not in assets:
            continue
        for key in keys:
            where = table.asset(name).place(layout, key) + ".made"
            into = directories.read_directory(objects, where, folder / where.replace("/", "-"))
            for number in range(3):
                assert Path(into, f"{number}.txt").read_text() == f"{name} {key} {number}" * 1000
            read.append(f"{name} {key}")
    for name in TABLES:
        if assets and name not in assets:
            continue
        assert len(tables.read_table(objects, table.asset(name).place(layout))) == 100
        read.append(name)
    return read


defs = build(load_study(deployment().study))
keep_warm(deployment().study)
