"""DICOM in and out, an extra: series with RTSTRUCT or SEG become the platform's NIfTI files, probabilities become a DICOM SEG.

Needs `pip install 'curvas-assets[dicom]'`; what is missing is told when a function is called, not when this is imported.
"""

from curvas_assets.dicom.convert import Case, Converted, convert_dicom
from curvas_assets.dicom.probabilities import write_probabilities_seg

__all__ = ["Case", "Converted", "convert_dicom", "write_probabilities_seg"]
