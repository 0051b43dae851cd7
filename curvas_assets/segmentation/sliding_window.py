# pyright: reportUntypedBaseClass=false
"""nnU-Net's sliding window, which ends as a whole when memory runs out in a part of it.

A thread of nnU-Net's cuts tiles and hands them to the network through a queue. By itself, nnU-Net waits for ever for a tile
that could not be cut; and if the network fails, that thread waits for ever and keeps the input, on a GPU too, also
while nnU-Net tries again with its results in host memory. Here the error of one side ends the other and is raised.

Imported only by `prediction`, because it loads torch and nnunetv2.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from queue import Queue
from threading import Thread
from types import FunctionType
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from curvas_assets.errors import SegmentationError, let_go

NNUNETS: Any = inspect.unwrap(nnUNetPredictor._internal_predict_sliding_window_return_logits)
"""Where nnU-Net makes the thread and the queue, by these names of its module."""
if missing := {"Queue", "Thread"} - set(NNUNETS.__code__.co_names):
    raise SegmentationError(
        "replacing the queue and the thread of nnU-Net's sliding window",
        f"nnunetv2 {version('nnunetv2')}",
        f"{NNUNETS.__name__} does not use the name {' or '.join(sorted(missing))}",
        "Install the release that requirements.lock pins, or adapt segmentation/sliding_window.py to this one.",
    )


class StudyPredictor(nnUNetPredictor):
    """nnU-Net's predictor, whose sliding window is nnU-Net's code with another `Thread` and `Queue`.

    `flipped` are the axes of a patch, counted from 0 after batch and channel, along which it is mirrored for the network and
    its logits back: one of the combinations that nnU-Net's own mirroring averages. None leaves mirroring to nnU-Net.
    """

    flipped: tuple[int, ...] | None = None

    @torch.inference_mode()
    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        if self.flipped is None:
            return super()._internal_maybe_mirror_and_predict(x)
        axes = [axis + 2 for axis in self.flipped]
        return torch.flip(self.network(torch.flip(x, axes)), axes) if axes else self.network(x)

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(self, *args: Any, **named: Any) -> torch.Tensor:
        tiles = _Tiles()
        names = {**NNUNETS.__globals__, "Thread": tiles.cut_by, "Queue": tiles.of_size}
        predict = FunctionType(NNUNETS.__code__, names, NNUNETS.__name__, NNUNETS.__defaults__)
        try:
            return predict(self, *args, **named)
        except BaseException as error:
            tiles.end()
            let_go(error)  # its frames hold the input and activations, on a GPU
            raise


class _NoLongerWanted(Exception):
    """Ends the cutting of tiles."""


class _Tiles(Queue[Any]):
    """Tiles on their way from the thread that cuts them to the network."""

    def __init__(self) -> None:
        super().__init__()
        self._thread: Thread | None = None
        self._wanted = True

    def of_size(self, maxsize: int) -> "_Tiles":
        """In place of `Queue`: this one."""
        self.maxsize = maxsize
        return self

    def cut_by(self, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> Thread:
        """In place of `Thread`: one whose error is handed on like a tile."""
        self._thread = Thread(target=self._cut, args=(target, args), **options)
        return self._thread

    def _cut(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        with suppress(_NoLongerWanted):
            try:
                target(*args)
            except BaseException as error:
                self.put(error)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if not self._wanted:
            raise _NoLongerWanted
        super().put(item, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = super().get(block, timeout)
        if isinstance(item, BaseException):
            raise item
        return item

    def end(self) -> None:
        """Take no more tiles, and wait until the thread has ended."""
        self._wanted = False
        self._empty()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        self._thread = None  # one that could not be started holds the input
        self._empty()

    def _empty(self) -> None:
        with self.mutex:
            self.queue.clear()
            self.not_full.notify_all()
