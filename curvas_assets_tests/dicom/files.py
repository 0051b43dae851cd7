"""Small DICOM files for tests: series and RTSTRUCT by pydicom, SEG by highdicom. Every name in them is made up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
highdicom = pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")

CT, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.481.3"
TURN = np.deg2rad(10)
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (np.cos(TURN), np.sin(TURN), 0, -np.sin(TURN), np.cos(TURN), 0),
}
PEOPLE = {
    "PatientName": "Quisquose^Jolanda",
    "PatientBirthDate": "19430817",
    "AccessionNumber": "ACC-88231",
    "OperatorsName": "Zaphod^Egon",
    "ReferringPhysicianName": "Vandersloot^Ida",
    "InstitutionName": "Hospital of Nowhere",
}
SLOPE, INTERCEPT = 2, -1024


@dataclass
class Made:
    """A series that was written: `datasets` in the order of their files, and `stored` (n, rows, columns), too."""

    folder: Path
    datasets: list[Any]
    stored: np.ndarray

    @property
    def lps(self) -> np.ndarray:
        """(slice as written, row, column) → LPS mm, by the definition of the attributes; 4 × 4."""
        first, last = self.datasets[0], self.datasets[-1]
        orientation = np.array(first.ImageOrientationPatient, float)
        affine = np.eye(4)
        begin, end = (np.array(d.ImagePositionPatient, float) for d in (first, last))
        affine[:3, 0] = (end - begin) / (len(self.datasets) - 1)
        affine[:3, 1] = orientation[3:] * float(first.PixelSpacing[0])
        affine[:3, 2] = orientation[:3] * float(first.PixelSpacing[1])
        affine[:3, 3] = begin
        return affine

    def world(self, points: np.ndarray) -> np.ndarray:
        """(slice, row, column) of points (n, 3) → LPS mm."""
        return points @ self.lps[:3, :3].T + self.lps[:3, 3]

    def indices(self, nifti: Any) -> np.ndarray:
        """Where a NIfTI file has each voxel as written: whole numbers (3, n, rows, columns)."""
        grid = np.indices(self.stored.shape).reshape(3, -1).T
        ras = self.world(grid.astype(float)) * [-1, -1, 1]
        inverse = np.linalg.inv(nifti.affine)
        found = ras @ inverse[:3, :3].T + inverse[:3, 3]
        assert np.abs(found - np.rint(found)).max() < 1e-2
        return np.rint(found).astype(int).T.reshape(3, *self.stored.shape)


def write_series(
    folder: Path,
    patient: str,
    *,
    shape: tuple[int, int, int] = (6, 20, 24),
    spacing: tuple[float, float, float] = (3.0, 1.25, 0.75),
    orientation: str = "axial",
    backwards: bool = False,
    shear: float = 0.0,
    seed: int = 0,
    modality: str = "CT",
) -> Made:
    """A series of random voxels; the names of its files tell nothing of the order of its slices."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    stored = random.integers(0, 1500, shape, dtype=np.uint16)
    x, y = np.array(ORIENTATIONS[orientation], float).reshape(2, 3)
    step = np.cross(x, y) * spacing[0] * (-1 if backwards else 1) + y * shear
    uid = pydicom.uid.generate_uid
    study, series, frame = uid(), uid(), uid()
    datasets = []
    for k, name in enumerate(random.permutation(shape[0])):
        one = _dataset(CT, uid(), patient)
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.Modality, one.SeriesNumber, one.InstanceNumber = modality, 1, k + 1
        one.PositionReferenceIndicator = None
        one.ImagePositionPatient = [round(float(v), 6) for v in np.array([-30.5, 12.25, 100.0]) + step * k]
        one.ImageOrientationPatient = [float(f"{v:.9f}") for v in (*x, *y)]
        one.PixelSpacing, one.SliceThickness = [spacing[1], spacing[2]], spacing[0]
        one.Rows, one.Columns = shape[1:]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = SLOPE, INTERCEPT, "HU"
        one.PixelData = stored[k].tobytes()
        one.private_block(0x0011, "NOWHERE", create=True).add_new(1, "LO", "Quisquose private")
        one.save_as(folder / f"{patient}-{name}.dcm", enforce_file_format=True)
        datasets.append(one)
    return Made(folder, datasets, stored)


