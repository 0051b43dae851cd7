"""An S3 server of this machine's own: SeaweedFS from PyPI, on loopback, with generated keys, below one state folder.

    python -m curvas_assets.local.server start|stop|status|env --state FOLDER

Only the local default uses it. The assets see an endpoint, a bucket and keys, as with any S3-compatible store.

Loopback is open to every user of the machine. S3 asks them for a key; SeaweedFS' other ports (master, volumes, filer, admin,
and gRPC of all), by which everything can be read and deleted, ask for a certificate (see `certificate`). Its sockets in the
system's temporary folder are this user's alone.
"""

import argparse
import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

from curvas_assets.errors import CurvasError, StorageError
from curvas_assets.local.certificate import make_certificate, tls_variables
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.objects import S3Objects

BUCKET = "curvas"
READY_SECONDS = 60
PROBE_SECONDS = 2
"""Silence after which a readiness probe asks again. In 1 of 40 restarts the server, although long ready, answered a
request that came too early only after 18 s."""
LOOK_SECONDS = 0.5
STOP_SECONDS = 3
"""How long the server may take to end by itself; it needs a second, or waits for the last of its requests."""
RELEASE_SECONDS = 3
"""How long ports may stay taken by a server that was just killed."""
READY_KEY = ".curvas-ready"
GRPC_OFFSET = 10_000
"""SeaweedFS opens each port once more, this much higher, for gRPC."""
LOWEST_PORT = 12_000
"""Ports are taken from here up to `GRPC_OFFSET` higher, so that no port is another's gRPC port, and both kinds lie below
32768, where Linux begins to hand out ports to outgoing connections."""
PORTS = ("master", "volume", "filer", "s3", "admin")
MOST_VOLUMES = 10_000
"""Each bucket has volumes of its own. By default, SeaweedFS allows only as many as fit on the free disk when full: with
20 GiB free at its start, the 21st bucket takes no object, however small, though almost nothing is stored."""
PIPELINE_ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]
READER_ACTIONS = ["Read", "List"]


