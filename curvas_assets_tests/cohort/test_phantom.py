"""Claims proved here.

- A patient depends on the seed and its own name only.
- Intensities are Hounsfield units of an abdomen; every annotator draws every organ; they agree least on the pancreas.
- An MR shows the same organs on the same voxels, is 0 around the body and nowhere in it, and leaves the CT as it was.
- Groups change enhancement and noise, shape and spacing are as asked, and any number of annotators draws.
"""

import numpy as np
import pytest

from curvas_assets.cohort import PatientError, read_patient
from curvas_assets.cohort.phantom import CONTRASTS, ORGANS, PROTOCOLS, make_mr, make_patient, write_cohort
from curvas_assets.study import load_study

SMALL = {"shape": (32, 64, 64), "spacing_mm": (7.5, 5.25, 5.25)}


def test_a_patient_depends_on_seed_and_name_only(tmp_path):
    alone = write_cohort(tmp_path / "a", patients=["PHANTOM002"], seed=3, **SMALL)[0]
    among = write_cohort(tmp_path / "b", patients=3, seed=3, **SMALL)[1]
    study = load_study("phantom")
    one, same = read_patient(alone, study), read_patient(among, study)
    np.testing.assert_array_equal(one.scan, same.scan)
    np.testing.assert_array_equal(one.annotations, same.annotations)
    other, _ = make_patient("PHANTOM002", seed=4, **SMALL)
    assert (other != one.scan).any()


def test_intensities_are_hounsfield_units_of_an_abdomen():
    scan, annotations = make_patient("PHANTOM001", seed=3, **SMALL)
    assert scan.min() >= -1024
    assert np.median(scan[:, 0, 0]) < -950
    for organ, label in ORGANS.items():
        assert scan[annotations[0] == label].mean() == pytest.approx(PROTOCOLS["A"].enhancement[organ], abs=45)
    assert scan.max() > 300


def test_annotators_agree_least_on_the_pancreas(tmp_path):
    study = load_study("phantom")
    for folder in write_cohort(tmp_path, patients=3, seed=3, **SMALL):
        for agreement in read_patient(folder, study).facts["dice_between_annotators"].values():
            assert 0.3 < agreement["pancreas"] < agreement["liver"] < 1


def test_groups_change_enhancement_and_noise():
    portal, annotations = make_patient("PHANTOM001", seed=3, **SMALL)
    arterial, _ = make_patient("PHANTOM001", seed=3, protocol=PROTOCOLS["B"], **SMALL)
    liver = annotations[0] == ORGANS["liver"]
    assert arterial[liver].mean() < portal[liver].mean() - 20
    low_dose, _ = make_patient("PHANTOM001", seed=3, protocol=PROTOCOLS["C"], **SMALL)
    assert low_dose[liver].std() > portal[liver].std() + 5


@pytest.mark.parametrize("annotators", [1, 2, 5])
def test_any_number_of_annotators_draws_every_organ(annotators):
    scan, annotations = make_patient("PHANTOM001", seed=3, annotators=annotators, **SMALL)
    assert scan.shape == SMALL["shape"]
    assert annotations.shape == (annotators, *SMALL["shape"])
    for annotation in annotations:
        assert set(np.unique(annotation)) == {0, *ORGANS.values()}


def test_an_mr_shows_the_organs_of_the_ct_and_nothing_around_the_body(tmp_path):
    scan, annotations = make_patient("PHANTOM001", seed=3, **SMALL)
    brightness: dict[str, float] = {}
    for contrast in CONTRASTS:
        mr = make_mr("PHANTOM001", contrast, seed=3, **SMALL)
        assert mr.dtype == np.int16
        assert mr.min() == 0
        body = scan > -600  # bowel and stomach hold air
        assert (mr[~body] == 0).mean() > 0.8
        assert (mr[body] > 0).mean() > 0.95
        assert (mr > 0).mean() < 0.75  # so that nnU-Net normalises inside the body
        liver, kidney = (mr[annotations[0] == ORGANS[organ]].mean() for organ in ("liver", "kidney"))
        brightness[contrast] = kidney / liver
    assert brightness["T1"] < 1 < 2 < brightness["T2"]  # whatever the coils' sensitivity, which is the patient's own
    images = {"t1.nii.gz": "T1", "ct.nii.gz": "CT"}
    (folder,) = write_cohort(tmp_path, patients=["PHANTOM001"], seed=3, images=images, **SMALL)
    assert {path.name for path in folder.iterdir()} == {*images, *(f"annotation_{k}.nii.gz" for k in (1, 2, 3))}
    with pytest.raises(PatientError, match=r"images \{'x.nii': 'PET'\}.*CT, T1 or T2"):
        write_cohort(tmp_path / "b", images={"x.nii": "PET"}, **SMALL)
