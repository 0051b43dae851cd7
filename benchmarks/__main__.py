"""`make bench`: every benchmark of this folder, one after the other. Each prints ratios, times and peak memory."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        print(f"== {path.stem} ==", flush=True)
        runpy.run_module(f"benchmarks.{path.stem}", run_name="__main__")
