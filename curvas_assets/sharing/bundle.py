"""The bundle that people share: report, tables and a viewer as files that open in a browser from the disk, offline.

Belongs here: the folder's files, its limit, and what must not be in it. Does not belong here: making previews (`previews`,
`curvas_assets.stages.preview`), reading the bucket (`curvas_assets.orchestration.operations.share`).

```text
index.html  report.html  viewer.html  tables/*.csv
viewer/     niivue.js viewer.js viewer.css report.js patients.js, data/<patient>.js     loaded by <script src>: no fetch
full/<patient>/*.nii.gz        probabilities/<patient>/<predictor>/*.nii.gz              only if they are asked for
```
"""

import base64
import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from curvas_assets.errors import ReportError
from curvas_assets.report.words import Words
from curvas_assets.sharing import niivue

PAGES = ("index.html", "viewer.html")
PARTS = ("viewer.js", "viewer.css", "report.js")
LICENCE = "viewer/LICENSE-niivue.txt"
SCRIPTS = '<script src="viewer/patients.js"></script><script src="viewer/report.js"></script>\n'
SHIPPED = frozenset({*PAGES, *(f"viewer/{name}" for name in ("niivue.js", *PARTS)), LICENCE})
"""Files that the package brings, the same in every bundle."""
TEXT = frozenset({".html", ".js", ".css", ".csv", ".json", ".txt", ".md"})


@dataclass(frozen=True)
class Contents:
    """What a bundle says of its study.

    Args:
        title: of the study's report.
        words: the language.
        generated: when and from what it was made, as shown.
        organs: organ → its colour, in the order of the labels 1, 2, ….
        annotators: their names.
        order: by what patients are ordered, as shown.
        metric: whose value stands beside each patient; empty for none.
        values: organ → its value in the label maps that people get (`full/…/labels.nii.gz`); its class where left out.
    """

    title: str
    words: Words
    generated: str
    organs: Mapping[str, str]
    annotators: Sequence[str]
    order: str
    metric: str = ""
    values: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Entry:
    """A patient in the bundle."""

    value: float | None
    lead: str
    files: dict[str, str] = field(default_factory=dict)


