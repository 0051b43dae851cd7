"""Claims proved here.

- A container's limit counts, and pages of files, which are given back, count as free however often they were read.
- Without a limit, the machine's free memory counts.
"""

import pytest

from curvas_assets.machine import available_memory


def test_the_containers_limit_counts(tmp_path):
    free = available_memory(tmp_path)  # no such files: the machine's
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\ninactive_file 300000\nactive_file 400000\n")
    assert available_memory(tmp_path) == 800000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == pytest.approx(free, rel=0.2)
