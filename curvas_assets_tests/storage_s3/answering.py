"""A store of the tests' own: HTTP on loopback that answers what a test says, and remembers what it was asked."""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.objects import S3Objects

BASE = {"S3_BUCKET": "study", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "topsecret"}


@dataclass
class Answer:
    """One answer.

    Args:
        body: what follows the headers; a HEAD gets its length alone.
        cut: bytes of the body after which the connection breaks; None for all.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class Asked:
    """One request, as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def error(status: int, code: str, message: str = "", **headers: str) -> Answer:
    """An error as S3 tells it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, text.encode(), {"Content-Type": "application/xml", **headers})


class AnsweringStore:
    """Answers while the block lasts. All share one server and, as making one takes long, one client for each setting.

    Args:
        answer: of each request.
    """

    def __init__(self, answer: Callable[[Asked], Answer]):
        self.answer = answer
        self.asked: list[Asked] = []

    def __enter__(self) -> "AnsweringStore":
        _server().current = self
        return self

    def __exit__(self, *_: object) -> None:
        _server().current = None

    def connect(self, **variables: str) -> S3Objects:
        return _client(tuple(sorted(variables.items())))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        current = _server().current
        assert current is not None
        current.asked.append(asked)
        said = current.answer(asked)
        self.send_response(said.status)
        for name, value in said.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(said.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(said.body[: said.cut])
        if said.cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    current: AnsweringStore | None = None

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that broke is what a test asked for."""


@cache
def _server() -> _Server:
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@cache
def _client(variables: tuple[tuple[str, str], ...]) -> S3Objects:
    endpoint = {"S3_ENDPOINT": f"http://127.0.0.1:{_server().server_port}"}
    return connect(S3Settings.from_environment({**BASE, **endpoint, **dict(variables)}), attempts=1)
