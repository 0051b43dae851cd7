"""An object store that counts what passes through it, for the cost ledger. Stores and decides nothing itself."""

import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from curvas_assets.storage.objects import Bytes, ObjectInfo, ObjectStore, UnfinishedUpload


class MeteredObjects:
    """Another store, with the bytes that went down (`bytes_down`) and up (`bytes_up`) since it was made."""

    def __init__(self, objects: ObjectStore):
        self.objects = objects
        self.bytes_down = 0
        self.bytes_up = 0
        self._counting = threading.Lock()

    def _count(self, *, down: int = 0, up: int = 0) -> None:
        """Several threads of a step may use the store at once."""
        with self._counting:
            self.bytes_down += down
            self.bytes_up += up

    @property
    def name(self) -> str:
        return self.objects.name

    def put(self, key: str, content: Bytes, *, only_if_absent: bool = False) -> bool:
        done = self.objects.put(key, content, only_if_absent=only_if_absent)
        self._count(up=memoryview(content).nbytes)
        return done

    def upload(self, key: str, path: Path) -> None:
        self.objects.upload(key, path)
        self._count(up=Path(path).stat().st_size)

    def get(self, key: str) -> bytes:
        content = self.objects.get(key)
        self._count(down=len(content))
        return content

    def get_range(self, key: str, start: int, length: int) -> bytes:
        content = self.objects.get_range(key, start, length)
        self._count(down=len(content))
        return content

    def download(self, key: str, path: Path) -> None:
        self.objects.download(key, path)
        self._count(down=Path(path).stat().st_size)

    def head(self, key: str) -> ObjectInfo | None:
        return self.objects.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.objects.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        self.objects.delete(keys)

    def clock(self) -> datetime | None:
        return self.objects.clock()

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        return self.objects.unfinished_uploads(prefix)

    def give_up(self, upload: UnfinishedUpload) -> None:
        self.objects.give_up(upload)
