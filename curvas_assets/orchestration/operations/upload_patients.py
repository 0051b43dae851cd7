"""Uploading patients: each folder is validated before its first byte is sent; what is there already is not sent again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from curvas_assets.cohort import read_patient
from curvas_assets.errors import CurvasError, PatientError, StorageError
from curvas_assets.orchestration.operations.selection import choose_patients
from curvas_assets.orchestration.operations.transfer import human_bytes, same_content
from curvas_assets.stages.patients import folder_of, folders_of_patients, patient_folders
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
        size: bytes sent.
    """

    uploaded: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    size: int = 0


def upload_patients(
    objects: ObjectStore, layout: Layout, study: Study, folder: Path, asked: Sequence[str], tell: Tell
) -> Upload:
    """Upload the patients of a folder, one folder a patient, each whole or not at all.

    An upload that was killed is launched again: files that stand in the bucket with the same checksum are left out.

    Args:
        objects: the bucket.
        layout: where patients stand in it.
        study: files, ids and sets; excluded patients are left out.
        folder: holds one folder a patient, named with or without the prefix.
        asked: as `choose_patients` reads it, of the patients in the folder.
        tell: told of each patient.

    Raises:
        PatientError: there is no such folder, or no patient in it.
        StudyError: a patient that was asked for is not in it.
        StorageError: the store failed; launch again to go on.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise PatientError("looking for patients", str(folder), "there is no such folder", "Give an existing folder.")
    here = folders_of_patients(study, (path.name for path in folder.iterdir() if path.is_dir()))
    if not here:
        raise PatientError(
            "looking for patients",
            str(folder),
            "no folder in it is named like a patient of this study",
            f"Name them like {study.patients.prefix}{1:0{study.patients.digits}d}.",
        )
    there = folders_of_patients(study, patient_folders(objects, layout))
    chosen = choose_patients(study, asked, here)
    names = [*study.image_files, *(annotator.file for annotator in study.annotators)]
    done = Upload()
    for count, patient in enumerate(chosen, 1):
        at = f"{count} of {len(chosen)}, {patient}"

        def refuse(error: CurvasError, patient: str = patient, at: str = at) -> None:
            done.refused[patient] = str(error)
            tell(f"{at}: refused, nothing sent: {error.after(patient)}")

        try:
            source = folder / folder_of(patient, here)
            target = folder_of(patient, there)
            due = [n for n in names if not _stands(objects, layout.patient_file(target, n), source / n)]
            if due:
                tell(f"{at}: validating")
                read_patient(source, study)
        except StorageError:
            raise
        except CurvasError as error:
            refuse(error)
            continue
        except Exception as error:  # one patient's files must not stop the others, whatever they do to a reader
            refuse(_unexpected(patient, error))
            continue
        if not due:
            done.unchanged.append(patient)
            tell(f"{at}: unchanged in the bucket")
            continue
        size = sum((source / name).stat().st_size for name in due)
        for name in due:
            objects.upload(layout.patient_file(target, name), source / name)
        done.uploaded.append(patient)
        done.size += size
        tell(f"{at}: {len(due)} of {len(names)} files uploaded, {human_bytes(size)} ({human_bytes(done.size)} so far)")
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


def _stands(objects: ObjectStore, key: str, path: Path) -> bool:
    return path.is_file() and same_content(objects.head(key), path)
