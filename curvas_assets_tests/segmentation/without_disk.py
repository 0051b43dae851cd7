"""Make datasets and train in a process that may write only small files. Run by `test_disk`; prints the errors it meets.

python -m … <dataset | scaled | training>:<kibibytes>,… <folder of scans> <dataset> <empty folder>

`scaled` is a dataset of scans whose header has a slope, which other code reads and writes.
"""

import resource
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from curvas_assets.errors import CurvasError
from curvas_assets.segmentation import prepare_dataset, train_model
from curvas_assets.study import ModelId
from curvas_assets_tests.segmentation.conftest import ANNOTATOR, tiny_study

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # Python keeps what it could write of a module, and fails to import it ever after
    scans, dataset, folder = (Path(name) for name in sys.argv[2:])
    study = tiny_study(epochs=1, iterations_per_epoch=1, validation_iterations_per_epoch=1)
    plans = study.plans.model_copy(update={"spacing_mm": (4.0, 3.0, 3.0)})  # finer: cases are larger than scans
    patients = study.training_patients()[:1]  # the first case meets the limit
    drawn = {p: (scans / p / "image.nii.gz", scans / p / "annotation_1.nii.gz") for p in patients}
    scaled = {}
    for patient, (image, annotation) in drawn.items():
        stored = nib.load(image)
        copy = nib.Nifti1Image(np.asarray(stored.dataobj, np.int16), stored.affine)
        copy.header.set_slope_inter(0.5, 0)
        scaled[patient] = (folder / f"{patient}.nii.gz", annotation)
        nib.save(copy, scaled[patient][0])
    for what, kibibytes in (trial.split(":") for trial in sys.argv[1].split(",")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(kibibytes) * 1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        target = folder / f"{what}{kibibytes}"
        try:
            if what in ("dataset", "scaled"):
                used = drawn if what == "dataset" else scaled
                prepare_dataset(study.model_copy(update={"plans": plans}), ANNOTATOR, used, target)
            else:
                train_model(study, ModelId(ANNOTATOR, 1, "all"), dataset, target)
            print("done")
        except CurvasError as error:
            print(type(error).__name__, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
