"""Claims proved here.

- What was acknowledged is there after kill -9 and a new start, under the same keys and port.
- Everything listens on loopback only, and the filer answers nobody without a token.
- A second start finds the first; stopping ends the process.
"""

import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from curvas_assets.local.server import EmbeddedS3
from curvas_assets.storage.connection import S3Settings, connect


@pytest.fixture
def server(tmp_path):
    with EmbeddedS3(tmp_path) as server:
        yield server


def _store(server):
    return connect(S3Settings.from_environment(server.environment()))


def test_acknowledged_objects_survive_kill_nine(server):
    for i in range(20):
        _store(server).put(f"k{i}", bytes(1000 + i))
    environment, pid = server.environment(), server.pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while server.pid is not None and time.monotonic() < deadline:
        os.waitpid(pid, 0)
    assert server.start()
    assert server.environment() == environment
    assert [len(_store(server).get(f"k{i}")) for i in range(20)] == [1000 + i for i in range(20)]


def test_everything_listens_on_loopback_and_the_filer_asks_for_a_token(server):
    ports = server._config()["ports"]
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {int(f[1].split(":")[1], 16): f[1].split(":")[0] for f in listening if f[3] == "0A"}
    for port in ports.values():
        assert addresses.get(port, "0100007F") == "0100007F"  # 127.0.0.1
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{ports['filer']}/", timeout=5)
    assert refused.value.code == 401


def test_a_second_start_finds_the_first_and_stopping_ends_it(server, tmp_path):
    other = EmbeddedS3(tmp_path)
    assert not other.start()
    assert other.pid == server.pid
    other.stop()
    assert server.pid is None
