"""How the models were trained and put together, and the whole configuration."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from curvas_assets.report.blocks import Absent, Block, FigureBlock, Heading, Text
from curvas_assets.report.facts import Facts
from curvas_assets.report.figures import training_curves
from curvas_assets.report.tables import MISSING, cell
from curvas_assets.study import Study


def write(facts: Facts) -> list[Block]:
    """Models, ensembles, early stopping, configuration and training curves."""
    w, study = facts.words, facts.study
    blocks: list[Block] = [
        Text(
            w(
                "protocol_text",
                models=len(study.models),
                labels=len(study.label_names),
                seeds=len(study.seeds),
                folds=len(study.folds),
                ensembles=len(study.ensemble_ids),
                epochs=study.training.epochs,
                patience=study.training.patience,
            )
        )
    ]
    if study.cross_validated:
        blocks.append(Text(w("cross_validated_text", patients=len(study.scored_patients()))))
    if "all" in study.folds or study.cross_validated:
        share = study.training.held_out_fraction
        blocks.append(Text(w("held_out_text", share=f"{100 * share:.0f} %") if share > 0 else w("not_held_out_text")))
    settings = pd.DataFrame(_settings(study), columns=["setting", "value"])
    curves = facts.inputs.curves
    return [
        *blocks,
        facts.table(settings, facts.headings("setting", "value"), caption=w("configuration"), folded=True),
        Heading(w("training")),
        FigureBlock(training_curves(curves, w)) if curves else Absent(w("no_curves")),
    ]


def _settings(study: Study) -> list[tuple[str, str]]:
    """The whole configuration as dotted names and values."""
    rows: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, one in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), one)
        elif isinstance(value, list):
            rows.append((prefix, ", ".join(one if isinstance(one, str) else json.dumps(one) for one in value)))
        else:
            rows.append((prefix, MISSING if value is None or value == {} else cell(value)))

    walk("", study.model_dump(mode="json"))
    return rows
