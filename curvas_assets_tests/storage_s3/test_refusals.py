"""Claims proved here, against answers as stores give them.

- Each kind of refusal is its own sentence with its own remedy, and is worth another try only where one can help: clock,
  region, quota, space, busy, checksums, archive, bucket, redirect, no S3 at all. The key is blamed for nothing else.
- A HEAD, which is refused without a word, is told as the GET is.
- A bucket's name with a scheme or a folder is refused with the settings that are meant.
- No request carries a checksum that older stores refuse, unless it is asked for; the body is signed all the same.
- A connection that breaks in the middle is tried again, then told. A damaged transfer is fetched again, and only what is
  stored damaged is told as damaged.
- Markers of folders are no objects; an end that is asked for beyond the end is empty.
"""

import hashlib
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace

import pytest
from botocore import exceptions
from s3transfer.exceptions import S3ValidationError

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError
from curvas_assets.storage import objects
from curvas_assets.storage.connection import S3Settings, check
from curvas_assets.storage.objects import S3Objects
from curvas_assets_tests.storage_s3.answering import BASE, Answer, AnsweringStore, error

KEY_IS_BLAMED = "refused the key"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(objects, "PAUSE_SECONDS", 0)


REFUSALS = [
    (error(403, "RequestTimeTooSkewed", "The difference is too large."), "clock.*store's clock says .*NTP", False),
    (error(403, "AccessDenied", "Request time is too skewed"), "clock", False),
    (error(400, "ExpiredToken", "The token has expired."), "session token .*ExpiredToken.*Fetch a new session", False),
    (error(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'gra'"), "N=gra", False),
    (
        error(301, "PermanentRedirect", "Use another endpoint.", **{"x-amz-bucket-region": "eu-west-3"}),
        "eu-west-3",
        False,
    ),
    (error(400, "IllegalLocationConstraintException", "The location is incompatible."), "AWS_DEFAULT_REGION", False),
    (error(403, "QuotaExceeded", "Bucket quota exceeded"), "quota", False),
    (error(403, "XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded"), "quota", False),
    (error(507, "XMinioStorageFull", "minimum free drive threshold"), "the store is full", False),
    (error(503, "SlowDown", "Please reduce your request rate."), "the store is busy.*fewer steps", True),
    (error(429, "TooManyRequests", "quota of requests"), "the store is busy", True),
    (error(400, "RequestTimeout", "Your socket was not read from."), "broke off on its way", True),
    (error(400, "BadDigest", "The Content-MD5 did not match."), "what arrived is not what was sent", True),
    (error(409, "OperationAborted", "A conflicting operation."), "changed meanwhile", True),
    (error(404, "NoSuchUpload", "The upload does not exist."), "changed meanwhile", True),
    (error(501, "NotImplemented", "A header implies functionality."), "AWS_REQUEST_CHECKSUM_CALCULATION", False),
    (error(411, "MissingContentLength", ""), "AWS_REQUEST_CHECKSUM_CALCULATION", False),
    (error(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required"), "when_supported", False),
    (error(403, "InvalidObjectState", "The object is archived."), "lies in an archive", False),
    (error(413, "EntityTooLarge", ""), "too large for the store", False),
    (error(404, "NoSuchBucket", ""), "there is no bucket 'study'.*S3_BUCKET", False),
    (error(400, "InvalidBucketName", ""), "'study' is no name of a bucket", False),
    (error(405, "MethodNotAllowed", ""), "no bucket of an S3 store.*console", False),
    (Answer(404, b"<html>nginx</html>"), "no bucket of an S3 store.*S3_ENDPOINT", False),
    (
        Answer(302, b"", {"Location": "https://store.example.org/study"}),
        r"S3_ENDPOINT=https://127\.0\.0\.1:\d+\.",
        False,
    ),
    (Answer(301, b"<html>moved</html>", {"Location": "https://store.example.org/"}), "S3_ENDPOINT=https://", False),
    (Answer(308, b"", {"Location": "https://store.example.org/"}), "S3_ENDPOINT=https://", False),
    (
        Answer(307, b"", {"Location": "http://other.example.org/x?y"}),
        "to http://other.example.org/x.*S3_ENDPOINT",
        False,
    ),
    (Answer(400, b"Client sent an HTTP request to an HTTPS server."), "400 without a reason.*https://", False),
    (error(400, "MalformedXML", "no"), "the store answered MalformedXML: no", False),
    (error(500, "InternalError", "oops"), "the store answered InternalError: oops.*Try again", True),
]


@pytest.mark.parametrize(("answer", "told", "may_retry"), REFUSALS, ids=lambda value: str(value)[:40])
def test_each_refusal_has_its_own_sentence_and_does_not_blame_the_key(answer, told, may_retry):
    with AnsweringStore(lambda _: answer) as server, pytest.raises(StorageError, match=told) as refused:
        server.connect().put("output/P1/scan.json", b"{}")
    assert KEY_IS_BLAMED not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.may_retry is may_retry
    assert len(server.asked) <= 3  # a redirect is not followed for ever


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_the_key_is_blamed_where_the_store_blames_it(code):
    with AnsweringStore(lambda _: error(403, code, "No.")) as server:
        with pytest.raises(StorageError, match=f"{KEY_IS_BLAMED} .{code}: No.*AWS_ACCESS_KEY_ID") as refused:
            check(server.connect())
        assert not refused.value.may_retry


@pytest.mark.parametrize("status", [200, 403, 502])
@pytest.mark.parametrize("page", [b"<!doctype html><p>Console</html>", b"<html><body>Console</body></html>"])
def test_a_web_page_in_place_of_a_store_is_told(page, status):
    answer = Answer(status, page, {"Content-Type": "text/html"})
    told = r"web server or proxy answered|none of an S3 store"
    with AnsweringStore(lambda _: answer) as server, pytest.raises(StorageError, match=told) as refused:
        check(server.connect())
    assert "S3_ENDPOINT (not the port of a console" in str(refused.value)
    assert KEY_IS_BLAMED not in str(refused.value)


@pytest.mark.parametrize(
    ("failure", "told", "may_retry"),
    [
        (exceptions.EndpointConnectionError(endpoint_url="https://s"), "Could not connect.*Check S3_ENDPOINT", True),
        (exceptions.ConnectTimeoutError(endpoint_url="https://s"), "timeout.*Check S3_ENDPOINT", True),
        (exceptions.ReadTimeoutError(endpoint_url="https://s"), "timeout.*Check S3_ENDPOINT", True),
        (exceptions.ConnectionClosedError(endpoint_url="https://s"), "closed.*Check S3_ENDPOINT", True),
        (exceptions.ProxyConnectionError(proxy_url="http://p"), "proxy.*Check S3_ENDPOINT", True),
        (exceptions.SSLError(endpoint_url="https://s", error="CERTIFICATE_VERIFY_FAILED"), "AWS_CA_BUNDLE", False),
        (exceptions.SSLError(endpoint_url="https://s", error="WRONG_VERSION_NUMBER"), "http:// or https://", True),
        (exceptions.NoCredentialsError(), "no key to open it with.*AWS_ACCESS_KEY_ID", False),
        (exceptions.InvalidRegionError(region_name="a b"), "AWS_DEFAULT_REGION", False),
        (S3ValidationError("Response range end exceeds requested end"), "range end", True),
        (RecursionError(), "S3_ENDPOINT=https://store", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_got_no_answer_is_told_with_what_to_look_at(failure, told, may_retry):
    class Client:
        meta = SimpleNamespace(endpoint_url="http://store", region_name="gra", config=None)

        def put_object(self, **_: object):
            raise failure

    with pytest.raises(StorageError, match=f"s3://study/a: writing failed: .*{told}") as refused:
        S3Objects(Client(), "study").put("a", b"x")
    assert refused.value.may_retry is may_retry
    assert KEY_IS_BLAMED not in str(refused.value)


def test_a_refused_head_asks_for_the_reason():
    skewed = error(403, "RequestTimeTooSkewed", "too large")
    with AnsweringStore(lambda _: skewed) as server:
        with pytest.raises(StorageError, match="clock"):
            server.connect().head("a")
        assert [asked.method for asked in server.asked] == ["HEAD", "GET"]
    with AnsweringStore(lambda _: error(404, "NoSuchKey")) as server:
        assert server.connect().head("a") is None
        with pytest.raises(MissingArtefactError):
            server.connect().get("a")


@pytest.mark.parametrize(
    ("bucket", "remedy"),
    [
        ("s3://study", r"Set S3_BUCKET=study\."),
        ("study/", r"Set S3_BUCKET=study\."),
        ("s3://study/liver/2026", "Set S3_BUCKET=study and .*S3_DATA_DIR=liver/2026/data"),
        ("https://study", "the bucket's name alone"),
        ("My Bucket", "the bucket's name alone"),
    ],
)
def test_a_bucket_that_is_no_name_is_refused_with_what_is_meant(bucket, remedy):
    with pytest.raises(StorageError, match=f"S3_BUCKET: .*{remedy}") as refused:
        S3Settings.from_environment({**BASE, "S3_BUCKET": bucket})
    assert not refused.value.may_retry


def test_requests_carry_no_checksum_unless_it_is_asked_for_and_are_signed_with_their_body(tmp_path):
    (tmp_path / "small").write_bytes(b"y" * 100)

    def headers(**variables: str) -> list[dict[str, str]]:
        with AnsweringStore(lambda _: Answer(headers={"ETag": '"a"'})) as server:
            store = server.connect(**variables)
            store.put("a", b"x")
            store.upload("b", tmp_path / "small")
        return [asked.headers for asked in server.asked]

    for sent, body in zip(headers(), (b"x", b"y" * 100), strict=True):
        assert sent["x-amz-content-sha256"] == hashlib.sha256(body).hexdigest()
        assert sent["x-amz-meta-sha256"] == hashlib.sha256(body).hexdigest()
        assert not any(name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")) for name in sent)
        assert "aws-chunked" not in sent.get("content-encoding", "")
    for sent in headers(AWS_REQUEST_CHECKSUM_CALCULATION="when_supported"):
        assert "x-amz-checksum-crc32" in sent
    with pytest.raises(StorageError, match="when_required or when_supported"):
        S3Settings.from_environment({**BASE, "AWS_REQUEST_CHECKSUM_CALCULATION": "never"})


CONTENT = bytes(range(256)) * 40


def _serving(change, *, digest: str | None = hashlib.sha256(CONTENT).hexdigest()):
    """Answers with the content as `change(content, n-th GET)` makes it, under the digest that was written with it."""
    gets = count()

    def answer(asked):
        headers = {"ETag": '"a"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if digest is not None:
            headers["X-Amz-Meta-Sha256"] = digest
        return (
            Answer(200, CONTENT, headers)
            if asked.method == "HEAD"
            else change(Answer(200, CONTENT, headers), next(gets))
        )

    return AnsweringStore(answer)


def _reads(store, tmp_path):
    def download() -> bytes:
        store.download("k", tmp_path / "file")
        return (tmp_path / "file").read_bytes()

    return {
        "get": lambda: store.get("k"),
        "get_range": lambda: store.get_range("k", 0, len(CONTENT)),
        "download": download,
    }


def _cut(answer: Answer, _: int) -> Answer:
    answer.cut = 3000
    return answer


def _damaged(answer: Answer, n: int) -> Answer:
    answer.body = answer.body[:n] + b"?" + answer.body[n + 1 :]
    return answer


@pytest.mark.parametrize("how", ["get", "get_range", "download"])
def test_a_connection_that_breaks_is_tried_again_then_told(tmp_path, how):
    with _serving(lambda answer, n: _cut(answer, n) if n < 2 else answer) as server:
        assert _reads(server.connect(), tmp_path)[how]() == CONTENT
    with _serving(_cut) as server, pytest.raises(StorageError, match="S3_ENDPOINT") as told:
        _reads(server.connect(), tmp_path / "other")[how]()
    assert told.value.may_retry
    assert list(tmp_path.glob("other/*")) == []


@pytest.mark.parametrize("how", ["get", "download"])
def test_a_damaged_transfer_is_fetched_again_and_only_damage_at_rest_is_told_as_that(tmp_path, how):
    with _serving(lambda answer, n: _damaged(answer, n) if n < 2 else answer) as server:
        assert _reads(server.connect(), tmp_path)[how]() == CONTENT
    with _serving(_damaged) as server, pytest.raises(StorageError, match="3 different contents") as told:
        _reads(server.connect(), tmp_path / "way")[how]()
    assert told.value.may_retry
    with (
        _serving(lambda answer, _: _damaged(answer, 5)) as server,
        pytest.raises(CorruptArtefactError, match="Materialise it again") as told,
    ):
        _reads(server.connect(), tmp_path / "rest")[how]()
    assert not told.value.may_retry
    assert list(tmp_path.glob("*/*")) == []
    with _serving(lambda answer, _: _damaged(answer, 5), digest=None) as server:  # nobody said what it was
        assert _reads(server.connect(), tmp_path)[how]() == CONTENT[:5] + b"?" + CONTENT[6:]


def test_markers_of_folders_are_no_objects_and_tags_may_be_absent():
    now = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    keys = [("data/", 0), ("data/P1/", 0), ("data/P1/image.nii.gz", 7), ("data/P1/empty", 0), ("data/P1/odd/", 3)]
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{now}</LastModified></Contents>"
        for key, size in keys
    )
    listing = f"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    with AnsweringStore(lambda _: Answer(200, listing.encode())) as server:
        assert [item.key for item in server.connect().list("data/")] == [
            "data/P1/image.nii.gz",
            "data/P1/empty",
            "data/P1/odd/",
        ]


def test_what_lies_beyond_the_end_is_empty():
    with AnsweringStore(lambda _: error(416, "InvalidRange")) as server:
        assert server.connect().get_range("k", 100, 10) == b""
