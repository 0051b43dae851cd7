"""What annotators drew, from RTSTRUCT and DICOM SEG, as masks on a series' own voxels. Nothing is resampled.

A voxel belongs to a contour if its centre lies within; contours of one structure on one slice combine by exclusive or,
so that a contour within another is a hole. A frame of a SEG must lie on the series' voxels.
"""

from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curvas_assets.dicom.organs import ANATOMY
from curvas_assets.dicom.series import Series, library
from curvas_assets.errors import CurvasError, PatientError

Mask = npt.NDArray[np.bool_]
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""DICOM SEG, and its newer form of label maps."""
OFF_SLICE = 0.25
"""Distance between slices, as a share, by which a contour's points may lie off a slice."""
OFF_VOXEL = 0.1
"""Share of a voxel by which a frame of a SEG may lie off the series' voxels at any corner."""
OTHER_SERIES = "It may have been drawn on another series or resampled: export it for the series that it refers to."
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR")
NAMING = (
    "PatientName",
    "OtherPatientNames",
    "OperatorsName",
    "ReferringPhysicianName",
    "ContentCreatorName",
    "ReviewerName",
)
NUMBERING = ("PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber")


@dataclass(frozen=True)
class Source:
    """One RTSTRUCT or SEG file.

    Args:
        path: of the file.
        seg: whether it is a SEG.
        patient: as the header names the patient.
        author: who drew it, as the header or folder says; None if it does not.
        series: SeriesInstanceUIDs that it refers to.
        images: SOPInstanceUIDs that it refers to, which name the series where it is not named.
        frames: FrameOfReferenceUIDs.
        structures: number and name of each, in the file's order.
        identifiers: words and numbers that name people, lower case.
    """

    path: Path
    seg: bool
    patient: str
    author: str | None
    series: tuple[str, ...]
    images: frozenset[str]
    frames: tuple[str, ...]
    structures: tuple[tuple[int, str], ...]
    identifiers: frozenset[str]


def read_source(path: Path, header: Any, *, patient: str, author_from: str) -> Source:
    """What an RTSTRUCT or SEG says of itself.

    Args:
        path: of the file.
        header: all of it but pixels, as pydicom reads it.
        patient: whose it is.
        author_from: `label`, `operator` or `folder`.
    """
    seg = str(header.SOPClassUID) in SEG
    if seg:
        segments = [
            s for s in header.get("SegmentSequence", []) if int(s.SegmentNumber)
        ]  # 0 is a label map's background
        structures = [(int(s.SegmentNumber), str(s.get("SegmentLabel") or "")) for s in segments]
        frames = [str(header.get("FrameOfReferenceUID") or "")]
    else:
        rois = header.get("StructureSetROISequence", [])
        structures = [(int(roi.ROINumber), str(roi.get("ROIName") or "")) for roi in rois]
        frames = [str(f.get("FrameOfReferenceUID") or "") for f in header.get("ReferencedFrameOfReferenceSequence", [])]
        frames += [str(roi.get("ReferencedFrameOfReferenceUID") or "") for roi in rois]
    series, images = _referenced(header)
    return Source(
        path,
        seg,
        patient,
        _author(header, path, seg, author_from),
        series,
        images,
        tuple(dict.fromkeys(frame for frame in frames if frame)),
        tuple(structures),
        identifiers(header),
    )


def identifiers(header: Any) -> frozenset[str]:
    """Words of names, and numbers, by which a header identifies people; lower case, of three characters or more."""
    words: set[str] = set()
    for name in (*NAMING, *NUMBERING):
        text = str(header.get(name) or "").strip()
        words |= {text.casefold(), *words_of(text)}
    return frozenset(word for word in words - ANATOMY if len(word) >= 3)


def words_of(text: str) -> list[str]:
    """Runs of letters and digits of a text, lower case."""
    return "".join(c if c.isalnum() else " " for c in text.casefold()).split()


def _author(header: Any, path: Path, seg: bool, author_from: str) -> str | None:
    if author_from == "folder":
        return path.parent.name
    if author_from == "operator":
        names = ("OperatorsName", "ContentCreatorName", "ReviewerName")
    else:
        names = ("SeriesDescription", "ContentLabel") if seg else ("StructureSetLabel", "SeriesDescription")
    said = [str(header.get(name) or "").strip() for name in names]
    return next((text for text in said if text), None)