class Bundle:
    """Writes a bundle into an empty folder: patients one after the other, the worst first, until the limit is reached.

    Args:
        folder: made if it is not there.
        contents: what it says of its study.
        report: the report's page.
        tables: name → table, each a CSV.
        limit_bytes: of all files together, without full maps and probabilities.

    Raises:
        ReportError: the folder holds something, NiiVue is not installed, or the limit does not even hold the report.
    """

    def __init__(
        self, folder: Path, contents: Contents, report: str, tables: Mapping[str, pd.DataFrame], *, limit_bytes: float
    ):
        self.folder, self.contents, self.limit_bytes = folder, contents, limit_bytes
        self.size = 0
        self.omitted: list[str] = []
        self._patients: dict[str, _Entry] = {}
        self._listed: list[tuple[str, str]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ReportError(
                "writing a bundle", str(folder), "the folder is not empty", "Give an empty one, or a new one."
            )
        said = contents.words.viewer()
        self._write("viewer/niivue.js", niivue.script())
        self._write(LICENCE, niivue.licence())
        pages = files("curvas_assets.sharing") / "pages"
        for name in PAGES:
            self._write(name, (pages / name).read_text(encoding="utf-8"))
        for name in PARTS:
            self._write(f"viewer/{name}", (pages / name).read_text(encoding="utf-8"))
        self._write("report.html", linked(report))
        self._listed += [("report.html", said["about_report"]), ("viewer.html", said["about_viewer"])]
        for name, table in tables.items():
            self._write(f"tables/{name}.csv", table.to_csv(index=False))
            self._listed.append((f"tables/{name}.csv", said["about_tables"]))
        if self.size > limit_bytes:
            raise ReportError(
                "writing a bundle",
                contents.title,
                f"report, tables and viewer take {self.size / 1e6:.1f} MB, the limit is {limit_bytes / 1e6:.1f} MB",
                "Raise limit_mb.",
            )

    def add(
        self, patient: str, predictor: str, facts: Mapping[str, Any], folder: Path, *, value: float | None = None
    ) -> bool:
        """A patient's preview; the first one of a patient holds the scan and is shown first.

        Args:
            patient: who.
            predictor: whose segmentation and maps it has.
            facts: its `preview.json`.
            folder: that holds its NIfTI files.
            value: of the metric that patients are ordered by.

        Returns:
            Whether there was room; else the patient is named among those left out, and so is each one that follows.
        """
        is_first = patient not in self._patients
        stem = patient if is_first else f"{patient}.{predictor}"
        name = f"viewer/data/{stem}.js"
        script = volumes_script(name, facts, folder)
        is_over = self.size + len(script.encode()) > self.limit_bytes
        if is_first and (is_over or self.omitted):  # no better one takes the place of one that was left out
            self.omitted.append(patient)
        if is_over or patient in self.omitted:
            return False
        self._write(name, script)
        value = None if value is None or pd.isna(value) else float(value)
        self._patients.setdefault(patient, _Entry(value, predictor)).files[predictor] = name
        return True

    def attach(self, what: str, patient: str, source: Path, predictor: str = "") -> int:
        """Full maps (`full`) or probabilities (`probabilities`) of a patient, beside the limit; returns their bytes."""
        place = "/".join(part for part in (what, patient, predictor) if part)
        target = self.folder / place
        target.mkdir(parents=True, exist_ok=True)
        total = 0
        for path in sorted(source.iterdir()):
            shutil.copyfile(path, target / path.name)
            total += path.stat().st_size
            about = self.contents.words.viewer()[f"about_{what}"]
            self._listed.append((f"{place}/{path.name}", about.format(patient=patient, predictor=predictor)))
        return total

    def finish(self, forbidden: Sequence[str] = ()) -> None:
        """Write the list of patients, and look for what must not be in the bundle.

        Args:
            forbidden: text that must be in no file: keys, the store's address, the machine's folders.

        Raises:
            ReportError: one is; the folder is emptied.
        """
        contents = self.contents
        said = contents.words.viewer()
        listed = {
            "title": contents.title,
            "language": contents.words.language,
            "words": said,
            "generated": contents.generated,
            "order": contents.order,
            "metric": contents.metric,
            "column": contents.words.column("patient"),
            "organs": [
                {
                    "id": name,
                    "name": contents.words.organ(name),
                    "colour": colour,
                    "value": contents.values.get(name, label),
                }
                for label, (name, colour) in enumerate(contents.organs.items(), 1)
            ],
            "annotators": list(contents.annotators),
            "patients": [
                {"id": patient, "value": one.value, "lead": one.lead, "files": one.files}
                for patient, one in self._patients.items()
            ],
            "omitted": self.omitted,
            "contents": [
                {"file": name, "about": about} for name, about in [*self._listed, (LICENCE, said["about_licence"])]
            ],
        }
        self._write("viewer/patients.js", f"window.CURVAS = {_json(listed)};\n")
        if found := leaks(self.folder, forbidden):
            shutil.rmtree(self.folder)
            raise ReportError(
                "writing a bundle",
                contents.title,
                f"{', '.join(found)} would tell the store's address, a key or a folder of this machine",
                "Nothing was written. Take it out of the study file if it stands there (title, report.data_statement, …); else "
                "report it.",
            )

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        path.write_bytes(content)
        self.size += len(content)

    @property
    def patients(self) -> list[str]:
        """Those who are in it."""
        return list(self._patients)


def linked(report: str) -> str:
    """The report's page with the scripts that link its patients to the viewer."""
    head, end, tail = report.rpartition("</body>")
    return f"{head}{SCRIPTS}{end}{tail}" if end else report + SCRIPTS


def volumes_script(name: str, facts: Mapping[str, Any], folder: Path) -> str:
    """A preview as a script that hands it to the viewer.

    Args:
        name: of the script in the bundle, by which the viewer asks for it.
        facts: its `preview.json`.
        folder: that holds its NIfTI files.
    """
    volumes = [
        {**one, "data": base64.b64encode((folder / one["file"]).read_bytes()).decode("ascii")}
        for one in facts["volumes"]
    ]
    kept = ("predictor", "spacing_mm", "scan_spacing_mm", "organs", "most_uncertain_mm", "centre_mm", "not_annotated")
    content = {key: facts[key] for key in kept} | {"volumes": volumes}
    return f"curvasVolumes({_json(name)}, {_json(content)});\n"


def leaks(folder: Path, forbidden: Sequence[str]) -> list[str]:
    """Files of a bundle that hold one of these texts, by their names.

    What the package itself brings is passed over: it is the same in every bundle, and its code has words that are a key or a
    folder somewhere. A folder (`/data`) counts as the whole beginning of a path: in `/data/x`, not in `/dataset` nor in
    `viewer/data/x`. Any other text of fewer than 8 letters may be an ordinary word (the key `test`) and is not looked for;
    stores refuse such secrets.
    """
    sought = [_sought(text) for text in forbidden if len(text) >= (4 if text.startswith("/") else 8)]
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix in TEXT and name not in SHIPPED:
            content = path.read_bytes()
            found += [name] if any(one.search(content) for one in sought) else []
    return found


def _sought(text: str) -> re.Pattern[bytes]:
    if not text.startswith("/"):
        return re.compile(re.escape(text.encode()))
    return re.compile(rb"(?<![\w./-])" + re.escape(text.rstrip("/").encode()) + rb"(?![\w-])")


def write_zip(folder: Path, path: Path) -> int:
    """A folder as one zip file, everything below the zip's own name; returns its bytes. The same files give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file in sorted(one for one in folder.rglob("*") if one.is_file()):
            name = f"{path.stem}/{file.relative_to(folder).as_posix()}"
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if file.suffix == ".gz" else zipfile.ZIP_DEFLATED
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return path.stat().st_size


def worst_first(scores: pd.DataFrame, predictor: str, metric: str, direction: str) -> pd.DataFrame:
    """Patients with a predictor's mean value, the worst first; those without a value last.

    Args:
        scores: long, with `patient`, `predictor`, `metric` and `value`, one row a patient (`reduce_scores`).
        predictor: whose.
        metric: by which.
        direction: `higher` or `lower`, whichever is better.

    Returns:
        Columns patient and value.
    """
    own = scores[(scores["predictor"] == predictor) & (scores["metric"] == metric)]
    values = own.groupby("patient")["value"].mean()
    every = pd.Index(sorted(map(str, scores["patient"].unique())), name="patient")
    table = values.reindex(every).reset_index()
    return table.sort_values(
        "value", ascending=direction != "lower", na_position="last", kind="stable", ignore_index=True
    )


def _json(value: object) -> str:
    """JSON that may stand in a script: no tag can begin in it."""
    return re.sub(
        r"</|<!--",
        lambda found: found[0].replace("<", "\\u003c"),
        json.dumps(value, ensure_ascii=False, allow_nan=False),
    )
