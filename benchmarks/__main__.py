"""`make bench`: every benchmark of this folder, one after the other. Each prints ratios, times and peak memory."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    failed = []
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        print(f"== {path.stem} ==", flush=True)
        try:
            runpy.run_module(f"benchmarks.{path.stem}", run_name="__main__")
        except SystemExit as end:
            if end.code:
                failed.append(path.stem)
    sys.exit(f"targets missed: {', '.join(failed)}" if failed else 0)
