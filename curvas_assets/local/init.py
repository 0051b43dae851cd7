"""`curvas-init`: looks at a folder or a bucket of scans and label maps, and writes a study file for it.

Nothing in the folder or bucket is changed.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curvas_assets.cohort.discovery import Listed, Source, Survey, survey
from curvas_assets.cohort.discovery.proposal import (
    SCHEMA_FILE,
    Options,
    propose,
    propose_sets,
    study_name,
    told_in_order,
)
from curvas_assets.cohort.discovery.survey import counted, described
from curvas_assets.cohort.discovery.tables import plain_name
from curvas_assets.errors import CurvasError, StorageError, StudyError
from curvas_assets.inputs import existing_folder
from curvas_assets.local.validate import told_of
from curvas_assets.predictors import KEY
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study_schema import schema_text

EXAMPLES = """\
  curvas-init ~/cohort                 # a study of what is in the folder
  curvas-init ~/cohort --small         # the same, to be run within minutes on a CPU
  curvas-init --bucket                 # of the bucket that S3_BUCKET names, below its data prefix
"""
MOST_PRINTED = 60
HIDDEN = (".", "__MACOSX")
"""Beginnings of names that are left out: what systems and version control keep beside the data."""


class FolderSource:
    """The files below a folder; links to folders are followed, each once.

    Args:
        folder: of the data.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._unreadable: list[str] = []

    @property
    def name(self) -> str:
        return str(self.folder)

    def files(self) -> list[Listed]:
        found, seen = list[Listed](), set[str]()
        self._unreadable = []
        for place, folders, names in os.walk(self.folder, onerror=self._note, followlinks=True):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in sorted(folders) if self._is_told(place, name)]
            for name in sorted(names):
                path = Path(place, name)
                if self._is_told(place, name) and path.is_file():
                    found.append(Listed(path.relative_to(self.folder).as_posix(), path.stat().st_size))
        return found

    def unreadable(self) -> list[str]:
        return list(self._unreadable)

    def _is_told(self, place: str, name: str) -> bool:
        """Whether a file or folder is looked at: hidden ones are not, and names that are no UTF-8 cannot stand in a study or a bucket."""
        if name.startswith(HIDDEN):
            return False
        try:
            name.encode()
        except UnicodeEncodeError:
            self._unreadable.append(self._told(os.path.join(place, name)))
            return False
        return True

    def _note(self, error: OSError) -> None:
        self._unreadable.append(self._told(str(error.filename)))

    def _told(self, path: str) -> str:
        return os.fsencode(os.path.relpath(path, self.folder)).decode("utf-8", "backslashreplace")

    def beginning(self, path: str, length: int) -> bytes:
        with (self.folder / path).open("rb") as file:
            return file.read(length)

    @contextmanager
    def whole(self, path: str) -> Generator[Path]:
        yield self.folder / path


class BucketSource:
    """The files below the data prefix of a bucket: beginnings are read by range, label maps one by one on the disk.

    Args:
        objects: the bucket.
        prefix: of the data, without a slash at its end.
        scratch: folder for files while they are read.
    """

    def __init__(self, objects: ObjectStore, prefix: str, scratch: Path):
        self.objects, self.prefix, self.scratch = objects, prefix, scratch
        self._sizes: dict[str, int] = {}

    @property
    def name(self) -> str:
        return f"{self.objects.name}/{self.prefix}"

    def files(self) -> list[Listed]:
        found = list[Listed]()
        for item in self.objects.list(f"{self.prefix}/"):
            path = item.key.removeprefix(f"{self.prefix}/")
            if path and not path.endswith("/") and not any(part.startswith(HIDDEN) for part in path.split("/")):
                found.append(Listed(path, item.size, item.tag))
                self._sizes[path] = item.size
        return found

    def beginning(self, path: str, length: int) -> bytes:
        length = min(length, self._sizes[path])
        return self.objects.get_range(f"{self.prefix}/{path}", 0, length) if length else b""

    def unreadable(self) -> list[str]:
        return []

    @contextmanager
    def whole(self, path: str) -> Generator[Path]:
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            file = Path(folder, path.rpartition("/")[2])
            self.objects.download(f"{self.prefix}/{path}", file)
            yield file


