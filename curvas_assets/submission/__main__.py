"""The program of a submission's container: predicts the one scan that it is given.

python -m curvas_assets.submission --models /opt/submission --input /input --output /output
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from curvas_assets.errors import CurvasError
from curvas_assets.submission.predicting import predict, rehearse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code, 1 after an error that is told on standard error."""
    parser = argparse.ArgumentParser(prog="python -m curvas_assets.submission", description=(__doc__ or "").strip())
    parser.add_argument("--models", type=Path, required=True, help="folder that the job export_submission wrote")
    parser.add_argument("--input", type=Path, default=Path("/input"), help="holds images/<socket>/<one scan>")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="receives images/<socket>/output.mha")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files; default: the system's")
    parser.add_argument("--suffix", choices=(".mha", ".nii.gz"), default=".mha", help="of what is written")
    parser.add_argument("--check", action="store_true", help="load all, rehearse without networks, and write nothing")
    given = parser.parse_args(arguments)
    start = time.monotonic()

    def tell(message: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {message}", flush=True)

    try:
        with tempfile.TemporaryDirectory(prefix="curvas-submission-", dir=given.scratch) as scratch:
            if given.check:
                rehearse(given.models, Path(scratch), tell)
            else:
                predict(given.models, given.input, given.output, Path(scratch), tell, suffix=given.suffix)
    except CurvasError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
