"""How long statistics and report take for the whole study: 65 patients × 13 predictors of random scores, no voxels.

Run `python -m benchmarks.report [patients]`. Prints one line per step: CPU seconds, wall seconds and the machine's load,
and fails when the whole takes more than a minute of wall time at 65 patients.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from curvas_assets.report import build_report
from curvas_assets.statistics import (
    annotator_agreement,
    compare_all_families,
    dice_against_entropy,
    rank_among_teams,
    reduce_scores,
)
from curvas_assets_tests.report.studies import make_curves, make_inputs, make_scores, make_study

LIMIT_S = 60


@contextmanager
def timed(step: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"{step:<42} {time.process_time() - cpu:7.2f} CPU s {time.perf_counter() - wall:7.2f} s")


def main(patients: int) -> int:
    """Every step once; 1 when the whole was too slow."""
    study = make_study(patients=patients)
    study = study.model_copy(update={"statistics": study.statistics.model_copy(update={"draws": 9999})})
    scores = make_scores(study)
    print(
        f"{patients} patients × {len(study.predictors)} predictors, {len(scores)} scores, load {os.getloadavg()[0]:.1f}"
    )
    start = time.perf_counter()
    with timed("reduce to one value per patient"):
        reduce_scores(scores)
    with timed("compare families, 9999 draws"):
        comparisons = compare_all_families(scores, study.statistics)
    with timed("leaderboard, association, agreement"):
        board = rank_among_teams(scores, region="body")
        association, agreement = dice_against_entropy(scores), annotator_agreement(scores)
    inputs = make_inputs(
        study,
        scores=scores,
        risk_coverage=make_curves(study, points=300),
        comparisons=comparisons,
        leaderboard=board,
        association=association,
        agreement=agreement,
    )
    with timed("page and Markdown"):
        report = build_report(inputs, image_formats=())
    with timed("page, Markdown and figures in 3 formats"):
        report = build_report(inputs)
    whole = time.perf_counter() - start
    size = sum(map(len, report.attachments.values()))
    print(
        f"page {len(report.html) / 1e6:.1f} MB, {len(report.attachments)} files of {size / 1e6:.1f} MB; in all {whole:.1f} s"
    )
    return int(patients <= 65 and whole > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 65))