class EmbeddedS3:
    """The server of one state folder: started if it does not run, its keys and ports kept from start to start.

    As a context manager, it is in use while the block lasts, and its last user stops it, whoever started it: a user who
    comes while another leaves still has a server. A server that `start` started runs until `stop`.

    Args:
        state: the folder; the server keeps to `s3/` below it.
        lasting: whether a server that dies while it is used as a context manager is started again.
    """

    def __init__(self, state: Path, *, lasting: bool = False):
        self.folder = private_folder(Path(state).resolve() / "s3")
        self._use: IO[str] | None = None
        self._unused = threading.Event() if lasting else None

    def __enter__(self) -> "EmbeddedS3":
        # A lock that all users share, and the kernel takes back from those that are killed.
        self._use = (self.folder / "users").open("a")
        fcntl.flock(self._use, fcntl.LOCK_SH)
        try:
            with self.alone():
                self._start_unless_it_runs()
        except BaseException:
            self.__exit__()
            raise
        if self._unused is not None:
            self._unused.clear()
            threading.Thread(target=self._keep_running, args=(self._unused,), name="s3", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._use is not None
        if self._unused is not None:
            self._unused.set()
        with self.alone(), self._use as use:
            fcntl.flock(use, fcntl.LOCK_UN)
            if self._is_kept:
                return
            try:
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody else uses it
                return
            self._end()

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pid(self) -> int | None:
        """The running server's process id; None if it does not run."""
        process = self._process()
        return None if process is None else process.pid

    def _process(self) -> psutil.Process | None:
        """The process of the pid file if it serves this folder: another process may have the number now."""
        try:
            process = psutil.Process(int((self.folder / "pid").read_text()))
            serves = process.status() != psutil.STATUS_ZOMBIE and f"-dir={self.data}" in process.cmdline()
            return process if serves else None
        except (FileNotFoundError, ValueError, psutil.Error):
            return None

    @contextmanager
    def alone(self) -> Generator[None]:
        """While the block runs, nobody else starts or stops this server. The lock ends with its process."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def environment(self, *, reader: bool = False) -> dict[str, str]:
        """The variables that lead to this server: endpoint, bucket, keys of the pipeline (or of a reader)."""
        config = self._config()
        keys = config["reader" if reader else "pipeline"]
        return {
            "S3_ENDPOINT": f"http://127.0.0.1:{config['ports']['s3']}",
            "S3_BUCKET": BUCKET,
            "AWS_ACCESS_KEY_ID": keys["access"],
            "AWS_SECRET_ACCESS_KEY": keys["secret"],
            "AWS_SESSION_TOKEN": "",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> bool:
        """Start the server and make the bucket, until it is stopped. False if it ran already.

        Raises:
            StorageError: the program is not installed, a port is taken, or the server does not come up; names its log.
        """
        with self.alone():
            (self.folder / "kept").touch()
            return self._start_unless_it_runs()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End the server if it runs: politely, then firmly. What it has acknowledged stays on disk."""
        with self.alone():
            (self.folder / "kept").unlink(missing_ok=True)
            self._end(seconds)

    def _keep_running(self, unused: threading.Event) -> None:
        while not unused.wait(LOOK_SECONDS):
            if self.pid is None:
                with self.alone():
                    try:
                        if not unused.is_set():
                            self._start_unless_it_runs()
                    except StorageError:  # tried again; users of the store get its errors
                        continue

    @property
    def _is_kept(self) -> bool:
        return (self.folder / "kept").exists()

    def _start_unless_it_runs(self) -> bool:
        if self.pid is not None:
            if self._comes_up():  # returns at once, unless the process that started the server was killed
                return False
            self._end()
        self._start()
        return True

    def _start(self) -> None:
        program = find_program()
        if program is None:
            raise StorageError(
                "starting the embedded S3 server",
                "weed",
                "the program is not installed",
                "Install it (pip install 'curvas-assets[local]'), or set S3_ENDPOINT to a server of yours.",
            )
        config = self._config()
        taken = _ports_still_taken(config["ports"])
        if taken:
            raise StorageError(
                "starting the embedded S3 server",
                str(self.folder),
                f"another program listens on its port {', '.join(taken)}",
                f"End that program, or remove {self.folder / 'config.json'}: the server then chooses new ports and keys, and "
                "keeps what is stored.",
            )
        self._write_identities(config)
        make_certificate(self.folder)
        self.data.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [program, *self._options(config)],
                cwd=self.folder,
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("WEED_")},
                    **tls_variables(self.folder),
                    "WEED_JWT_FILER_SIGNING_KEY": config["filer_key"],
                    "WEED_JWT_FILER_SIGNING_READ_KEY": config["filer_key"],
                    "WEED_JWT_SIGNING_KEY": config["filer_key"],
                    "HOME": str(self.folder),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )
        (self.folder / "pid").write_text(str(process.pid))
        if not self._comes_up():
            ended = process.poll()
            self._end()
            raise StorageError(
                "starting the embedded S3 server",
                str(self.folder),
                f"it ended with code {ended}" if ended is not None else f"no answer in {READY_SECONDS} s",
                f"Read {self.log}.",
                may_retry=True,
            )

    def _end(self, seconds: float = STOP_SECONDS) -> None:
        process = self._process()
        if process is not None:
            process.terminate()
            try:
                process.wait(seconds)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(seconds)
        (self.folder / "pid").unlink(missing_ok=True)

    def _comes_up(self) -> bool:
        """Wait until the server answers; False once it has ended, or is late."""
        deadline = time.monotonic() + READY_SECONDS
        store = connect(S3Settings.from_environment(self.environment()), read_timeout_s=PROBE_SECONDS, attempts=1)
        while not self._answers(store):
            if self.pid is None or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _answers(self, store: S3Objects) -> bool:
        """Whether the server takes the pipeline's keys and the bucket is there, made if need be."""
        try:
            with socket.create_connection(("127.0.0.1", self._config()["ports"]["s3"]), timeout=0.5):
                pass
            store.client.create_bucket(Bucket=BUCKET)
        except OSError:
            return False
        except Exception as error:
            if "BucketAlready" not in str(error):
                return False
        try:
            # A listing works before the volumes are mounted: only a byte written and read back shows readiness.
            store.put(READY_KEY, b"1")
            ready = store.get(READY_KEY) == b"1"
            store.delete([READY_KEY])
        except StorageError:
            return False
        return ready

    def _config(self) -> dict[str, Any]:
        """Ports and keys of this folder, made once: the first process chooses them for all."""
        path = self.folder / "config.json"
        if not path.exists():
            config = {
                "ports": dict(zip(PORTS, _free_ports(len(PORTS)), strict=True)),
                "pipeline": {"access": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)},
                "reader": {"access": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)},
                "filer_key": secrets.token_urlsafe(30),
            }
            with self._private_file(config) as staged:
                try:
                    os.link(staged, path)
                except FileExistsError:
                    pass
        return json.loads(path.read_text())

    def _write_identities(self, config: dict[str, Any]) -> None:
        identities = {
            "identities": [
                {
                    "name": name,
                    "credentials": [{"accessKey": config[name]["access"], "secretKey": config[name]["secret"]}],
                    "actions": actions,
                }
                for name, actions in (("pipeline", PIPELINE_ACTIONS), ("reader", READER_ACTIONS))
            ]
        }
        with self._private_file(identities) as staged:
            staged.replace(self.folder / "identities.json")

    @contextmanager
    def _private_file(self, content: dict[str, Any]) -> Generator[Path]:
        """A complete JSON file that only this user reads (0600), to be given its name; removed if it was not."""
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".json")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _options(self, config: dict[str, Any]) -> list[str]:
        ports = config["ports"]
        return [
            "-logtostderr=true",
            "mini",
            f"-dir={self.data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={self.folder / 'identities.json'}",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.max={MOST_VOLUMES}",
            f"-master.port={ports['master']}",
            f"-volume.port={ports['volume']}",
            f"-filer.port={ports['filer']}",
            f"-s3.port={ports['s3']}",
            f"-admin.port={ports['admin']}",
        ]


