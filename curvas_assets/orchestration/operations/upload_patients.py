"""Uploading patients: each is validated before the first byte is sent; what is there already is not sent again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from curvas_assets.cohort import find_patients, read_patient, require_files
from curvas_assets.errors import CurvasError, PatientError, StorageError
from curvas_assets.file_paths import ANY, PATIENT, below_data
from curvas_assets.orchestration.operations.selection import choose_patients
from curvas_assets.orchestration.operations.transfer import human_bytes, same_content
from curvas_assets.stages.patients import Uploaded, uploaded
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore
from curvas_assets.study import Study

Tell = Callable[[str], None]


@dataclass
class Upload:
    """The result of an upload.

    Args:
        uploaded: patients of whom at least one file was sent.
        unchanged: patients who stood in the bucket with the same bytes.
        refused: patient → why; nothing of them was sent.
        lacking: patient who is not refused → annotators whose file is neither in the folder nor in the bucket.
        size: bytes sent.
    """

    uploaded: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, list[str]] = field(default_factory=dict)
    size: int = 0


def upload_patients(
    objects: ObjectStore, layout: Layout, study: Study, folder: Path, asked: Sequence[str], tell: Tell
) -> Upload:
    """Upload the patients of a folder, which is laid out as the data prefix is, each whole or not at all.

    An upload that was killed is launched again: files that stand in the bucket with the same checksum are left out.

    Args:
        objects: the bucket.
        layout: where patients stand in it.
        study: files, ids and sets; excluded patients are left out.
        folder: holds one folder a patient, named with or without the prefix; or, as the study names its files with `{patient}`,
            these files at their places below it.
        asked: as `choose_patients` reads it, of the patients in the folder.
        tell: told of each patient.

    Raises:
        PatientError: there is no such folder, or no patient in it.
        StudyError: a patient that was asked for is not in it.
        StorageError: the store failed; launch again to go on.
    """
    here = find_patients(folder, study)
    patients = here.found.patients
    if not patients:
        own, names = here.found.own_folders, ", ".join(study.files)
        if own and study.patients.has_form:
            told = "no folder in it is named like a patient of this study"
        elif own:
            told = f"no folder in it holds a file of this study ({names})"
        else:
            told = f"no file in it has the place of one of this study's ({names})"
        remedy = f"Name {'them' if own else 'patients'} like {study.patients.example}."
        if own and not study.patients.has_form:
            remedy = (
                "Give the folder that holds the patients' folders, or name their files in the study as they are called."
            )
        raise PatientError("looking for patients", str(here.folder), told, remedy)
    there = uploaded(objects, layout, study)
    chosen = choose_patients(study, asked, patients)
    done = Upload()
    for count, patient in enumerate(chosen, 1):
        at = f"{count} of {len(chosen)}, {patient}"

        def refuse(error: CurvasError, patient: str = patient, at: str = at) -> None:
            done.refused[patient] = str(error)
            tell(f"{at}: refused, nothing sent: {error.after(patient)}")

        try:
            files = here.files(patient)
            keys = _keys(there, layout, patient, {f: p.relative_to(here.folder) for f, p in files.paths.items()})
            known = there.found.files.get(patient, {})  # an annotation that is in the bucket already is not missing
            absent = {annotator.name for annotator in study.annotators if annotator.file not in known}
            lacking = [name for name in require_files(files, study) if name in absent]
            due = [file for file in keys if not same_content(objects.head(keys[file]), files[file])]
            if due:
                tell(f"{at}: validating")
                read_patient(files, study)
        except StorageError:
            raise
        except CurvasError as error:
            refuse(error)
            continue
        except Exception as error:  # one patient's files must not stop the others, whatever they do to a reader
            refuse(_unexpected(patient, error))
            continue
        if lacking:
            done.lacking[patient] = lacking
            tell(f"{at}: without a label map of {', '.join(lacking)}, who count as not having annotated this patient")
        if not due:
            done.unchanged.append(patient)
            tell(f"{at}: unchanged in the bucket")
            continue
        size = sum(files[file].stat().st_size for file in due)
        for file in due:
            objects.upload(keys[file], files[file])
        done.uploaded.append(patient)
        done.size += size
        tell(f"{at}: {len(due)} of {len(keys)} files uploaded, {human_bytes(size)} ({human_bytes(done.size)} so far)")
    if done.refused:
        tell(f"{len(done.refused)} of {len(chosen)} patients refused:\n{refusals_table(done.refused)}")
    return done


def refusals_table(refused: Mapping[str, str]) -> str:
    """Who was refused and why, as a Markdown table."""
    rows = [(patient, " ".join(why.removeprefix(f"{patient}: ").split())) for patient, why in refused.items()]
    cells = [f"| {patient} | {why.replace('|', '/')} |" for patient, why in rows]
    return "\n".join(["| patient | refused because |", "| --- | --- |", *cells])


def _unexpected(patient: str, error: Exception) -> PatientError:
    words = " ".join(str(error).split())
    return PatientError(
        "validating the files",
        patient,
        f"they stopped the reader with {type(error).__name__}{f' ({words:.200})' if words else ''}",
        "Convert them again from their source; if that does not help, report it with one of the files.",
    )


def _keys(there: Uploaded, layout: Layout, patient: str, local: Mapping[str, Path]) -> dict[str, str]:
    """File as the study names it → the key that it has in the bucket, or is to have.

    Args:
        there: what is in the bucket. A file that is there in another spelling, or another folder, stays in its place.
        layout: where files stand in the bucket.
        patient: whose they are.
        local: file → path below the folder that is uploaded.
    """
    known = there.found.files_of(patient)
    keys: dict[str, str] = {}
    for file, path in local.items():
        if there.found.own_folders:
            inside = Path(*path.parts[1:]).as_posix()
            placed = known.get(file) or f"{there.found.folder_of(patient)}/{inside}"
        else:
            placed = known.get(file) or (path.as_posix() if ANY in file else below_data(file).replace(PATIENT, patient))
        keys[file] = layout.data_file(placed)
    return keys
