"""Claims proved here.

- What was acknowledged is there after kill -9 and a new start, under the same keys and port.
- Everything listens on loopback only. No port but S3 answers whoever has no certificate, in HTTP or gRPC, and S3 asks for a
  key; sockets, data and keys are this user's alone.
- The disk bounds what is stored; a number of buckets does not.
- A second start finds the first; stopping ends the process.
"""

import os
import shutil
import signal
import socket
import ssl
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from curvas_assets.local.deployment import LocalDeployment
from curvas_assets.local.server import EmbeddedS3
from curvas_assets.storage.connection import S3Settings, connect


@pytest.fixture
def server(tmp_path):
    with EmbeddedS3(tmp_path) as server:
        yield server
    server.stop()  # what a test has started for longer


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


def test_buckets_are_as_many_as_one_likes_however_full_the_disk_is(tmp_path):
    class LargeVolumes(EmbeddedS3):
        """Of which few fit on a disk: what a nearly full disk is to volumes of the usual size."""

        def _options(self, config):
            return [*super()._options(config), f"-master.volumeSizeLimitMB={large_mib}"]

    large_mib = 29_999  # SeaweedFS' largest
    would_fit = shutil.disk_usage(tmp_path).free // 2**20 // large_mib
    with LargeVolumes(tmp_path) as server:
        for number in range(would_fit + 3):
            store = connect(S3Settings.from_environment({**server.environment(), "S3_BUCKET": f"bucket{number}"}))
            store.client.create_bucket(Bucket=store.bucket)
            store.put("key", b"value")
            assert store.get("key") == b"value"


def test_everything_listens_on_loopback_and_asks_for_a_certificate(server):
    ports = server._config()["ports"]
    expected = {port + more for port in ports.values() for more in (0, 10_000)}
    deadline = time.monotonic() + 30
    while not expected <= set(listening := _listening(server.pid)):
        assert time.monotonic() < deadline, "not every part came up"
        time.sleep(0.1)
    assert set(listening.values()) == {"0100007F"}  # 127.0.0.1
    for port in listening:
        if port == ports["s3"]:
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
            assert refused.value.code == 403
            continue
        assert _answer(port, PLAIN_HTTP) in (b"", b"HTTP/1.0 400 Bad Request"[:24])
        assert _answer(port, GRPC_PREFACE) in (b"", b"HTTP/1.0 400 Bad Request"[:24])
        for wish in (["h2"], ["http/1.1"]):
            assert "CERTIFICATE_REQUIRED" in _tls_refusal(port, wish)


def test_with_the_certificate_the_master_answers(server):
    """That the ports are closed to others, not dead."""
    context = ssl.create_default_context(cafile=server.folder / "server.crt")
    context.load_cert_chain(server.folder / "server.crt", server.folder / "server.key")
    master = server._config()["ports"]["master"]
    with urllib.request.urlopen(f"https://127.0.0.1:{master}/dir/status", timeout=5, context=context) as answer:
        assert b"Topology" in answer.read()


def test_what_the_server_keeps_and_its_sockets_are_this_users_alone(server):
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    ports = {str(port + more) for port in server._config()["ports"].values() for more in (0, 10_000)}
    sockets = [path for path in Path("/tmp").glob("seaweedfs-*.sock") if path.stem.rpartition("-")[2] in ports]
    assert sockets
    private = [*sockets, server.folder / "server.key", server.folder / "config.json", server.folder / "identities.json"]
    assert [path for path in private if path.stat().st_mode & 0o077] == []


def test_a_deployments_state_is_closed_to_others_also_if_it_was_open(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    LocalDeployment(state, "phantom")
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


PLAIN_HTTP = b"GET /dir/status HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
GRPC_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


def _listening(pid: int) -> dict[int, str]:
    """Port → address (as /proc/net/tcp writes it) of all that a process listens on."""
    own = {os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir() if f.is_symlink()}
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    fields = [line.split() for line in lines]
    found = [f[1].split(":") for f in fields if f[3] == "0A" and f"socket:[{f[9]}]" in own]
    return {int(port, 16): address for address, port in found}


def _answer(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            connection.sendall(request)
            return connection.recv(24)
        except ConnectionError:
            return b""


def _tls_refusal(port: int, protocols: list[str]) -> str:
    """What a part says to whoever speaks TLS and shows no certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            with context.wrap_socket(connection) as secure:
                secure.sendall(PLAIN_HTTP)
                return f"answered {secure.recv(24)!r}"
        except ssl.SSLError as error:
            return str(error)


def test_a_second_start_finds_the_first_and_stopping_ends_it(server, tmp_path):
    other = EmbeddedS3(tmp_path)
    assert not other.start()
    assert other.pid == server.pid
    other.stop()
    assert server.pid is None


def test_the_last_user_stops_it_whoever_has_started_it(tmp_path):
    first, second = EmbeddedS3(tmp_path), EmbeddedS3(tmp_path)
    with first:
        second.__enter__()
        pid = first.pid
    assert second.pid == pid  # a quick restart is not left without
    second.__exit__()
    assert second.pid is None
    second.start()
    with first:
        pass
    assert second.pid is not None  # started by hand: it stays
    second.stop()


def test_one_that_dies_while_it_is_used_is_started_again(tmp_path):
    with EmbeddedS3(tmp_path, lasting=True) as server:
        _store(server).put("kept", b"1")
        before = server.pid
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while server.pid in (None, before):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server._comes_up()
        assert _store(server).get("kept") == b"1"
    assert server.pid is None
