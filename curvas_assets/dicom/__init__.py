"""DICOM in and out: series with RTSTRUCT or SEG become the platform's NIfTI files, probabilities a DICOM SEG.

An extra: `pip install 'curvas-assets[dicom]'`. A library that is missing is told when a function is called.
"""

from curvas_assets.dicom.convert import Case, Converted, convert_dicom
from curvas_assets.dicom.probabilities import write_probabilities_seg

__all__ = ["Case", "Converted", "convert_dicom", "write_probabilities_seg"]
