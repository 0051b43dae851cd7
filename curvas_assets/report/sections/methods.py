"""Methods in the words of a paper, with the numbers of this study: data, networks, ensembles, evaluation, statistics.

Belongs here: sentences that a paper can take over, the statement of data and computing, BibTeX. Does not belong here: results,
and what explains a table of the report (the other sections).
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from curvas_assets.report.blocks import Block, Heading, Source, Text
from curvas_assets.report.citations import bibtex
from curvas_assets.report.facts import Facts
from curvas_assets.statistics.families import FEWEST

OWN = "curvas-assets"
TOTAL = "total"
"""The last row of the cost table."""


def write(facts: Facts) -> list[Block]:
    """One paragraph for each part of the work, then the statement of data and computing, and what is to be cited."""
    w = facts.words
    paragraphs = (_data(facts), _networks(facts), _predictors(facts), _evaluation(facts), _statistics(facts))
    return [
        Text(w("methods_text")),
        *(Text(" ".join(sentences)) for sentences in paragraphs),
        Heading(w("statement")),
        Text(" ".join(_statement(facts))),
        Source(bibtex(facts.study, facts.inputs.provenance.packages), w("bibtex")),
    ]


def _data(facts: Facts) -> Iterator[str]:
    w, study, cohort = facts.words, facts.study, facts.inputs.cohort
    taken = None if cohort is None else cohort[cohort["status"] == "taken in"] if "status" in cohort else cohort
    sets = {name: len(members) for name, members in study.sets.items() if members}
    if taken is not None and "set" in taken:
        counts = taken["set"].fillna("").value_counts(sort=False)
        sets = {str(name): int(count) for name, count in counts.items() if name}
    yield w(
        "methods_patients" if not study.synthetic else "methods_synthetic",
        n=sum(sets.values()),
        sets=", ".join(f"{w.told(name)} {count}" for name, count in sets.items()),
    )
    if ranges := _ranges(taken):
        yield w("methods_spacing", ranges=" × ".join(w.span(low, high) for low, high in ranges))
    organs = w.joined([w.organ(name) for name in study.class_names[1:]])
    names = w.joined(study.annotator_names)
    many = len(study.annotators) > 1
    yield w("methods_annotators" if many else "methods_annotator", n=len(study.annotators), names=names, organs=organs)
    if absent := _not_annotated(facts):
        counts = {name: sum(name == who for _, who in absent) for name in study.annotator_names}
        missing = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        yield w("methods_not_annotated", patients=len({patient for patient, _ in absent}), missing=missing)
    values = study.label_values
    if merged := {organ: of for organ, of in values.organs.items() if len(of) > 1}:
        told = w.joined([f"{w.organ(organ)} ({', '.join(map(str, of))})" for organ, of in merged.items()])
        yield w("methods_merged", organs=told)
    if values.ignored == "rest":
        yield w("methods_ignored_rest")
    elif values.ignored:
        yield w("methods_ignored", values=w.joined([str(value) for value in values.ignored]))
    if study.exclusions:
        yield w("methods_excluded", n=len(study.exclusions))


def _not_annotated(facts: Facts) -> set[tuple[str, str]]:
    """Patient and annotator, of those who did not annotate a patient, by the ledger of what was left out."""
    ledger = facts.inputs.exclusions
    if ledger is None or not {"patient", "annotator", "organ"} <= set(ledger):
        return set()
    whole = ledger.fillna("")
    told = [column for column in ("organ", "predictor", "metric") if column in whole]
    whole = whole[(whole[told] == "").all(axis=1) & whole["annotator"].isin(facts.study.annotator_names)]
    return set(zip(whole["patient"].astype(str), whole["annotator"].astype(str), strict=True))


def _ranges(cohort: pd.DataFrame | None) -> list[tuple[float, float]]:
    """Smallest and largest voxel size along each axis (Z, Y, X), mm; empty where the cohort does not tell."""
    if cohort is None or "spacing_mm" not in cohort:
        return []
    sizes = [
        [float(part) for part in (one.split(" × ") if isinstance(one, str) else one)]
        for one in cohort["spacing_mm"].dropna()
    ]
    return [(min(axis), max(axis)) for axis in zip(*sizes, strict=True)]


def _networks(facts: Facts) -> Iterator[str]:
    w, study, training = facts.words, facts.study, facts.study.training
    packages, networks = facts.inputs.provenance.packages, facts.inputs.networks
    patients = study.training_patients()
    fewer = any(patient in patients for patient, _ in _not_annotated(facts))
    yield w(
        "methods_images",
        images=w.joined([f"{one.name} ({w(f'normalisation_{one.normalisation}')})" for one in study.images]),
    )
    yield w(
        "methods_networks",
        models=len(study.models),
        labels=w.joined(study.label_names),
        seeds=w.joined([str(seed) for seed in study.seeds]),
        folds=w.joined([str(fold) for fold in study.folds]),
        version=packages.get("nnunetv2", w("unknown")),
        planner=study.plans.planner,
        configuration=study.plans.configuration,
        patients=w("at_most" if fewer else "exactly", n=len(patients)),
    )
    if networks is None:
        networks = pd.DataFrame(columns=["epochs", "patch_size"])
    if len(planned := networks.dropna(subset=["patch_size"])):
        yield w(
            "methods_plans",
            patch=_alike(planned["patch_size"]),
            spacing=_alike(planned["spacing_mm"]),
            batch=_alike(planned["batch_size"]),
        )
    yield w(
        "methods_training",
        epochs=training.epochs,
        iterations=training.iterations_per_epoch,
        optimizer={"sgd": "SGD", "adamw": "AdamW"}[training.optimizer],
        rate=w.setting(training.learning_rate),
        patience=training.patience,
    )
    yield from _held_out(facts)
    if len(ran := networks["epochs"].dropna().astype(int)):
        yield w("methods_epochs", models=len(ran), epochs=w.span(int(ran.min()), int(ran.max())))


def _held_out(facts: Facts) -> Iterator[str]:
    """On whom the pseudo-Dice was computed: as the trainer's `do_split` has it."""
    w, study, share = facts.words, facts.study, facts.study.training.held_out_fraction
    if study.cross_validated or "all" in study.folds:
        yield w("methods_held_out", share=w.percent(share)) if share else w("not_held_out_text")
    if not study.cross_validated and set(study.folds) != {"all"}:
        yield w("methods_held_out_by_fold")


