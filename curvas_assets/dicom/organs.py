"""Names of organs → SNOMED CT."""

import hashlib
import re
from typing import Any

from curvas_assets.dicom.series import library

SIDE = re.compile(r"^(left|right|l|r)-|-(left|right|l|r)$")
"""The side in an organ's name, which becomes a modifier of its code."""
SNOMED = {
    **dict.fromkeys(("liver",), "Liver"),
    **dict.fromkeys(("spleen",), "Spleen"),
    **dict.fromkeys(("pancreas",), "Pancreas"),
    **dict.fromkeys(("kidney", "kidneys"), "Kidney"),
    **dict.fromkeys(("aorta",), "Aorta"),
    **dict.fromkeys(("stomach",), "Stomach"),
    **dict.fromkeys(("gallbladder", "gall-bladder"), "Gallbladder"),
    **dict.fromkeys(("bladder", "urinary-bladder"), "Bladder"),
    **dict.fromkeys(("ivc", "inferior-vena-cava", "postcava"), "InferiorVenaCava"),
    **dict.fromkeys(("porta", "portal-vein"), "PortalVein"),
    **dict.fromkeys(("sma", "superior-mesenteric-artery"), "SuperiorMesentericArtery"),
    **dict.fromkeys(("smv", "superior-mesenteric-vein"), "SuperiorMesentericVein"),
    **dict.fromkeys(("splenic-vein",), "SplenicVein"),
    **dict.fromkeys(("splenic-artery",), "SplenicArtery"),
    **dict.fromkeys(("duodenum",), "Duodenum"),
    **dict.fromkeys(("esophagus", "oesophagus"), "Esophagus"),
    **dict.fromkeys(("adrenal-gland", "adrenal"), "AdrenalGland"),
    **dict.fromkeys(("colon",), "Colon"),
    **dict.fromkeys(("rectum",), "Rectum"),
    **dict.fromkeys(("small-bowel", "small-intestine"), "SmallIntestine"),
    **dict.fromkeys(("prostate",), "Prostate"),
    **dict.fromkeys(("uterus",), "Uterus"),
    **dict.fromkeys(("heart",), "Heart"),
    **dict.fromkeys(("lung", "lungs"), "Lung"),
}
"""Organ → keyword of SNOMED CT in pydicom's dictionary, which holds code and meaning."""
NEOPLASMS = ("pdac", "tumour", "tumor", "lesion")
PRIVATE = "99CURVAS"
"""Coding scheme of organs without a code above."""
ANATOMY = frozenset(
    word for name in (*SNOMED, *NEOPLASMS, "left", "right", "body", "organ") for word in name.split("-")
)
"""Words that tell of no person, even where a patient is called PANCREAS_0001."""


def codes_of(organ: str) -> tuple[Any, Any, Any]:
    """Category, type and side of a segment: SNOMED CT's where the organ is known, else a private code with its name."""
    codes = library("pydicom.sr.codedict").codes.SCT
    name = "-".join(re.findall(r"[a-z0-9]+", organ.casefold()))
    if name in NEOPLASMS:
        return codes.MorphologicallyAbnormalStructure, codes.Neoplasm, None
    if name in SNOMED:
        return codes.AnatomicalStructure, getattr(codes, SNOMED[name]), None
    side = SIDE.search(name)
    if side is not None and (whole := SIDE.sub("", name)) in SNOMED:
        left = (side[1] or side[2]).startswith("l")
        return codes.AnatomicalStructure, getattr(codes, SNOMED[whole]), codes.Left if left else codes.Right
    value = name.upper() if 0 < len(name) <= 16 else hashlib.sha256(organ.encode()).hexdigest()[:16]
    return codes.AnatomicalStructure, library("highdicom").sr.CodedConcept(value, PRIVATE, organ[:64]), None
