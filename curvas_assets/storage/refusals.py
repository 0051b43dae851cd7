"""What a store's refusal means, and how to fix it: one sentence for each kind of problem, not for each code.

Stores share Amazon's codes, mostly, and name their own beside them. Where the code is unknown, the store's own message is
told. Nothing here sends a request.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

ON_THE_WAY = (HTTPClientError, ConnectionError, IncompleteReadError, ChecksumError, FlexibleChecksumError)
"""Errors on the way to the store; all others that botocore raises happen before anything is sent."""
CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
TRY_AGAIN = "Try again; if it goes on, look at the store's log."
NETWORK = "Check S3_ENDPOINT and that the store runs and can be reached."

CLOCK = {"RequestTimeTooSkewed", "RequestExpired", "RequestNotYetValid", "InvalidDateHeader"}
TOKEN = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
KEY = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "UnrecognizedClientException",
}
FORBIDDEN = {
    "AccessDenied",
    "AccessDeniedException",
    "Forbidden",
    "Unauthorized",
    "UnauthorizedAccess",
    "AllAccessDisabled",
}
REGION = {
    *("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "IncorrectEndpoint"),
    *("InvalidLocationConstraint", "InvalidRegion"),
}
BUSY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "ServiceUnavailable",
}
BROKEN_OFF = {"RequestTimeout", "IncompleteBody", "RequestTimeoutException"}
DAMAGED = {"BadDigest", "InvalidDigest", "ContentSHA256Mismatch"}
MEANWHILE = {"PreconditionFailed", "OperationAborted", "ConditionalRequestConflict", "NoSuchUpload"}
HEADERS = {
    "XAmzContentSHA256Mismatch",
    "NotImplemented",
    "MissingContentLength",
    "InvalidTrailer",
    "MalformedTrailerError",
}
HEADER_WORDS = re.compile(
    r"checksum|trailer|unsupported header|content-md5|content-length|aws-chunked|content-sha256|x-amz-sdk"
)
FULL = re.compile(r"storage ?full|insufficient ?storage|no space|disk full|minimum free drive")
SKEWED = re.compile(r"time.*(skew|too large|too far)|clock")
WRONG_REGION = re.compile(r"region '?[\w-]+'? is wrong|expecting '?([\w-]+)'?")


@dataclass(frozen=True)
class Refusal:
    """What was found, what to do next, and whether the same request can succeed later.

    Args:
        found: in the store's words or ours.
        remedy: what to do next.
        may_retry: whether the same request can succeed later.
        away: whether it will succeed once the store is back or less busy, so that it is worth waiting.
    """

    found: str
    remedy: str
    may_retry: bool = False
    away: bool = False


@dataclass(frozen=True)
class Asked:
    """What was asked, and how the client is set.

    Args:
        bucket: the bucket's name.
        endpoint: the store's URL; empty for Amazon's own.
        region: that requests are signed for.
        checksums: botocore's `request_checksum_calculation`.
    """

    bucket: str
    endpoint: str
    region: str
    checksums: str


@dataclass(frozen=True)
class _Answer:
    """What a store answered.

    Args:
        code: that it gives the error; empty if none.
        status: of HTTP; 0 if it does not say.
        message: in one line.
        region: of the bucket, where the error names it.
        headers: of HTTP.
    """

    code: str
    status: int
    message: str
    region: str
    headers: Mapping[str, str]

    @property
    def said(self) -> str:
        """Code and message, for people."""
        return f"{self.code or self.status}" + (f": {self.message}" if self.message else "")

    @property
    def text(self) -> str:
        """Code and message, to look for words in."""
        return f"{self.code} {self.message}".lower()


def explain(error: ClientError, asked: Asked) -> Refusal:
    """What an answer of the store means. "There is no such object" is not covered: the caller handles it."""
    answer = _answer(error)
    return (  # the first that fits: a status or a word may fit several
        _bucket(answer, asked)
        or _clock_or_session(answer)
        or _room(answer)
        or _region(answer, asked)
        or _passing(answer)
        or _checksums(answer, asked)
        or _redirected(answer, asked)
        or _object(answer)
        or _no_store(answer)
        or _key(answer)
        or _unexplained(answer)
    )


def explain_failure(error: Exception, asked: Asked) -> Refusal:
    """What a request means that got no answer, or one that nobody can read."""
    said = " ".join(str(error).split())[:300].rstrip(". ")
    if isinstance(error, RecursionError):
        return _redirect("", asked)
    if isinstance(error, NoCredentialsError):
        return Refusal(
            "there is no key to open it with",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the environment or in .env.",
        )
    if isinstance(error, ParamValidationError):
        return Refusal(said, "Check S3_BUCKET and the prefixes S3_DATA_DIR, S3_ARTIFACTS_DIR …")
    if isinstance(error, SSLError) or "CERTIFICATE_VERIFY" in said:
        if "CERTIFICATE" in said.upper():
            return Refusal(
                f"the store's certificate is not trusted ({said})",
                "Set AWS_CA_BUNDLE to the file of the authority that signed it.",
            )
        return Refusal(
            f"the https connection failed ({said})",
            "Check S3_ENDPOINT: port, and http:// or https://.",
            may_retry=True,
            away="WRONG_VERSION_NUMBER" not in said.upper(),  # plain http at that port
        )
    if isinstance(error, BotoCoreError) and not isinstance(error, ON_THE_WAY):
        return Refusal(said, "Check S3_ENDPOINT, AWS_DEFAULT_REGION and the AWS_… keys.")
    if isinstance(error, ResponseParserError):
        return Refusal(
            f"its answer is none of an S3 store ({said[:160]})",
            "Check S3_ENDPOINT (not the port of a console or web page), and that no proxy answers in its place.",
        )
    return Refusal(
        said or type(error).__name__, NETWORK, may_retry=True, away=isinstance(error, (*ON_THE_WAY, HTTPError))
    )


def status_of(error: ClientError) -> int:
    """The HTTP status of an answer; 0 if it does not say."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answer(error: ClientError) -> _Answer:
    said: dict[str, Any] = error.response.get("Error", {})
    metadata: dict[str, Any] = error.response.get("ResponseMetadata", {})
    return _Answer(
        code=str(said.get("Code") or ""),
        status=status_of(error),
        message=" ".join(str(said.get("Message") or "").split())[:240].rstrip(". "),
        region=str(said.get("Region") or ""),
        headers=metadata.get("HTTPHeaders", {}),
    )