def _alike(values: pd.Series) -> str:
    """The values that there are, each once."""
    return "; ".join(dict.fromkeys(map(str, values)))


def _predictors(facts: Facts) -> Iterator[str]:
    w, study = facts.words, facts.study
    step, mirrored = study.prediction.tile_step, study.prediction.mirroring and study.training.mirroring
    yield w("methods_prediction", step=w.percent(step), mirrored=w("mirrored") if mirrored else w("not_mirrored"))
    if study.ensemble_ids:
        yield w("methods_ensembles", n=len(study.ensemble_ids), families=_families(facts, study.ensemble_ids))
    for method in ("temperature", "isotonic"):
        if asked := getattr(study.calibrated, method):
            yield w(f"methods_{method}", predictors=w.joined(asked), patients=len(study.fitting_patients))
    if study.interval_predictors:
        level = w.percent(study.conformal.level)
        predictors = w.joined(study.interval_predictors)
        yield w("methods_conformal", level=level, predictors=predictors, patients=len(study.fitting_patients))


def _families(facts: Facts, ensembles: Sequence[object]) -> str:
    """The ensembles by family, each with how many."""
    names = [facts.study.family(str(one)) for one in ensembles]
    return facts.words.joined([f"{facts.words.family(one)}: {names.count(one)}" for one in dict.fromkeys(names)])


def _evaluation(facts: Facts) -> Iterator[str]:
    w, evaluation = facts.words, facts.study.evaluation
    yield w(
        "methods_scored", patients=facts.patients, predictors=facts.predictors, region=w(f"region_{evaluation.region}")
    )
    if evaluation.organs:
        yield w("methods_scored_organs", organs=w.joined([w.organ(name) for name in facts.study.scored_organs]))
    yield w(f"reference_{evaluation.reference}")
    yield w(
        "methods_metrics",
        ece=evaluation.ece_bins,
        ace=evaluation.ace_bins,
        tolerance=w.setting(evaluation.tolerance_mm),
    )


def _statistics(facts: Facts) -> Iterator[str]:
    w, statistics = facts.words, facts.study.statistics
    primary = w.joined([f"{w.question(q)}: {w.metric(metric)}" for q, metric in statistics.primary.items()])
    yield w("methods_tests", draws=statistics.draws, seed=statistics.seed, alpha=facts.alpha, primary=primary)
    accuracy = w.metric(statistics.primary.get("accuracy", "dice"))
    yield w("methods_margin", metric=accuracy, margin=w.setting(statistics.non_inferiority_margin))
    yield w("methods_interval", fewest=FEWEST)


def _statement(facts: Facts) -> Iterator[str]:
    """Where data and code are, and what the computing took."""
    w, study, provenance = facts.words, facts.study, facts.inputs.provenance
    said = study.report.data_statement.strip()
    yield said or (w("data_synthetic") if study.synthetic else w("data_unsaid"))
    yield w(
        "code_statement",
        version=provenance.packages.get(OWN, w("unknown")),
        commit=provenance.git_commit or w("unknown"),
        fingerprint=study.fingerprint(),
    )
    yield _computing(facts)
    networks = facts.inputs.networks
    devices = [] if networks is None else [str(one) for one in networks["device"].dropna().unique() if one]
    if devices:
        yield w("devices_statement", devices=w.joined(devices))


def _computing(facts: Facts) -> str:
    """What all steps took, from the cost table's total."""
    w, cost = facts.words, facts.inputs.cost
    stages = None if cost is None or "stage" not in cost else cost.set_index("stage")
    if stages is None or TOTAL not in stages.index:
        return w("no_cost")
    total = stages.loc[TOTAL]
    return w(
        "compute_statement",
        hours=w.number(total["hours"]),
        training=w.number(stages["hours"].get("training", 0.0)),
        inference=w.number(stages["hours"].get("inference", 0.0)),
        stored=w.number(total["gb_stored"]),
        euros=w.number(total["euros"]),
    )