def _referenced(header: Any) -> tuple[tuple[str, ...], frozenset[str]]:
    """The series and the images that a header refers to, wherever in it."""
    series = [
        str(one.SeriesInstanceUID) for one in header.get("ReferencedSeriesSequence", []) if "SeriesInstanceUID" in one
    ]
    images = {
        str(i.ReferencedSOPInstanceUID)
        for one in header.get("ReferencedSeriesSequence", [])
        for i in one.get("ReferencedInstanceSequence", [])
    }
    for frame in header.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            for one in study.get("RTReferencedSeriesSequence", []):
                series.append(str(one.get("SeriesInstanceUID") or ""))
                images |= {str(i.ReferencedSOPInstanceUID) for i in one.get("ContourImageSequence", [])}
    for roi in header.get("ROIContourSequence", []):
        for contour in roi.get("ContourSequence", []):
            images |= {str(i.ReferencedSOPInstanceUID) for i in contour.get("ContourImageSequence", [])}
    return tuple(dict.fromkeys(uid for uid in series if uid)), frozenset(images)


class Drawn:
    """The structures of one RTSTRUCT or SEG on the voxels of a series.

    Args:
        source: the file.
        series: whose voxels are painted.
        subject: the patient, for messages.

    Raises:
        PatientError: the file breaks the standard, so that it cannot be opened.
    """

    def __init__(self, source: Source, series: Series, subject: str):
        self.source, self.series, self.subject = source, series, subject
        self.warnings: list[str] = []
        """What was odd, a sentence each."""
        self._into = np.linalg.inv(series.lps)
        with self._reading("reading an annotation"):
            self._seg = library("highdicom").seg.segread(source.path, lazy_frame_retrieval=True) if source.seg else None
            self._rois = None if source.seg else library("pydicom").dcmread(source.path)

    def paint(self, mask: Mask, numbers: Collection[int], organ: str) -> None:
        """Add structures to a mask.

        Args:
            mask: (Z, Y, X), which is written to.
            numbers: of the structures.
            organ: what they are, for messages.

        Raises:
            PatientError: a contour lies on no slice, leaves the image or is no list of points; a frame lies off the
                voxels; the file breaks the standard.
        """
        with self._reading(f"drawing {organ}"):
            if self.source.seg:
                self._paint_frames(mask, numbers, organ)
            else:
                for number in numbers:  # exclusive or holds within a structure; several structures are added
                    mask |= self._contours(number, organ)

    @contextmanager
    def _reading(self, attempted: str) -> Generator[None]:
        """One error for the many that pydicom and highdicom raise over a file that lacks something or is damaged."""
        try:
            yield
        except (CurvasError, MemoryError):
            raise
        except Exception as reason:
            kind = "SEG" if self.source.seg else "RTSTRUCT"
            found = f"its {kind} is damaged, or not as DICOM has it ({type(reason).__name__})"
            raise PatientError(
                attempted, self.subject, found, "Export it again, or leave this patient out."
            ) from reason

    def _refuse(self, organ: str, found: str, remedy: str = OTHER_SERIES) -> PatientError:
        return PatientError(f"drawing {organ}", self.subject, found, remedy)

    def _contours(self, number: int, organ: str) -> Mask:
        from skimage.draw import polygon

        depth, height, width = self.series.grid.shape
        mask = np.zeros(self.series.grid.shape, np.bool_)
        drawn: set[int] = set()
        for kind, points in self._points(number, organ):
            if kind not in CLOSED:
                self.warnings.append(
                    f"a contour of {organ} is left out: {kind.lower() or 'of no kind'}, which encloses nothing"
                )
                continue
            x, y, z = self._into[:3, :3] @ points.T + self._into[:3, 3:]
            k = round(float(z.mean()))
            off = float(np.abs(z - k).max())
            if off > OFF_SLICE:
                raise self._refuse(organ, f"a contour lies {off:.2g} slices off the nearest slice of the series")
            outside = not 0 <= k < depth
            outside |= bool(min(x.min(), y.min()) < -1 or x.max() > width or y.max() > height)
            if outside:
                raise self._refuse(organ, "a contour leaves the image")
            rows, columns = polygon(y, x, (height, width))
            mask[k, rows, columns] ^= True
            drawn.add(k)
        if drawn and (gaps := max(drawn) - min(drawn) + 1 - len(drawn)):
            self.warnings.append(f"{organ} has no contour on {gaps} slices between its first and last; they stay empty")
        return mask

    def _points(self, number: int, organ: str) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
        """Kind and points (n, 3), LPS mm, of each contour of a structure."""
        for roi in self._rois.get("ROIContourSequence", []) if self._rois is not None else []:
            if int(roi.ReferencedROINumber) != number:
                continue
            for contour in roi.get("ContourSequence", []):
                data = contour.get("ContourData")
                values = np.array([float(v) for v in (() if data is None else np.atleast_1d(data))])
                if values.size % 3 or not values.size or not np.isfinite(values).all():
                    raise self._refuse(
                        organ, f"a contour has {values.size} coordinates, which are no points", "Export it again."
                    )
                yield str(contour.get("ContourGeometricType") or "").upper(), values.reshape(-1, 3)

    def _paint_frames(self, mask: Mask, numbers: Collection[int], organ: str) -> None:
        seg: Any = self._seg
        kind = str(seg.get("SegmentationType", ""))
        shared = next(iter(seg.get("SharedFunctionalGroupsSequence", [])), {})
        half = float(seg.get("MaximumFractionalValue") or 1) / 2 if kind == "FRACTIONAL" else 0.5
        for n, own in enumerate(seg.PerFrameFunctionalGroupsSequence, start=1):
            if kind != "LABELMAP":
                identified = _group("SegmentIdentificationSequence", own, shared)
                if identified is None or int(identified.ReferencedSegmentNumber) not in numbers:
                    continue
            frame = seg.get_stored_frame(n)
            rows, columns = np.nonzero(np.isin(frame, list(numbers)) if kind == "LABELMAP" else frame >= half)
            if not len(rows):
                continue
            start, by_row, by_column = self._place(own, shared, frame.shape, organ)
            voxels = start[:, None] + by_row[:, None] * rows + by_column[:, None] * columns
            if (voxels < 0).any() or (voxels >= np.array(mask.shape[::-1])[:, None]).any():
                raise self._refuse(organ, "it was drawn outside of the image")
            mask[voxels[2], voxels[1], voxels[0]] = True
        if kind == "FRACTIONAL":
            self.warnings.append(f"{organ} is fractional: voxels of one half or more are taken")

    def _place(self, own: Any, shared: Any, shape: Any, organ: str) -> tuple[npt.NDArray[np.int64], ...]:
        """The voxel (x, y, z) of a frame's first pixel, and the steps to the next row and the next column."""
        position = _group("PlanePositionSequence", own, shared)
        orientation = _group("PlaneOrientationSequence", own, shared)
        measures = _group("PixelMeasuresSequence", own, shared)
        if position is None or orientation is None or measures is None:
            raise self._refuse(organ, "a frame of its SEG does not say where it lies", "Export it again.")
        along_row, along_column = np.reshape([float(v) for v in orientation.ImageOrientationPatient], (2, 3))
        between_rows, between_columns = (float(v) for v in measures.PixelSpacing)
        turn = self._into[:3, :3]
        start = turn @ [float(v) for v in position.ImagePositionPatient] + self._into[:3, 3]
        row, column = turn @ (along_column * between_rows), turn @ (along_row * between_columns)
        whole = [np.rint(v).astype(np.int64) for v in (start, row, column)]
        off = max(
            float(np.abs(start - whole[0] + (row - whole[1]) * r + (column - whole[2]) * c).max())
            for r in (0, shape[0] - 1)
            for c in (0, shape[1] - 1)
        )
        if off > OFF_VOXEL or any(np.abs(step).sum() != 1 for step in whole[1:]):
            raise self._refuse(organ, f"a frame of its SEG lies up to {off:.2g} voxels off the series' voxels")
        return tuple(whole)


def _group(name: str, own: Any, shared: Any) -> Any:
    """The one item of a functional group: the frame's own, else that of all frames; None if there is neither."""
    for groups in (own, shared):
        items = groups.get(name)
        if items:
            return items[0]
    return None
