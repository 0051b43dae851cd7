"""The platform's one family of errors.

Every error tells what was attempted, for which patient, model or object, what was found and what to do next, and
whether trying again can help. Nothing here knows Dagster: `orchestration` turns `may_retry` into a retry policy.
`let_go` frees what any error holds.
"""

import traceback


class CurvasError(Exception):
    """An expected failure, reported to the person who can remove its cause.

    Args:
        attempted: what was being done, e.g. "reading annotation_2.nii.gz".
        subject: the patient, model, study or object it was done for.
        found: what was there instead of what is needed, with values.
        remedy: what to do next.
        may_retry: whether the same call can succeed later without anybody changing anything.
    """

    def __init__(self, attempted: str, subject: str, found: str, remedy: str, *, may_retry: bool = False):
        self.attempted = attempted
        self.subject = subject
        self.found = found
        self.remedy = remedy
        self.may_retry = may_retry
        super().__init__(f"{subject}: {attempted} failed: {found}. {remedy}")

    def after(self, name: str) -> str:
        """The message, without its subject if the caller has already printed that name."""
        return str(self).removeprefix(f"{name}: ")

    def __reduce__(self):
        return _rebuild, (type(self), self.attempted, self.subject, self.found, self.remedy, self.may_retry)


def _rebuild(kind: type[CurvasError], attempted: str, subject: str, found: str, remedy: str, may_retry: bool):
    return kind(attempted, subject, found, remedy, may_retry=may_retry)


class StudyError(CurvasError):
    """The study's configuration is wrong."""


class DeploymentError(CurvasError):
    """A deployment setting (an environment variable) has a value that is not allowed."""


class PatientError(CurvasError):
    """A patient's scan or annotations cannot be used."""


class StorageError(CurvasError):
    """The object store refused, or cannot be reached."""


class StoreAwayError(StorageError):
    """The store gave no answer, or said that it is busy: the same request may succeed when it is back."""


class MissingArtefactError(StorageError):
    """An artefact that should be stored is not there."""


class CorruptArtefactError(StorageError):
    """An artefact is there, but its bytes are not what its manifest promises."""


class UnsafeNameError(StorageError):
    """A name from a store points outside the folder to which it was to be written."""


class DiskError(CurvasError):
    """The machine's disk has no room for the work."""


class SegmentationError(CurvasError):
    """nnU-Net could not prepare, train or predict."""


class SoftmaxError(SegmentationError):
    """A network's output is no distribution over the classes."""


class EnsembleError(CurvasError):
    """The members of an ensemble are incomplete or do not fit together."""


class ScoringError(CurvasError):
    """A predictor cannot be scored against the annotations given."""


class CalibrationError(CurvasError):
    """A predictor cannot be calibrated from what was given."""


class StatisticsError(CurvasError):
    """A table of scores cannot be reduced, compared or ranked."""


class ReportError(CurvasError):
    """A figure, table or report cannot be drawn from what was given."""


def let_go(error: BaseException) -> None:
    """Free what frames hold that an error, its causes and its contexts came through: whole volumes, or memory of a GPU.

    They would be kept for as long as the error is remembered. Frames that are still running are left as they are.
    """
    seen: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            links += [link.__cause__, link.__context__]