# Kinds of refusals: each function tells of its own kind, and gives None for an answer of another one ------------------


def _bucket(answer: _Answer, asked: Asked) -> Refusal | None:
    if answer.code == "NoSuchBucket":
        return Refusal(f"there is no bucket {asked.bucket!r}", "Create it, or set S3_BUCKET to the right one.")
    if answer.code == "InvalidBucketName":
        return Refusal(
            f"{asked.bucket!r} is no name of a bucket ({answer.said})", "Set S3_BUCKET to the bucket's name."
        )
    return None


def _clock_or_session(answer: _Answer) -> Refusal | None:
    """Times that do not fit: the clock's, or the session's, which has ended."""
    if answer.code in CLOCK or (answer.status in (400, 403) and SKEWED.search(answer.text)):
        clock = f"; the store's clock says {answer.headers['date']}" if "date" in answer.headers else ""
        return Refusal(
            f"this machine's clock and the store's are too far apart ({answer.said}{clock})",
            "Set this machine's clock right (NTP), then try again.",
        )
    if answer.code in TOKEN:
        return Refusal(
            f"the store refused the session token ({answer.said})",
            "Fetch a new session's AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; keys of a service "
            "account do not end.",
        )
    return None


def _room(answer: _Answer) -> Refusal | None:
    """A quota that is used up, or a full store."""
    if "quota" in answer.text and answer.code not in BUSY and answer.status != 429:
        return Refusal(
            f"the quota of the bucket or of its owner is used up ({answer.said})",
            "Remove what is not needed (jobs `empty_…`), or have the quota raised.",
        )
    if answer.status == 507 or FULL.search(answer.text):
        return Refusal(f"the store is full ({answer.said})", "Have room made in the store, then launch again.")
    return None


def _region(answer: _Answer, asked: Asked) -> Refusal | None:
    if answer.code not in REGION and not (answer.status in (301, 307, 400) and WRONG_REGION.search(answer.text)):
        return None
    named = re.search(r"expecting '?([\w-]+)'?", answer.said)
    expected = answer.region or answer.headers.get("x-amz-bucket-region") or (named.group(1) if named else "")
    remedy = f"Set AWS_DEFAULT_REGION={expected}." if expected else "Set AWS_DEFAULT_REGION to the bucket's region"
    if not expected:
        remedy += ", and S3_ENDPOINT to that region's address."
    return Refusal(f"the bucket is in another region than {asked.region!r} ({answer.said})", remedy)


