"""Batches for `test_loading` that no pipe takes at once. A module of its own, because loader processes import it."""

import time
from typing import Any

import torch
from torch.utils.data import get_worker_info


class OneSends:
    """A source of batches of 8 MiB in the first loader process; in the others, of none before they are killed."""

    def __next__(self) -> dict[str, Any]:
        worker = get_worker_info()
        if worker is not None and worker.id:
            time.sleep(600)
        return {"data": torch.zeros(2 << 20), "target": torch.zeros(1), "keys": ["PHANTOM001"]}
