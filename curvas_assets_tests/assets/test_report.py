"""Claims proved here.

- The report opens by a link that needs no key, as a page, from a real S3 server; the link says when it ends, names no secret,
  and is no longer than a session token. Without a report there is none.
- A link shows the newest report, also one that was made before; earlier reports have links of their own. Where reports are
  served, the UI links to the server.
- A copy of the newest report is kept whole: figures of an earlier one go, other files stay.
- What the UI shows in short is the report's first section.
"""

import base64
import json
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest

from curvas_assets.local.deployment import LocalDeployment
from curvas_assets.orchestration import metadata
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.environment import deployment
from curvas_assets.report import WrittenReport
from curvas_assets.stages.kept_reports import keep
from curvas_assets.stages.write_up import in_short, keep_copy
from curvas_assets.storage import directories
from curvas_assets.storage.connection import LONGEST_LINK, S3Settings, link_ends, signed_link

PAGE = "<!DOCTYPE html><title>é</title>"


@pytest.fixture
def bucket(bucket_environment, monkeypatch):
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    return Bucket()


def test_the_report_opens_by_a_link_without_a_key(bucket, bucket_environment, tmp_path):
    assert bucket.report_link() is None
    assert metadata.link(None) == {}
    (tmp_path / "report.html").write_text(PAGE, encoding="utf-8")
    directories.write_directory(bucket.objects(), bucket.layout.report(), tmp_path)
    shown = metadata.link(bucket.report_link())
    address = shown["open the report"].value
    assert "UTC" in shown["the link ends"].value
    assert bucket_environment["AWS_SECRET_ACCESS_KEY"] not in address
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.read().decode() == PAGE
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    with pytest.raises(urllib.error.HTTPError) as refused:  # another object by the same signature
        urllib.request.urlopen(address.replace("report.html", "manifest.json"), timeout=10)
    assert refused.value.code == 403


def test_a_link_shows_the_newest_report_and_earlier_ones_have_theirs(bucket, tmp_path):
    for minute, text in enumerate(("first", "second"), 1):
        (tmp_path / "report.html").write_text(text)
        stored = directories.write_directory(bucket.objects(), bucket.layout.report(), tmp_path)
        keep(bucket.objects(), bucket.layout, tmp_path, stored.version, f"2026-11-27 12:0{minute} UTC")
        if minute == 1:
            address, _ = bucket.report_link()
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.read() == b"second", "a link that was made before"
    links = bucket.kept_report_links()
    assert [when for when, _ in links] == ["2026-11-27 12:02 UTC", "2026-11-27 12:01 UTC"]
    with urllib.request.urlopen(links[1][1], timeout=10) as answer:
        assert answer.read() == b"first"
    assert links[1][1] in metadata.earlier(links)["earlier reports"].value
    assert metadata.earlier(links[:1]) == {}


def test_a_damaged_report_hides_no_other_and_no_more_are_looked_at_than_shown(bucket, tmp_path):
    (tmp_path / "report.html").write_text("text")
    for minute in range(13):
        keep(bucket.objects(), bucket.layout, tmp_path, "0123abcd", f"2026-11-27 12:{minute:02d} UTC")
    bucket.objects().put(f"{bucket.layout.kept_report('2026-11-27T12-11-0123abcd')}/manifest.json", b"{")
    shown = [when[-9:-4] for when, _ in bucket.kept_report_links()]
    assert shown == ["12:12", *(f"12:{minute:02d}" for minute in range(10, 1, -1))]


def test_where_reports_are_served_the_link_never_ends(bucket, tmp_path):
    (tmp_path / "report.html").write_text(PAGE, encoding="utf-8")
    directories.write_directory(bucket.objects(), bucket.layout.report(), tmp_path)
    shown = metadata.link(bucket.report_link(), "https://reports.example.org/")
    assert {name: value.value for name, value in shown.items()} == {"open the report": "https://reports.example.org/"}


def test_a_link_ends(bucket, tmp_path):
    settings, now = bucket.settings(), datetime.now(UTC)
    bucket.objects().put("reports/x", b"x")
    ended = signed_link(settings, "reports/x", now + timedelta(seconds=1), now, "text/plain")
    time.sleep(1.6)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(ended, timeout=10)
    assert refused.value.code == 403


def test_a_link_is_no_longer_than_the_session():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ends = now + timedelta(hours=3)
    payload = base64.urlsafe_b64encode(json.dumps({"exp": ends.timestamp()}).encode()).decode().rstrip("=")
    assert link_ends(S3Settings("b", session_token=f"h.{payload}.s"), now) == ends
    assert (
        link_ends(S3Settings("b"), now) == link_ends(S3Settings("b", session_token="opaque"), now) == now + LONGEST_LINK
    )


def test_the_copy_of_the_report_is_the_newest_and_whole(tmp_path, monkeypatch):
    page, kept = tmp_path / "page", tmp_path / "kept"
    (page / "figures").mkdir(parents=True)
    (page / "report.html").write_text("one")
    (page / "figures/old.png").write_bytes(b"old")
    keep_copy(page, kept)
    (kept / "notes.txt").write_text("a person's own")
    (page / "figures/old.png").rename(page / "figures/new.png")
    (page / "report.html").write_text("two")
    keep_copy(page, kept)
    found = {p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()}
    assert found == {"report.html", "figures/new.png", "notes.txt"}
    assert (kept / "report.html").read_text() == "two"

    monkeypatch.delenv("CURVAS_REPORT_FOLDER", raising=False)
    assert deployment().report_folder is None
    local = LocalDeployment(tmp_path / "state", study="phantom")
    monkeypatch.setattr(local.s3, "environment", dict)
    assert local.environment()["CURVAS_REPORT_FOLDER"] == str(tmp_path / "state/report")


def test_in_short_is_the_first_section():
    report = WrittenReport(
        "",
        "# Study\n\nGenerated\n\n## Question\n\nDo they?\n\n### In short\n\n- Yes.\n\n## Data\n\nMuch.\n",
        {},
        (),
        "",
    )
    assert in_short(report) == "Do they?\n\n### In short\n\n- Yes."
