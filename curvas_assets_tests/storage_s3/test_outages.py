"""Claims proved here, on a real S3 server that is stopped, frozen and started again, and against answers as stores give them.

- Each operation that meets a store that is away waits and then does its work; so do volumes, folders and listings, in
  their middle too. Of a large file only the parts that were cut off go again.
- While it waits the log says so, what for, and since when; a store that takes requests and stays silent is told as well.
- The wait is bounded, for all partitions of a batch together; what only a person can mend is told at once.
- A store that is busy or answers 5xx is waited for. What a lost answer had done already is found, not done twice.
- What a store refuses in its first seconds is asked again before it is believed.
- Runs wait; sensors skip.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event, Thread

import dagster as dg
import numpy as np
import psutil
import pytest
from botocore.exceptions import ConnectionClosedError

from curvas_assets.errors import DeploymentError, MissingArtefactError, StorageError, StoreAwayError
from curvas_assets.geometry import Grid
from curvas_assets.local.server import EmbeddedS3
from curvas_assets.orchestration.bucket import Bucket
from curvas_assets.orchestration.environment import deployment
from curvas_assets.storage import directories, objects, patience, tables
from curvas_assets.storage.connection import S3Settings, connect
from curvas_assets.storage.patience import Patience
from curvas_assets.storage.softmax import SoftmaxWriter, open_softmax
from curvas_assets_tests.storage_s3.answering import BASE, Answer, AnsweringStore, error

CONTENT = np.random.default_rng(0).bytes(20_000_000)
SOFTMAX = np.random.default_rng(1).random((3, 40, 24, 24)).astype(np.float32)
SOFTMAX /= SOFTMAX.sum(axis=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with EmbeddedS3(tmp_path_factory.mktemp("s3")) as server:
        yield server
        server.stop(1)  # politely it waits for connections that are kept


@pytest.fixture
def settings(server):
    server.start()
    return S3Settings.from_environment(server.environment())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(patience, "TELL_SECONDS", 0.5)
    monkeypatch.setattr(patience, "HICCUP_SECONDS", 0.2)
    monkeypatch.setattr(patience, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(patience, "PAUSES", (0.05, 0.2))


@pytest.fixture
def told():
    return []


def _patient(settings, told, seconds=60.0):
    return connect(settings, patience=Patience(seconds, told.append))


def _volume(store, key):
    with SoftmaxWriter(store, key, Grid.with_voxels(SOFTMAX.shape[1:], (1, 1, 1)), class_names="abc") as writer:
        writer.write(0, SOFTMAX)
    return writer.facts.version


def test_each_operation_waits_for_a_store_that_is_away_and_then_does_its_work(server, settings, tmp_path, told, quick):
    store = _patient(settings, told)
    (tmp_path / "large").write_bytes(CONTENT)
    (tmp_path / "folder").mkdir()
    for i in range(5):
        (tmp_path / "folder" / f"{i}").write_bytes(bytes([i]) * 1000)
    store.put("one", b"1")
    store.put("gone", b"1")
    store.upload("large", tmp_path / "large")
    directories.write_directory(store, "folder", tmp_path / "folder")
    version = _volume(store, "volume")
    opened = open_softmax(store, "volume")

    def download() -> bool:
        store.download("large", tmp_path / "back")
        return (tmp_path / "back").read_bytes() == CONTENT

    def missing() -> bool:
        with pytest.raises(MissingArtefactError):
            store.get("never")
        return True

    def replace() -> int:
        (tmp_path / "folder" / "0").write_bytes(b"other")
        return directories.write_directory(store, "folder", tmp_path / "folder").files

    work = {
        "put": lambda: store.put("two", b"2"),
        "put if absent": lambda: store.put("three", b"3", only_if_absent=True),
        "get": lambda: store.get("one") == b"1",
        "range": lambda: store.get_range("large", 5, 10) == CONTENT[5:15],
        "head": lambda: store.head("large").size == len(CONTENT),
        "absent": lambda: store.head("never") is None,
        "missing": missing,
        "list": lambda: [i.key for i in store.list("large")][:1] == ["large"],
        "delete": lambda: store.delete(["gone"]) is None,
        "clock": lambda: store.clock() is not None,
        "unfinished": lambda: list(store.unfinished_uploads("none/")) == [],
        "upload": lambda: store.upload("large2", tmp_path / "large") is None,
        "download": download,
        "table": lambda: tables.write_json(store, "r.json", {"a": 1}) != "",
        "folder": replace,
        "volume": lambda: _volume(store, "volume2") == version,
        "streamed": lambda: [z1 for _, z1, _ in opened.code_slabs()] == [16, 32, 40],
    }
    server.stop(1)
    with ThreadPoolExecutor(len(work)) as pool:
        running = {name: pool.submit(do) for name, do in work.items()}
        time.sleep(2)
        assert not any(one.done() for one in running.values())
        server.start()
        assert {name: bool(one.result(30)) for name, one in running.items()} == dict.fromkeys(work, True)
    assert store.get("large2") == CONTENT
    assert store.head("gone") is None
    waiting = [line for line in told if line.startswith("waiting for the store since")]
    assert 2 <= len(waiting) <= 8  # one for all, twice a second here
    assert re.search(
        r"since \d\d:\d\d:\d\d UTC \(\d+ of at most 60 s\) to go on .* s3://curvas/.*: Could not connect", waiting[0]
    )
    assert any("the store answers again after" in line for line in told)


def test_of_a_large_file_only_the_parts_that_were_cut_off_go_again(server, settings, tmp_path, told, quick):
    store = _patient(settings, told)
    (tmp_path / "large").write_bytes(CONTENT * 3)  # eight parts
    done, stopped = [], Event()

    def note(parsed=None, model=None, http_response=None, **_):
        if http_response.status_code < 300:
            done.append(model.name)
        if len(done) == 4 and not stopped.is_set():
            stopped.set()
            process = psutil.Process(server.pid)
            process.kill()
            process.wait(10)
            Thread(target=lambda: (time.sleep(1.5), server.start())).start()

    for name in ("UploadPart", "CreateMultipartUpload"):
        store.client.meta.events.register(f"after-call.s3.{name}", note)
    store.upload("large", tmp_path / "large")
    assert stopped.is_set()
    assert done.count("CreateMultipartUpload") == 1
    # An answer may be lost; what was answered is not sent again.
    assert 8 <= done.count("UploadPart") <= 8 + objects.PARTS_AT_ONCE
    stopped.clear()
    done.clear()
    store.client.meta.events.register("after-call.s3.GetObject", note)
    store.download("large", tmp_path / "back")
    assert stopped.is_set()
    assert (tmp_path / "back").read_bytes() == CONTENT * 3


def test_a_store_that_stays_silent_is_told(server, settings, told, quick):
    store = _patient(settings, told)
    store.put("one", b"1")
    process = psutil.Process(server.pid)
    process.suspend()
    try:
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(store.get, "one")
            time.sleep(1.3)
            process.resume()
            assert reading.result(20) == b"1"
    finally:
        process.resume()
    assert re.fullmatch(
        r"reading s3://curvas/one: asked at \d\d:\d\d:\d\d UTC, no answer for \d s; still waiting", told[0]
    )


def test_the_wait_is_bounded_for_all_who_wait_together(settings, told, quick):
    away = connect(
        S3Settings.from_environment({**BASE, "S3_ENDPOINT": "127.0.0.1:9"}), patience=Patience(1.0, told.append)
    )
    begin = time.monotonic()
    with pytest.raises(StoreAwayError, match=r"Could not connect.*; waited \d s, since .* UTC") as failure:
        away.get("one")
    assert 0.7 < time.monotonic() - begin < 30
    assert failure.value.may_retry
    begin = time.monotonic()
    for key in "abcdefgh":  # the other partitions of a batch
        with pytest.raises(StoreAwayError):
            away.put(key, b"1")
    assert time.monotonic() - begin < 5  # together no longer than one, on loaded cores too
    assert told


@pytest.mark.parametrize(
    "answer",
    [
        error(403, "InvalidAccessKeyId"),
        error(403, "QuotaExceeded", "Bucket quota exceeded"),
        error(507, "XMinioStorageFull", "minimum free drive threshold"),
        error(404, "NoSuchBucket"),
        error(501, "NotImplemented"),
    ],
    ids=lambda answer: str(answer.body[30:80]),
)
def test_what_only_a_person_can_mend_is_told_at_once(answer, told):
    with AnsweringStore(lambda _: answer) as stub:
        store = objects.S3Objects(stub.connect().client, "study", Patience(60, told.append))
        begin = time.monotonic()
        for ask in (lambda: store.put("a", b"x"), lambda: list(store.list("a")), lambda: store.get_range("a", 0, 3)):
            with pytest.raises(StorageError):
                ask()
        assert time.monotonic() - begin < 15  # a quarter of its patience, on loaded cores
    assert len(stub.asked) == 3  # none was asked twice
    assert told == []


@pytest.mark.parametrize(
    "answer",
    [
        error(503, "SlowDown"),
        error(503, "ServiceUnavailable"),
        error(500, "InternalError"),
        Answer(502, b"<html>Bad Gateway</html>", {"Content-Type": "text/html"}),
        Answer(504, b""),
        error(429, "TooManyRequests"),
        error(400, "RequestTimeout"),
    ],
    ids=lambda answer: f"{answer.status}-{answer.body[30:60]}",
)
def test_a_store_that_is_busy_or_broken_is_waited_for(answer, quick, monkeypatch):
    monkeypatch.setattr(objects, "PAUSE_SECONDS", 0)
    numbers = count()
    headers = {"ETag": '"a"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}

    def whole(asked):
        return Answer(200, b"content" if asked.method in ("GET", "HEAD") else b"", headers)

    with AnsweringStore(lambda asked: whole(asked) if next(numbers) % 4 >= 2 else answer) as stub:
        store = objects.S3Objects(stub.connect().client, "study", Patience(60))
        assert store.put("a", b"x")
        assert store.get("a") == b"content"
        assert store.get_range("a", 0, 7) == b"content"
        assert store.head("a").size == 7
        store.delete(["a"])


def test_what_a_lost_answer_had_done_is_found_and_not_done_twice(settings, told, quick, tmp_path):
    store = _patient(settings, told)
    (tmp_path / "large").write_bytes(CONTENT)
    real = {name: getattr(store.client, name) for name in ("put_object", "complete_multipart_upload")}
    lost = []

    def losing(name):
        def ask(**given):
            answer = real[name](**given)
            if name not in lost:
                lost.append(name)
                raise ConnectionClosedError(endpoint_url="http://store")
            return answer

        return ask

    for name in real:
        setattr(store.client, name, losing(name))
    assert store.put("mine", b"x", only_if_absent=True)
    assert not store.put("mine", b"y", only_if_absent=True)
    store.upload("large", tmp_path / "large")
    assert store.get("large") == CONTENT
    assert lost == ["put_object", "complete_multipart_upload"]
    assert list(store.unfinished_uploads("large")) == []


def test_what_a_store_refuses_in_its_first_seconds_is_asked_again(quick):
    refused = error(404, "NoSuchKey")
    whole = Answer(200, b"content", {"ETag": '"a"'})
    first = [error(503, "ServiceUnavailable"), refused, error(403, "InvalidAccessKeyId")]
    numbers = count()
    with AnsweringStore(lambda _: first[n] if (n := next(numbers)) < 3 else whole) as stub:
        assert objects.S3Objects(stub.connect().client, "study", Patience(60)).get("a") == b"content"
    numbers = count()
    with (
        AnsweringStore(lambda _: first[0] if next(numbers) == 0 else refused) as stub,
        pytest.raises(MissingArtefactError),
    ):
        objects.S3Objects(stub.connect().client, "study", Patience(60)).get("a")


def test_runs_wait_and_sensors_skip(server, monkeypatch, quick):
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CURVAS_STORE_PATIENCE_SECONDS")  # of the tests: a sensor that waited it would pass below
    server.stop(1)

    @dg.op
    def work(context: dg.OpExecutionContext, bucket: Bucket):
        Thread(target=lambda: (time.sleep(1), server.start())).start()  # once the run is at its request
        assert [item.key for item in bucket.checked_objects().list("none/")] == []

    @dg.job(resource_defs={"bucket": Bucket()})
    def waits():
        work()

    @dg.sensor(job=waits)
    def looks(bucket: Bucket):
        try:
            return dg.SkipReason(str(list(bucket.checked_objects().list("none/"))))
        except StorageError as error:
            return dg.SkipReason(str(error))

    with dg.DagsterInstance.ephemeral() as instance:
        begin = time.monotonic()
        skipped = looks(dg.build_sensor_context(instance=instance, resources={"bucket": Bucket()}))
        assert "Could not connect" in skipped.skip_message
        assert time.monotonic() - begin < 60  # a run would have waited ten minutes
        result = waits.execute_in_process(instance=instance)
        assert result.success
        said = [entry.user_message for entry in instance.all_logs(result.run_id)]
        assert any(line.startswith("waiting for the store since") and "to go on trying s3://" in line for line in said)
        assert any("the store answers again" in line for line in said)


@pytest.mark.parametrize("wrong", ["soon", "-1", "nan", "inf", "100000"])
def test_a_patience_that_is_no_length_of_time_is_refused(monkeypatch, wrong):
    monkeypatch.setenv("CURVAS_STORE_PATIENCE_SECONDS", wrong)
    with pytest.raises(DeploymentError, match="CURVAS_STORE_PATIENCE_SECONDS"):
        deployment()
    monkeypatch.setenv("CURVAS_STORE_PATIENCE_SECONDS", "")
    assert deployment().store_patience_seconds == 600
