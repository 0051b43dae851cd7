"""Claims proved here: blocks that change the process may overlap in several threads; what they changed is as before in the end.

- What a thread prints in a quiet block is dropped, what others print meanwhile is not.
- Whichever thread leaves last, standard output, the filters of warnings and the variables are those of before.
"""

import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

from curvas_assets.segmentation.runtime import nnunet_folders, quiet

PATIENCE = 60


def test_overlapping_blocks_of_two_threads_leave_the_process_as_it_was(capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    before = sys.stdout, list(warnings.filters), dict(os.environ)
    inside, first_left = threading.Event(), threading.Event()

    def second():
        with nnunet_folders(), quiet():
            print("dropped")
            inside.set()
            assert first_left.wait(PATIENCE)
            assert os.environ["nnUNet_n_proc_DA"] == "1"
            print("dropped too")

    with ThreadPoolExecutor(1) as pool:
        with nnunet_folders(), quiet():
            done = pool.submit(second)
            assert inside.wait(PATIENCE)
            print("dropped")
        print("kept")
        first_left.set()
        done.result(PATIENCE)
    assert (sys.stdout, list(warnings.filters), dict(os.environ)) == before
    assert capsys.readouterr().out == "kept\n"