def write_rtstruct(
    path: Path,
    series: Made,
    structures: Mapping[str, Sequence[np.ndarray]],
    *,
    label: str = "first",
    references: str = "series",
    **attributes: str,
) -> Path:
    """Structures as contours (n, 3) of (slice as written, row, column)."""
    first = series.datasets[0]
    one = _dataset(RTSTRUCT, pydicom.uid.generate_uid(), first.PatientID)
    one.StudyInstanceUID, one.SeriesInstanceUID = first.StudyInstanceUID, pydicom.uid.generate_uid()
    one.Modality, one.StructureSetLabel = "RTSTRUCT", label
    sequence, dataset = pydicom.Sequence, pydicom.Dataset
    frame = dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    if references == "series":
        referenced, study = dataset(), dataset()
        referenced.SeriesInstanceUID = first.SeriesInstanceUID
        study.RTReferencedSeriesSequence = sequence([referenced])
        frame.RTReferencedStudySequence = sequence([study])
    one.ReferencedFrameOfReferenceSequence = sequence([frame])
    one.StructureSetROISequence, one.ROIContourSequence = sequence(), sequence()
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = dataset(), dataset()
        roi.ROINumber, roi.ROIName = number, name
        roi.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, sequence()
        for points in contours:
            contour = dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR" if len(points) > 1 else "POINT"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{v:.6f}" for v in series.world(points).ravel()]
            if references == "images":
                image = dataset()
                image.ReferencedSOPInstanceUID = series.datasets[round(float(points[0, 0]))].SOPInstanceUID
                contour.ContourImageSequence = sequence([image])
            drawn.ContourSequence.append(contour)
        one.StructureSetROISequence.append(roi)
        one.ROIContourSequence.append(drawn)
    for name, value in attributes.items():
        setattr(one, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def write_seg(
    path: Path, series: Made, masks: Mapping[str, np.ndarray], *, kind: str = "BINARY", description: str = "first"
) -> Path:
    """Masks (slice as written, row, column) as a SEG; of FRACTIONAL, probabilities; of LABELMAP, without overlap."""
    codes = pydicom.sr.codedict.codes.SCT
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=n,
            segment_label=name,
            segmented_property_category=codes.AnatomicalStructure,
            segmented_property_type=codes.Organ,
            algorithm_type="MANUAL",
        )
        for n, name in enumerate(masks, start=1)
    ]
    pixels = np.stack(list(masks.values()), axis=-1)
    made = highdicom.seg.Segmentation(
        source_images=series.datasets,
        pixel_array=pixels.astype(np.float32) if kind == "FRACTIONAL" else pixels.astype(np.uint8),
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=pydicom.uid.generate_uid(),
        series_number=2,
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
        manufacturer="nobody",
        manufacturer_model_name="nothing",
        software_versions="1",
        device_serial_number="1",
        content_creator_name="Zaphod^Egon",
        series_description=description,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path


def box(k: float, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    """A rectangle on a slice, (4, 3)."""
    (r0, r1), (c0, c1) = rows, columns
    return np.array([[k, r0, c0], [k, r0, c1], [k, r1, c1], [k, r1, c0]], float)


def ellipse(k: float, centre: tuple[float, float], radii: tuple[float, float], points: int = 40) -> np.ndarray:
    """An ellipse on a slice, (n, 3)."""
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.full(points, k), centre[0] + radii[0] * np.sin(t), centre[1] + radii[1] * np.cos(t)], axis=1)


def _dataset(kind: str, uid: str, patient: str) -> Any:
    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = kind, uid
    one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    one.SOPClassUID, one.SOPInstanceUID = kind, uid
    one.PatientID, one.PatientSex, one.StudyDate, one.StudyTime = patient, "O", "20200202", "101010"
    one.StudyID = "quisquose-1"
    for name, value in PEOPLE.items():
        setattr(one, name, value)
    return one
