"""Loaded by the process from which runs are forked, after Dagster: the code location that its code server has (`warm_starts`)."""

import gc
import os

from curvas_assets.orchestration.dagster_internals import load_repositories
from curvas_assets.orchestration.warm_starts import REPOSITORIES

try:
    load_repositories(os.environ.pop(REPOSITORIES, ""))
except Exception:
    pass  # the run loads it then, and says what is wrong
gc.freeze()  # pages that the collector does not touch stay shared with every run