class Progress:
    """One line that counts on a terminal; elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        self._last, self._open = time.monotonic(), False

    def __call__(self, told: str) -> None:
        count, _, rest = told.partition(" of ")
        done = count == rest.partition(" ")[0]
        if sys.stderr.isatty():
            print(f"\r\033[K{told}", end="\n" if done else "", file=sys.stderr, flush=True)
            self._open = not done
        elif done or time.monotonic() - self._last > 10:
            print(told, file=sys.stderr, flush=True)
            self._last = time.monotonic()

    def close(self) -> None:
        """End a line that is being counted."""
        if self._open:
            print(file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="curvas-init",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, help="folder of the patients' files")
    parser.add_argument("--bucket", action="store_true", help="look at the bucket that S3_BUCKET names instead")
    parser.add_argument("--out", type=Path, help="the study file to write; else <name>.yaml here")
    parser.add_argument("--force", action="store_true", help="replace the study file if it is there")
    parser.add_argument("--name", default="", help="name of the study; else the folder's")
    parser.add_argument("--annotators", default="", help="those that count, such as anna,boris; anno1=anna renames one")
    parser.add_argument("--organs", default="", help="values and names, such as 1=pancreas,2+3=kidney; else all values")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of sets (default 0)")
    parser.add_argument(
        "--quick", type=int, metavar="N", help="read the label maps of N patients only, drawn at random"
    )
    parser.add_argument(
        "--small", "--laptop", action="store_true", help="a run of minutes on a CPU: few patients, small networks"
    )
    arguments = parser.parse_args()
    if arguments.bucket == (arguments.folder is not None):
        parser.error("give a folder, or --bucket")
    if arguments.quick is not None and arguments.quick < 1:
        parser.error("--quick takes a number of patients, 1 or more")
    progress = Progress()
    try:
        organs, annotators = read_organs(arguments.organs), read_annotators(arguments.annotators)
        with source_of(arguments.folder) as source:
            name = plain_name(arguments.name, of="study") if arguments.name else study_name(source.name)
            out = arguments.out or Path(f"{name}.yaml")
            require_free(out, force=arguments.force)
            found = survey(source, quick=arguments.quick, seed=arguments.seed, annotators=annotators, tell=progress)
            progress.close()
            options = Options(name, organs, arguments.seed, arguments.small)
            write(out, propose(found, options))
    except CurvasError as error:
        progress.close()
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    print(summary(found, options, out, arguments.folder))


@contextmanager
def source_of(folder: Path | None) -> Generator[Source]:
    """The folder's files, or those of the bucket that the environment names."""
    if folder is not None:
        told: Any = {"attempted": "looking for patients", "subject": "the folder", "error": StudyError}
        yield FolderSource(existing_folder(folder.expanduser(), **told).resolve())
        return
    from curvas_assets.orchestration.environment import deployment, environment
    from curvas_assets.storage.connection import S3Settings, check, connect

    settings = S3Settings.from_environment(environment())
    objects = connect(settings)
    check(objects)
    with tempfile.TemporaryDirectory(prefix="curvas-init-", dir=deployment().scratch_folder()) as scratch:
        yield BucketSource(objects, settings.data_dir, Path(scratch))


