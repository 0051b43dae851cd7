"""One predictor by itself: a scan in, its label map and a confidence for each organ out, as a challenge asks for them.

The work is the platform's own: the same prediction, the same means, the same calibration, the same codes between them, so that
the result is the volume that the platform stores. Neither Dagster nor an object store is there at run time; what a prediction
needs stands in one folder (`record`), which `export_submission` writes. `python -m curvas_assets.submission` is the
program of the container.
"""

from curvas_assets.submission.predicting import predict, rehearse
from curvas_assets.submission.record import RECORD_FILE, Sockets, Submission, read_submission, write_submission

__all__ = [
    "RECORD_FILE",
    "Sockets",
    "Submission",
    "predict",
    "read_submission",
    "rehearse",
    "write_submission",
]
