"""Claims proved here.

- The served page shows the newest report whatever was written since, and each earlier one by its name; nothing else of the
  bucket can be read through it, and nothing is written.
- Reports are kept with their times, the newest first; beyond the limit the oldest go, and what a killed writer left is no report.
- Without a report, and while the store is away, a sentence says so; where the store is, the log alone.
- The store is asked for at each request, so that renewed keys are taken up. A name that is no report's leads nowhere.
- Where another program has the port, the address is that of a free one, and is served.
"""

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from curvas_assets.errors import StoreAwayError
from curvas_assets.local.deployment import free_port
from curvas_assets.orchestration.report_server import application, served
from curvas_assets.stages import kept_reports
from curvas_assets.storage import directories
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects

LAYOUT = Layout()


def write(objects: FolderObjects, folder: Path, text: str, minute: int) -> None:
    """What `write_report` does with a page."""
    folder.mkdir(exist_ok=True)
    (folder / "report.html").write_text(f"<p>{text}</p>")
    (folder / "references.bib").write_text("@misc{é}")
    stored = directories.write_directory(objects, LAYOUT.report(), folder)
    kept_reports.keep(objects, LAYOUT, folder, stored.version, f"2026-11-27 12:{minute:02d} UTC")


def get(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path / "bucket")


def test_the_newest_report_and_the_earlier_ones_are_served(objects: FolderObjects, tmp_path: Path):
    objects.put("data/P001/secret.txt", b"a patient")
    with served(objects, LAYOUT, free_port()) as address:
        assert "no report yet" in get(address)[1]
        assert get(f"{address}healthz") == (200, "ok")
        assert get(f"{address}reports/latest/report.html")[0] == 404
        write(objects, tmp_path / "page", "first", 1)
        assert get(f"{address}reports/latest/report.html") == (200, "<p>first</p>")
        write(objects, tmp_path / "page", "second", 2)
        assert get(f"{address}reports/latest/report.html") == (200, "<p>second</p>"), "always the newest"
        listed = json.loads(get(f"{address}reports.json")[1])
        assert [one["when"] for one in listed] == ["2026-11-27 12:02 UTC", "2026-11-27 12:01 UTC"]
        assert [one["is_current"] for one in listed] == [True, False]
        old = listed[1]["name"]
        assert get(f"{address}reports/{old}/report.html") == (200, "<p>first</p>")
        assert get(f"{address}reports/{old}/references.bib") == (200, "@misc{é}")
        page = get(f"{address}?report={old}")[1]
        assert f'src="reports/{old}/report.html"' in page
        assert all(one["when"] in page for one in listed)
        assert 'src="reports/latest/report.html"' in get(address)[1]


@pytest.mark.parametrize(
    "path",
    [
        "reports/latest/manifest.json",
        "reports/latest/..%2f..%2f..%2fdata/P001/secret.txt",
        "reports/..%2f..%2fdata%2fP001/secret.txt",
        "reports/2026-11-27T12-01-00000000/report.html",
        "data/P001/secret.txt",
        "?report=%3Cscript%3E",
    ],
)
def test_nothing_else_can_be_read(objects: FolderObjects, tmp_path: Path, path: str):
    objects.put("data/P001/secret.txt", b"a patient")
    write(objects, tmp_path / "page", "first", 1)
    with served(objects, LAYOUT, free_port()) as address:
        status, text = get(f"{address}{path}")
        assert "a patient" not in text
        assert "<script>" not in text
        assert status == (200 if path.startswith("?") else 404)
        request = urllib.request.Request(f"{address}reports/latest/report.html", method="DELETE")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code == 405


def test_a_port_that_is_taken_gives_way_to_a_free_one(objects: FolderObjects):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with served(objects, LAYOUT, taken) as address:
            assert address != f"http://127.0.0.1:{taken}/"
            assert get(f"{address}healthz") == (200, "ok")


def test_a_page_that_did_not_change_is_not_sent_again(objects: FolderObjects, tmp_path: Path):
    write(objects, tmp_path / "page", "first", 1)
    with served(objects, LAYOUT, free_port()) as address:
        page = f"{address}reports/latest/report.html"
        with urllib.request.urlopen(page, timeout=10) as answer:
            tag = answer.headers["ETag"]
        assert get(page, **{"If-None-Match": tag})[0] == 304
        write(objects, tmp_path / "page", "second", 2)
        assert get(page, **{"If-None-Match": tag}) == (200, "<p>second</p>")


def test_a_store_that_is_away_is_told(objects: FolderObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    write(objects, tmp_path / "page", "first", 1)

    def away(*_: object) -> None:
        raise StoreAwayError("reading", "the bucket", "no answer", "Start the store.", may_retry=True)

    with served(objects, LAYOUT, free_port()) as address:
        monkeypatch.setattr(FolderObjects, "get", away)
        status, text = get(f"{address}reports/latest/report.html")
        assert status == 503
        assert text == "The report cannot be read just now.", "readers are not told where the store is"
    assert "Start the store." in caplog.text


def test_keys_that_are_renewed_are_taken_up(objects: FolderObjects, tmp_path: Path):
    write(objects, tmp_path / "page", "first", 1)
    known = [FolderObjects(tmp_path / "before")]
    with TestClient(application(lambda: known[-1], LAYOUT)) as client:
        assert client.get("/reports/latest/report.html").status_code == 404
        known.append(objects)
        assert client.get("/reports/latest/report.html").text == "<p>first</p>"


@pytest.mark.parametrize("name", ["https:evil.example", "%5C%5Cevil.example", "javascript:alert(1)", "notes"])
def test_nobody_is_led_elsewhere(objects: FolderObjects, name: str):
    with TestClient(application(lambda: objects, LAYOUT), follow_redirects=False) as client:
        assert client.get(f"/reports/{name}").status_code == 404
        assert client.get("/reports/latest").headers["location"] == "latest/report.html"


def test_the_oldest_reports_go(objects: FolderObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_reports, "MOST", 3)
    for minute in range(5):
        write(objects, tmp_path / "page", f"number {minute}", minute)
    objects.put(f"{LAYOUT.kept_report('2026-11-27T12-09-00000000')}/place/report.html", b"<p>half written</p>")
    found = kept_reports.kept_reports(objects, LAYOUT)
    assert [one.when[-9:-4] for one in found] == ["12:04", "12:03", "12:02"]
    assert objects.get(LAYOUT.latest_report()) == b"<p>number 4</p>"
    assert not any("number 0" in objects.get(item.key).decode() for item in objects.list("reports/kept/"))


def test_a_report_without_a_time_is_the_latest_but_not_kept(objects: FolderObjects, tmp_path: Path):
    (tmp_path / "report.html").write_text("<p>timeless</p>")
    kept_reports.keep(objects, LAYOUT, tmp_path, "0123456789abcdef", "")
    assert kept_reports.kept_reports(objects, LAYOUT) == []
    assert objects.get(LAYOUT.latest_report()) == b"<p>timeless</p>"
