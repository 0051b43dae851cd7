"""Claim proved here: a step on a Celery worker may start processes, as a training does to load its batches.

Celery runs steps in a daemonic process of billiard's, which it tells so, by a signal, that it begins. Here this is done in a
program of its own, because a fork of the tests' process, which has threads, may hang.
"""

import subprocess
import sys

from curvas_assets_tests.orchestration.services import ROOT

PROGRAM = """
import multiprocessing, os, sys
import billiard
from celery.signals import worker_process_init
from curvas_assets.orchestration import workers

def step():
    multiprocessing.current_process().daemon or os._exit(3)
    worker_process_init.send(sender=None)
    loader = multiprocessing.get_context("forkserver").Process(target=os.getpid, daemon=True)
    loader.start()
    loader.join()
    os._exit(loader.exitcode)

child = billiard.Process(target=step, daemon=True)
child.start()
child.join()
sys.exit(child.exitcode)
"""


def test_a_step_on_a_worker_may_start_processes():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
