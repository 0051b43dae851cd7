"""Loaded by the process from which runs are forked, after Dagster: the code location that its code server has (`warm_starts`)."""

import gc
import os

from curvas_assets.orchestration.dagster_internals import load_repositories
from curvas_assets.orchestration.provenance import git_commit, package_versions
from curvas_assets.orchestration.warm_starts import REPOSITORIES, make_sturdy

make_sturdy()
try:
    load_repositories(os.environ.pop(REPOSITORIES, ""))
    git_commit()  # which both remember: what is forked later runs the code that is loaded here
    package_versions()
except Exception:
    pass  # the run loads it then, and says what is wrong
gc.freeze()  # pages that the collector does not touch stay shared with every run
