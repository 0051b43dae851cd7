"""Two and three writers of one artefact at once, on a real S3 server: is what stands there, and what is read meanwhile, whole?

    python -m benchmarks.two_writers [--rounds 200]

Each round is one artefact that stands there already, old enough to be removed; writers of other or of the same content, of
whom one may be killed at any request; somebody who sweeps; and readers. In every other round requests are let through one
by one, in an order drawn at random; otherwise all run freely, with random pauses. Torn is: a reader that gets anything but
one writer's content, or an error other than "read again"; in the end anything but the content announced last.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from curvas_assets.errors import StorageError
from curvas_assets.geometry import Grid
from curvas_assets.local.server import EmbeddedS3
from curvas_assets.stages.train import Checkpoints
from curvas_assets.storage import directories, softmax, versions
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.objects import ObjectStore, S3Objects

OLD_SECONDS = 6.0
"""In place of a day: what stands there when the rounds begin is older, what a round writes is not. Times in S3 are of whole
seconds."""
PAUSE_SECONDS = 0.01


class KilledError(BaseException):
    """The end of a writer, as kill -9 brings it: nothing is tidied."""


class Turns:
    """Lets one request through at a time, of whoever is drawn among all who wait."""

    def __init__(self, rng: random.Random, actors: int):
        self._rng, self._condition = rng, threading.Condition()
        self._waiting: list[object] = []
        self._running = actors

    @contextmanager
    def turn(self) -> Iterator[None]:
        me = object()
        with self._condition:
            self._waiting.append(me)
            self._running -= 1
            self._draw()
            self._condition.wait_for(lambda: me not in self._waiting)
        yield

    def end(self) -> None:
        with self._condition:
            self._running -= 1
            self._draw()

    def _draw(self) -> None:
        if self._running == 0 and self._waiting:
            self._waiting.remove(self._rng.choice(self._waiting))
            self._running = 1
            self._condition.notify_all()


class Pauses:
    """Lets everything through after a random pause."""

    def __init__(self, rng: random.Random):
        self._rng = rng

    @contextmanager
    def turn(self) -> Iterator[None]:
        time.sleep(self._rng.random() * PAUSE_SECONDS)
        yield

    def end(self) -> None:
        pass


class Paced:
    """A store of one actor, whose every request waits for its turn. It may end at one of them, as if killed.

    Args:
        objects: the store.
        turns: whose turn it is.
        log: told of each key that was written.
        who: the actor, for the log.
        killed_at: the number of the request it does not survive.
    """

    def __init__(
        self,
        objects: ObjectStore,
        turns: Turns | Pauses,
        log: Callable[[str, str], None],
        who: str,
        killed_at: int | None = None,
    ):
        self._objects, self._turns, self._log, self._who, self._left = objects, turns, log, who, killed_at

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._objects, name)
        if not callable(method):
            return method

        def paced(*arguments: Any, **named: Any) -> Any:
            with self._turns.turn():
                if self._left is not None:
                    self._left -= 1
                    if self._left < 0:
                        raise KilledError
                answer = method(*arguments, **named)
                if name == "put":
                    self._log(arguments[0], self._who)
                return list(answer) if name == "list" else answer

        return paced

    def delete(self, keys: Any) -> None:
        for key in keys:  # each is a request
            with self._turns.turn():
                self._objects.delete([key])

    @property
    def name(self) -> str:
        return self._objects.name


class Kind(Protocol):
    """One kind of artefact: how a content, known by a letter, is written, read, and swept."""

    marker: str

    def write(self, store: Any, key: str, content: str) -> None: ...

    def read(self, store: Any, key: str) -> str: ...

    def sweep(self, store: Any, key: str) -> None: ...


class Folders:
    """A folder of five files that all hold its letter; how many there are depends on it too."""

    marker = directories.MANIFEST

    def __init__(self, scratch: Path):
        self.folders = {}
        for number, letter in enumerate("ABCD"):
            folder = scratch / f"folder-{letter}"
            (folder / "deep").mkdir(parents=True)
            for i in range(4 + number):
                (folder / "deep" / f"{i}").write_bytes(letter.encode() * 3000)
            (folder / "common").write_bytes(b"in all of them")
            self.folders[letter] = folder

    def write(self, store: Any, key: str, content: str) -> None:
        directories.write_directory(store, key, self.folders[content])

    def read(self, store: Any, key: str) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            folder = directories.read_directory(store, key, Path(scratch))
            found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for letter, wanted in self.folders.items():
            if found == {p.relative_to(wanted).as_posix(): p.read_bytes() for p in wanted.rglob("*") if p.is_file()}:
                return letter
        return f"a mixture: {sorted((name, content[:1]) for name, content in found.items())}"

    def sweep(self, store: Any, key: str) -> None:
        directories.sweep(store, key)


class Volumes:
    """A softmax volume of 40 slices, drawn for each letter."""

    marker = softmax.GROUP

    def __init__(self) -> None:
        self.volumes, self.labels = {}, {}
        for seed, letter in enumerate("ABCD"):
            p = np.random.default_rng(seed).random((3, 40, 24, 24)).astype(np.float32)
            self.volumes[letter] = p / p.sum(axis=0)
            self.labels[letter] = self.volumes[letter].argmax(axis=0).astype(np.uint8).tobytes()

    def write(self, store: Any, key: str, content: str) -> None:
        p = self.volumes[content]
        with softmax.SoftmaxWriter(store, key, Grid.with_voxels(p.shape[1:], (1, 1, 1)), class_names="abc") as writer:
            writer.write(0, p)

    def read(self, store: Any, key: str) -> str:
        volume = softmax.open_softmax(store, key)
        found = b"".join(volume.labels(z0, min(z0 + 16, 40)).tobytes() for z0 in range(0, 40, 16))
        return next((letter for letter, labels in self.labels.items() if labels == found), "a mixture")

    def sweep(self, store: Any, key: str) -> None:
        found = versions.places(store, key, softmax.GROUP)
        versions.remove_untouched(store, found, {softmax.place_of(store, key)})


class Trainings:
    """The checkpoint of an unfinished training, kept three times by each writer."""

    marker = directories.MANIFEST

    def __init__(self, scratch: Path):
        self.scratch = scratch

    def write(self, store: Any, key: str, content: str) -> None:
        training = Checkpoints(store, key, print)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            training.fetch(Path(folder) / "resumed")
            path = Path(folder, Checkpoints.FILE)
            for epoch in range(3):
                path.write_bytes(f"{content}{epoch}".encode() if epoch < 2 else content.encode())
                training.keep(path, epoch)

    def read(self, store: Any, key: str) -> str:
        return directories.read_file(store, key, Checkpoints.FILE).decode()[:1]

    def sweep(self, store: Any, key: str) -> None:
        directories.sweep(store, key)


@dataclass
class Outcome:
    """What came of one round.

    Args:
        torn: what was read that nobody wrote, or an error that should not be; None if nothing was.
        readings: letters that were read, and "again" for readers that were told to read again.
    """

    torn: str | None = None
    readings: Counter[str] = field(default_factory=Counter)


def race(objects: ObjectStore, kind: Kind, key: str, seed: int) -> Outcome:
    """One round on an artefact of content A that stands there already."""
    rng = random.Random(seed)
    announced = ["A"]
    outcome = Outcome()
    contents = [rng.choice("ABCD") for _ in range(rng.choice([2, 2, 3]))]
    killed = rng.randrange(len(contents)) if rng.random() < 0.4 else None
    readers = rng.choice([0, 1, 2])
    sweeps = rng.random() < 0.5
    turns = Turns(rng, len(contents) + readers + sweeps) if rng.random() < 0.5 else Pauses(rng)

    def log(written: str, who: str) -> None:
        if written == f"{key}/{kind.marker}":
            announced.append(who)

    def found(read: Callable[[], str]) -> str:
        try:
            return read()
        except StorageError as error:
            return "again" if "read it again" in str(error).lower() else f"{type(error).__name__}: {error}"

    def write(number: int) -> None:
        at = rng.randrange(14) if number == killed else None
        kind.write(Paced(objects, turns, log, contents[number], at), key, contents[number])

    def read(_: int) -> None:
        for _ in range(3):
            letter = found(lambda: kind.read(Paced(objects, turns, log, "reader"), key))
            outcome.readings[letter] += 1
            if letter not in {"again", "A", *contents}:
                outcome.torn = f"a reader got {letter}"

    def sweep(_: int) -> None:
        kind.sweep(Paced(objects, turns, log, "sweeper"), key)

    def act(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except KilledError:
            pass
        except Exception as error:  # a writer or sweeper that fails has found something torn
            outcome.torn = f"{work.__name__}: {type(error).__name__}: {error}"
        finally:
            turns.end()

    actors = [threading.Thread(target=act, args=(write, number)) for number in range(len(contents))]
    actors += [threading.Thread(target=act, args=(read, number)) for number in range(readers)]
    actors += [threading.Thread(target=act, args=(sweep, 0))] if sweeps else []
    rng.shuffle(actors)
    for actor in actors:
        actor.start()
    for actor in actors:
        actor.join()
    last = found(lambda: kind.read(objects, key))
    # Of two markers that are on their way at once, the store decides which is the last: both are in the log's last places.
    allowed = {announced[-1]} if isinstance(turns, Turns) else {*announced[-len(contents) :]}
    if outcome.torn is None and last not in allowed:
        outcome.torn = f"{last} stands there, announced was {announced}"
    return outcome


def races(
    objects: S3Objects, rounds: int, scratch: Path, seed: int = 0, only: Sequence[str] = ()
) -> dict[str, list[Outcome]]:
    """So many rounds of each kind of artefact, or of some kinds. `versions.UNTOUCHED` is `OLD_SECONDS` meanwhile."""
    kinds: dict[str, Kind] = {
        "folder": Folders(scratch),
        "volume": Volumes(),
        "checkpoint": Trainings(scratch),
    }
    kinds = {name: kind for name, kind in kinds.items() if not only or name in only}
    run = uuid4().hex[:6]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in kinds}
    day, versions.UNTOUCHED = versions.UNTOUCHED, timedelta(seconds=OLD_SECONDS)
    try:
        for begin in range(0, rounds, 100):  # not all at first: a checkpoint of a round lasts
            numbers = range(begin, min(begin + 100, rounds))
            for name, kind in kinds.items():
                for number in numbers:
                    kind.write(objects, f"{run}/{name}/{number}", "A")
            time.sleep(OLD_SECONDS + 1)
            for name, kind in kinds.items():
                outcomes[name] += [race(objects, kind, f"{run}/{name}/{n}", seed + n) for n in numbers]
    finally:
        versions.UNTOUCHED = day
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=["folder", "volume", "checkpoint"])
    arguments = parser.parse_args(sys.argv[1:] if sys.argv[0].endswith("two_writers.py") else [])
    with tempfile.TemporaryDirectory() as scratch, EmbeddedS3(Path(scratch)) as server:
        begin = time.monotonic()
        objects = connect(S3Settings.from_environment(server.environment()))
        outcomes = races(objects, arguments.rounds, Path(scratch), arguments.seed, arguments.only)
        seconds = time.monotonic() - begin
    torn = 0
    for name, found in outcomes.items():
        bad = [outcome for outcome in found if outcome.torn]
        torn += len(bad)
        readings = sum((outcome.readings for outcome in found), Counter())
        print(f"{name}: {len(bad)} torn of {len(found)}; read meanwhile {json.dumps(dict(sorted(readings.items())))}")
        for outcome in bad[:5]:
            print(f"  {outcome.torn}")
    print(f"{seconds:.0f} s")
    sys.exit(f"{torn} torn" if torn else 0)


if __name__ == "__main__":
    main()