def read_organs(text: str) -> dict[str, list[int]]:
    """Organ → values, of `1=pancreas,2+3=kidney`.

    Raises:
        StudyError: it is not of that form, or a value or a name stands twice.

    >>> read_organs("1=pancreas,2+3=kidney")
    {'pancreas': [1], 'kidney': [2, 3]}
    """
    found: dict[str, list[int]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([0-9]+(?:\+[0-9]+)*)=(.+)", part)
        values = list(map(int, match[1].split("+"))) if match else []
        taken = {value for of in found.values() for value in of}
        if match is None or not KEY.fullmatch(match[2]) or match[2] in found or taken & set(values) or 0 in values:
            remedy = "Write values, =, a name of letters, digits and dashes: 1=pancreas,2+3=kidney; each value and name once, and not 0."
            raise StudyError("reading --organs", part, "it is not values and a name of their own", remedy)
        found[match[2]] = values
    return found


def read_annotators(text: str) -> dict[str, str]:
    """Annotator as found → as it is to be called, of `anna,anno2=boris`.

    Raises:
        StudyError: a name is not letters, digits and dashes, or stands twice.

    >>> read_annotators("anna,anno2=boris")
    {'anna': 'anna', 'anno2': 'boris'}
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, to = part.partition("=")
        if name in found or (to or name) in found.values() or not KEY.fullmatch(to or name):
            remedy = "Write names of letters, digits and dashes, each once: anna,anno2=boris."
            raise StudyError("reading --annotators", part, "it is no name, or stands twice", remedy)
        found[name] = to or name
    return found


def require_free(out: Path, *, force: bool) -> None:
    """Raise a StudyError if the file is there and may not be replaced, before minutes are spent on reading."""
    if out.exists() and not force:
        raise StudyError(
            "writing the study file", str(out), "it is there already", "Give --out another name, or --force."
        )
    if not out.absolute().parent.is_dir():
        raise StudyError(
            "writing the study file",
            str(out),
            "there is no such folder",
            "Give --out a file in a folder that is there.",
        )


def write(out: Path, text: str) -> None:
    """Write the study file, and beside it the schema that its first line names."""
    for path, content in ((out, text), (out.with_name(SCHEMA_FILE), schema_text())):
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise StorageError(
                "writing the study file", str(path), f"{error.strerror}", "Give --out a place that can be written."
            ) from error


def summary(found: Survey, options: Options, out: Path, folder: Path | None) -> str:
    """What was found, what looks wrong, and what to do next."""
    spacing, shape, order = described(found.grids.values())
    sets, origin = propose_sets(found, options)
    counts = ", ".join(f"{len(of)} {name}" for name, of in sets.items() if of)
    lines = [
        f"{found.name}: {counted(len(found.layout.patients), 'patient')}, {len(found.usable)} usable",
        f"  scan        {', '.join(role.pattern for role in found.layout.channels)}{' (CT)' if found.ct else ''}",
        *(
            f"  {role.name:<11} {role.pattern} ({counted(len(role.files), 'patient')})"
            for role in found.layout.annotators
        ),
        f"  labels      {_values(found.values)}{f', names from {found.told.labels_from}' if found.told.labels_from else ''}",
        f"  voxels      {shape}, {spacing} mm (Z × Y × X), {order}",
        f"  sets        {counts or 'none'}, from {origin}",
    ]
    told = told_in_order(found.findings)
    lines += ["", f"What looks wrong, worst first ({len(told)}):" if told else "Nothing looks wrong."]
    lines += [f"  {line}" for line in told[:MOST_PRINTED]]
    if len(told) > MOST_PRINTED:
        lines.append(f"  … and {len(told) - MOST_PRINTED} more")
    lines += ["", f"Written: {out}, with a comment beside each field"]
    if problems := told_of(out):
        lines += ["It does not load yet:", *(f"  {problem}" for problem in problems)]
    lines.append(f"{'Then' if problems else 'Next'}:    {next_step(out, folder)}")
    return "\n".join(lines)


def _values(values: list[int]) -> str:
    return ", ".join(map(str, values[:20])) + (f" … {values[-1]} ({len(values)})" if len(values) > 20 else "") or "none"


def next_step(out: Path, folder: Path | None) -> str:
    """The command that runs the study."""
    if folder is None:
        return f"export CURVAS_STUDY={out.resolve()}, and launch the job study"
    from curvas_assets.local.deployment import state_of, typed_as

    return typed_as("study", state_of(str(out)), str(out), data=str(folder))


if __name__ == "__main__":
    main()
