"""`make study`: a study of your own patients on this machine, from their folder to the report.

Checks the study file, puts its patients into an S3 server of its own, launches the job `study` on a Dagster instance of its
own, and follows it. It may be stopped and started again at any time: what is done is kept. What the folder holds is not
changed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from curvas_assets.errors import CurvasError, PatientError
from curvas_assets.inputs import existing_folder
from curvas_assets.local.demo import Progress, run_study
from curvas_assets.local.deployment import state_of, typed_as
from curvas_assets.local.validate import missing_files, told_of
from curvas_assets.orchestration.operations.upload_patients import upload_patients
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.layout import Layout
from curvas_assets.study import Study, load_study

EXAMPLES = """\
  make study STUDY=my-study.yaml DATA=~/cohort
  curvas-study my-study.yaml --data ~/cohort
"""
SETS = ("train", "validation", "test")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="curvas-study",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", nargs="?", help="path of the study file, or a built-in name")
    parser.add_argument("--study", dest="named", help="the same")
    parser.add_argument(
        "--data", default="", help="folder of the patients' files; left out, those that were brought before"
    )
    parser.add_argument("--state", type=Path, help="folder of everything that is kept; else .state-<study>")
    parser.add_argument("--port", type=int, default=3000, help="of the UI while the study runs")
    arguments = parser.parse_args()
    name = arguments.study or arguments.named
    if not name:
        parser.error("name a study file")
    state = arguments.state or state_of(name)
    typed = typed_as("study", state, name, data=arguments.data)
    if problems := told_of(name):
        sys.exit("\n".join([*problems, f"Correct the file; `{typed}` starts again."]))
    tell = Progress()
    try:
        succeeded = run(name, arguments.data, state, arguments.port, tell, typed)
    except CurvasError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print(f"stopped: the next `{typed}` goes on from here", flush=True)
        sys.exit(130)
    sys.exit(0 if succeeded else 1)


def run(name: str, data: str, state: Path, port: int, tell: Progress, typed: str) -> bool:
    """Run a study of the patients in a folder; True if it succeeded.

    Args:
        name: of the study, built-in or the path of its file.
        data: the folder; empty to go on with the patients who are in the bucket.
        state: folder of everything that is kept.
        port: of the UI while it runs.
        tell: told of the progress.
        typed: what the user typed.

    Raises:
        StudyError: the study file is wrong.
        PatientError: there is no such folder, or a patient of the study is not in it, or was refused.
        InUseError: the state is in use.
        StorageError: the port is in use, or the store does not start.
    """
    study = load_study(name)
    told: Any = {"attempted": "bringing the patients", "subject": study.name, "error": PatientError}
    folder = existing_folder(Path(data).expanduser(), **told).resolve() if data else None

    def bring(settings: S3Settings) -> None:
        if folder is not None:
            bring_patients(study, settings, folder, tell)

    return run_study(study, name, state, port, tell, bring, typed)


def bring_patients(study: Study, settings: S3Settings, folder: Path, tell: Progress) -> None:
    """Upload those of the study's patients that are in a folder, each validated; what is in the bucket is left out.

    Raises:
        PatientError: a patient whom a set names is not in the folder, or was refused; the message has the lines that exclude
            these patients. Without them, what is made from all patients would wait for ever.
    """
    for what in missing_files(study, folder):
        tell(f"data: {what}")
    asked = ["all"] if study.rest else [name for name in SETS if study.sets.get(name)]
    layout = Layout(data=settings.data_dir)
    done = upload_patients(connect(settings), layout, study, folder, asked, lambda line: tell(f"data: {line}"))
    here = {*done.uploaded, *done.unchanged}
    named = {one for members in study.sets.values() for one in members if one not in study.exclusions}
    if absent := sorted(named - here):
        reasons = {one: done.refused.get(one, f"it is not in {folder}") for one in absent}
        lines = "\n".join(
            f"  {json.dumps(one)}: {json.dumps(_short(one, why), ensure_ascii=False)}" for one, why in reasons.items()
        )
        raise PatientError(
            "bringing the patients",
            study.name,
            f"{len(absent)} of {len(named)} were refused or are not there, for the reasons above",
            f"Mend their files and start again, or leave them out; add to the study file:\nexclusions:\n{lines}",
        )
    tell(f"data: {len(here)} patients are in the bucket")


def _short(patient: str, why: str) -> str:
    """A reason in one line, without the remedy's details."""
    return " ".join(why.removeprefix(f"{patient}: ").split())[:200]


if __name__ == "__main__":
    main()