def private_folder(folder: Path) -> Path:
    """A folder that only this user can open, made if it is not there: nobody else may see the scans."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)
    return folder


def find_program() -> str | None:
    """SeaweedFS' program, of this Python's environment or on the path; None if it is not installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def _free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, and free again `GRPC_OFFSET` higher."""
    found: list[int] = []
    while len(found) < count:
        candidate = LOWEST_PORT + secrets.randbelow(GRPC_OFFSET)
        if candidate not in found and _is_free(candidate):
            found.append(candidate)
    return found


def _ports_still_taken(ports: dict[str, int]) -> list[str]:
    """Ports another program listens on. A server that was killed a moment ago is given time to let go of them."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        taken = [f"{port} ({name})" for name, port in ports.items() if not _is_free(port)]
        if not taken or time.monotonic() > deadline:
            return taken
        time.sleep(0.05)


def _is_free(port: int) -> bool:
    """Whether nobody listens on a loopback port, nor on its gRPC port. What a closed connection left does not count."""
    for one in (port, port + GRPC_OFFSET):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", one))
            except OSError:
                return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["start", "stop", "status", "env"])
    parser.add_argument("--state", type=Path, default=Path(".state"))
    arguments = parser.parse_args()
    server = EmbeddedS3(arguments.state)
    try:
        if arguments.action == "start":
            server.start()
        elif arguments.action == "stop":
            server.stop()
    except CurvasError as error:
        sys.exit(str(error))
    if arguments.action == "env":
        for name, value in server.environment().items():
            print(f"export {name}={shlex.quote(value)}")
    else:
        print(f"{server.folder}: {f'runs as process {server.pid}' if server.pid else 'does not run'}")


if __name__ == "__main__":
    main()
