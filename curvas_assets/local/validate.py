"""`curvas-validate`: tells everything that is wrong with a study file, each with its line."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curvas_assets.cohort import find_patients
from curvas_assets.errors import CurvasError, PatientError, StudyError
from curvas_assets.inputs import existing_folder
from curvas_assets.study import Study, built_in_studies, load_study, problems_in
from curvas_assets.study_file import read_study_file
from curvas_assets.study_schema import schema_text

EXAMPLES = """\
  curvas-validate my-study.yaml                     # file:line: field: what is wrong
  curvas-validate my-study.yaml --data ~/cohort     # also whether the files that it names are there
  curvas-validate --schema                          # the JSON schema of study files, for editors
"""
MOST_NAMED = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="curvas-validate",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", nargs="*", help="study files, or names of built-in studies")
    parser.add_argument("--data", type=Path, help="folder that holds the patients' files")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of study files")
    arguments = parser.parse_args()
    if arguments.schema:
        print(schema_text(), end="")
        return
    if not arguments.study:
        parser.error("name a study file, or --schema")
    failed = False
    try:
        for study in arguments.study:
            problems = told_of(study, arguments.data)
            failed |= bool(problems)
            print("\n".join(problems) if problems else f"{study}: nothing is wrong")
    except CurvasError as error:
        sys.exit(str(error))
    sys.exit(1 if failed else 0)


def told_of(study: str | Path, data: Path | None = None) -> list[str]:
    """Everything that is wrong with a study file, `file:line: field: message` each; without the line where it has none.

    Args:
        study: path of the file, or a built-in name.
        data: folder whose files are compared with what the study names; not if left out.
    """
    source = str(study)
    if source not in built_in_studies():
        try:
            file = read_study_file(
                Path(study).expanduser(), source, f"Name a file, or one of {', '.join(built_in_studies())}."
            )
        except StudyError as error:
            line = re.search(r"\bline (\d+)", error.found)
            return [f"{source}:{f'{line[1]}:' if line else ''} {error.found}. {error.remedy}"]
        if problems := problems_in(file):
            return [f"{source}:{f'{line}:' if line else ''} {told}" for line, told in problems]
    return [f"{source}: {told}" for told in missing_files(load_study(study), data)] if data is not None else []


def missing_files(study: Study, data: Path) -> Iterator[str]:
    """What the study names and a folder does not hold, or holds twice: scans, patients whom no annotator has drawn, and training
    patients of those whom models learn from.

    Raises:
        StudyError: there is no such folder.
    """
    told: Any = {"attempted": "comparing the study with its data", "subject": study.name, "error": StudyError}
    folder = existing_folder(data.expanduser(), **told)
    found = find_patients(folder, study).found
    files = found.files
    patients = sorted({one for members in study.sets.values() for one in members if one not in study.exclusions})
    scans = {file: {one for one in patients if file in files.get(one, ())} for file in study.image_files}
    drawn = {of.name: {one for one in patients if of.file in files.get(one, ())} for of in study.annotators}
    for one in patients:
        try:
            found.files_of(one)
        except PatientError as error:
            yield f"sets: {error}"
    for file, of in scans.items():
        if without := [one for one in patients if one not in of]:
            yield f"{'channels' if study.channels else 'image'}: {file} is not there for {_some(without)} in {folder}"
    if without := [one for one in patients if not any(one in of for of in drawn.values())]:
        yield f"annotators: no label map is there for {_some(without)} in {folder}"
    for annotator in study.annotators:
        absent = [one for one in patients if one not in drawn[annotator.name]]
        if absent and len(absent) == len(patients):
            yield f"annotators: {annotator.name} has no file {annotator.file} of any patient in {folder}"
    for label in study.label_names:
        by = study.annotator_names if study.fusion(label) else [label]
        everybody = set().union(*(drawn[one] for one in by))
        cases = len(everybody.intersection(study.training_patients()))
        if everybody and cases < study.least_cases:
            folds = ", ".join(map(str, study.folds))
            yield (
                f"training_labels: {label} has label maps of {cases} training patients in {folder}, and {study.least_cases} are needed "
                f"(folds {folds}): add them, name the others in training_labels, or use fewer folds"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


if __name__ == "__main__":
    main()
