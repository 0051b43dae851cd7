"""A small read-only web server for the report: always the newest, with the earlier ones to choose from.

It stands beside Dagster's webserver, whose UI links to it (`CURVAS_REPORT_URL`), and needs the store's keys, not a Dagster
instance.
Readers need no key. Like the UI, it knows no users: whoever reaches its address can read, so give it the same protection.

    python -m curvas_assets.orchestration.report_server --host 0.0.0.0 --port 3100
"""

import argparse
import html
import logging
import mimetypes
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from curvas_assets.errors import CorruptArtefactError, CurvasError, MissingArtefactError
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.stages.kept_reports import NAME, PAGE, KeptReport, kept_reports
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore

LATEST = "latest"
"""The name under which the newest report is served."""
UNCACHED = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
WAIT_SECONDS = 10
LOG = logging.getLogger(__name__)


def application(objects: Callable[[], ObjectStore], layout: Layout) -> Starlette:
    """The web application.

    Addresses: `/` shows the newest report under a bar with the others; `/reports/<name>/<file>` one file of a report, whose
    name `latest` is the newest; `/reports.json` the list; `/healthz` answers without the store.

    Args:
        objects: gives the bucket, which is only read: asked at each request, so that keys that were renewed are taken up.
        layout: where reports stand in it.
    """

    def kept() -> list[KeptReport]:
        return kept_reports(objects(), layout)

    def is_there() -> bool:
        return directories.exists(objects(), layout.report())

    def no_such_report() -> Response:
        return PlainTextResponse("There is no such report.", 404)

    def is_a_name(name: str) -> bool:
        return name == LATEST or NAME.fullmatch(name) is not None

    async def home(request: Request) -> Response:
        asked = request.query_params.get("report", LATEST)
        names = await run_in_threadpool(kept)
        there = await run_in_threadpool(is_there)
        return HTMLResponse(_frame(asked if _is_known(asked, names) else LATEST, names, there=there), headers=UNCACHED)

    async def listed(_: Request) -> Response:
        return JSONResponse([one._asdict() for one in await run_in_threadpool(kept)], headers=UNCACHED)

    async def file(request: Request) -> Response:
        name, path = request.path_params["name"], request.path_params["path"]
        if not is_a_name(name):
            return no_such_report()
        key = layout.report() if name == LATEST else layout.kept_report(name)
        try:
            store = await run_in_threadpool(objects)
            version = await run_in_threadpool(directories.version_of, store, key)
            if request.headers.get("if-none-match") == f'"{version}"':
                return Response(status_code=304, headers={"ETag": f'"{version}"', **UNCACHED})
            content = await run_in_threadpool(directories.read_file, store, key, path)
        except (MissingArtefactError, CorruptArtefactError):
            return PlainTextResponse("There is no such report, or no such file in it.", 404, headers=UNCACHED)
        kind = mimetypes.guess_type(path)[0] or "text/plain"
        kind += "; charset=utf-8" if kind.startswith("text/") else ""
        return Response(content, media_type=kind, headers={"ETag": f'"{version}"', **UNCACHED})

    async def whole(request: Request) -> Response:
        name = request.path_params["name"]
        return RedirectResponse(f"{name}/{PAGE}") if is_a_name(name) else no_such_report()

    async def away(_: Request, error: Exception) -> Response:
        LOG.error("%s", error)  # it names the store, which readers need not know
        return PlainTextResponse("The report cannot be read just now.", 503, headers=UNCACHED)

    return Starlette(
        routes=[
            Route("/", home),
            Route("/reports.json", listed),
            Route("/healthz", lambda _: PlainTextResponse("ok")),
            Route("/reports/{name}", whole),
            Route("/reports/{name}/{path:path}", file),
        ],
        exception_handlers={CurvasError: away},
    )


def _is_known(name: str, kept: list[KeptReport]) -> bool:
    return any(one.name == name for one in kept)


def _frame(shown: str, kept: list[KeptReport], *, there: bool) -> str:
    """The bar with all reports, above the one that is shown."""
    choices = [(LATEST, "the newest report")]
    choices += [(one.name, f"{one.when}{' (the newest)' if one.is_current else ''}") for one in kept]
    options = "".join(
        f'<option value="{html.escape(name)}"{" selected" if name == shown else ""}>{html.escape(text)}</option>'
        for name, text in choices
    )
    beside = f"reports/{html.escape(shown)}"
    if not there and shown == LATEST:
        body = "<p>There is no report yet. The job <code>study</code> or <code>write_report</code> writes it.</p>"
    else:
        body = f'<iframe title="report" src="{beside}/{PAGE}"></iframe>'
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Report</title><link rel="icon" href="data:,">
<style>
html, body {{ height: 100%; margin: 0; }}
body {{ display: flex; flex-direction: column; font: 14px/1.4 "Liberation Sans", Arial, Helvetica, sans-serif; color: #1b1b1b; }}
form {{ display: flex; flex-wrap: wrap; gap: .2rem .8rem; align-items: center; padding: .35rem .8rem; background: #f2f5f8;
  border-bottom: 1px solid #d9d9d9; margin: 0; }}
a {{ color: #0072B2; }} iframe {{ flex: 1; border: 0; width: 100%; }} p {{ padding: 0 .8rem; }} select {{ font: inherit; }}
</style></head>
<body>
<form><label>Report: <select name="report" onchange="this.form.submit()">{options}</select></label>
<noscript><button>show</button></noscript>
<span>{len(kept)} kept</span>
<a href="{beside}/report.md" download="report.md">Markdown</a>
<a href="{beside}/references.bib" download="references.bib">BibTeX</a>
<a href="{beside}/{PAGE}" target="_blank" rel="noopener">alone</a></form>
{body}
</body></html>
"""


@contextmanager
def served(objects: ObjectStore, layout: Layout, port: int) -> Generator[str]:
    """Serve the report on loopback while the block runs; gives the address.

    Args:
        objects: the bucket.
        layout: where reports stand in it.
        port: that is taken if no program listens there; else any free one.
    """
    listening = _listening(port)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server = uvicorn.Server(_config(application(lambda: objects, layout), "127.0.0.1", port))
    thread = threading.Thread(target=server.run, args=([listening],), name="curvas-reports", daemon=True)
    thread.start()
    deadline = time.monotonic() + WAIT_SECONDS
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(WAIT_SECONDS)


def _listening(port: int) -> socket.socket:
    """A socket that listens already, so that no other program can take its port before the server starts."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError):  # it is taken, or beyond the last one
        return socket.create_server(("127.0.0.1", 0))


def _config(app: Starlette, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container; this machine alone if not given")
    parser.add_argument("--port", type=int, default=3100)
    arguments = parser.parse_args()
    bucket = Bucket()
    try:
        bucket.checked_objects()
        app = application(bucket.objects, bucket.layout)
    except CurvasError as error:
        sys.exit(str(error))
    uvicorn.Server(_config(app, arguments.host, arguments.port)).run()


if __name__ == "__main__":
    main()