def _passing(answer: _Answer) -> Refusal | None:
    """What the same request may not meet again: a busy store, a broken connection, a change at the same moment."""
    if answer.code in BUSY or answer.status in (429, 503):
        return Refusal(
            f"the store is busy ({answer.said})",
            "Try again later, or run fewer steps side by side.",
            may_retry=True,
            away=True,
        )
    if answer.code in BROKEN_OFF or answer.status == 408:
        return Refusal(f"the request broke off on its way ({answer.said})", NETWORK, may_retry=True, away=True)
    if answer.code in DAMAGED:
        return Refusal(
            f"what arrived is not what was sent ({answer.said})",
            "Try again; if it goes on, look for a proxy that changes what passes.",
            may_retry=True,
        )
    if answer.code in MEANWHILE or answer.status in (409, 412):
        return Refusal(f"the object changed meanwhile ({answer.said})", "Try again.", may_retry=True)
    return None


def _checksums(answer: _Answer, asked: Asked) -> Refusal | None:
    """A checksum or another header of the request that the store does not know."""
    told_by_words = answer.status == 400 and HEADER_WORDS.search(answer.text)
    if answer.code not in HEADERS and answer.status not in (411, 501) and not told_by_words:
        return None
    found = f"the store does not take a checksum or header of the request ({answer.said})"
    if asked.checksums != "when_required":
        return Refusal(found, f"Set {CHECKSUMS}=when_required: older stores know no other.")
    return Refusal(
        found,
        f"If the bucket asks for checksums (object lock), set {CHECKSUMS}=when_supported; else look for a proxy that "
        "changes requests, or ask who runs the store.",
    )


def _redirected(answer: _Answer, asked: Asked) -> Refusal | None:
    if answer.status in (301, 302, 303, 307, 308):
        return _redirect(answer.headers.get("location", ""), asked)
    return None


def _object(answer: _Answer) -> Refusal | None:
    """An object that cannot be read as it lies, or written as large as it is."""
    if answer.code == "InvalidObjectState":
        return Refusal(
            f"the object lies in an archive ({answer.said})", "Have it restored to the bucket's standard class."
        )
    if answer.status == 413 or answer.code in ("EntityTooLarge", "MaxMessageLengthExceeded"):
        return Refusal(
            f"the object is too large for the store ({answer.said})", "Have the store's or its proxy's limit raised."
        )
    return None


def _no_store(answer: _Answer) -> Refusal | None:
    """Something else than an S3 store answers at the endpoint."""
    if answer.status in (404, 405):
        return Refusal(
            f"this is no bucket of an S3 store ({answer.said})",
            "Check S3_ENDPOINT (not the port of a console or web page) and S3_BUCKET.",
        )
    if "html" in answer.headers.get("content-type", "") and answer.code in ("", str(answer.status)):
        return Refusal(
            f"a web server or proxy answered {answer.status} in the store's place",
            "Check S3_ENDPOINT (not the port of a console or web page), and that no proxy or firewall is in between.",
            may_retry=answer.status >= 500,
            away=answer.status >= 500,
        )
    return None


def _key(answer: _Answer) -> Refusal | None:
    """A key that the store does not know, or that may not do this."""
    if answer.code in KEY or answer.status == 401:
        hint = " Or a proxy changes the requests." if answer.code == "SignatureDoesNotMatch" else ""
        return Refusal(
            f"the store refused the key ({answer.said})",
            f"Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (of the same account?).{hint}",
        )
    if answer.code in FORBIDDEN or (answer.status == 403 and answer.code in ("", "403")):
        return Refusal(
            f"the store refused the key ({answer.said})",
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (expired?) and the bucket's policy.",
        )
    return None


def _unexplained(answer: _Answer) -> Refusal:
    """What the store itself says, where nothing better is known."""
    if answer.status == 400 and answer.code in ("", "400", "BadRequest"):
        return Refusal(
            "the store answered 400 without a reason",
            "Check S3_ENDPOINT (https:// where the port asks for it), AWS_DEFAULT_REGION and AWS_SESSION_TOKEN.",
        )
    if 400 <= answer.status < 500:
        return Refusal(f"the store answered {answer.said}", "Ask who runs the store what this answer means.")
    return Refusal(f"the store answered {answer.said}", TRY_AGAIN, may_retry=True, away=True)


def _redirect(location: str, asked: Asked) -> Refusal:
    where = f" to {location.split('?')[0]}" if location else ""
    secure = "https://" + asked.endpoint.partition("://")[2]
    if asked.endpoint.startswith("http://") and (not location or location.startswith("https://")):
        return Refusal(f"the endpoint sends every request on{where}", f"Set S3_ENDPOINT={secure}.")
    return Refusal(f"the endpoint sends every request on{where}", "Set S3_ENDPOINT to the address that it leads to.")
