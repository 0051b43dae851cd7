"""What a store's refusal means, and what mends it: one sentence for each thing that goes wrong, not for each code.

Stores share Amazon's codes, mostly, and name their own beside them. Where the code is unknown, the store's own message is
told. Nothing here sends a request.
"""

import re
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
        away: whether it will, once the store is back or less busy: this is worth waiting for.
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


def explain(error: ClientError, asked: Asked) -> Refusal:
    """What an answer of the store means. "There is no such object" is not covered: the caller handles it."""
    code, status, message, headers = _parts(error)
    said = f"{code or status}" + (f": {message}" if message else "")
    text = f"{code} {message}".lower()
    if code == "NoSuchBucket":
        return Refusal(f"there is no bucket {asked.bucket!r}", "Create it, or set S3_BUCKET to the right one.")
    if code == "InvalidBucketName":
        return Refusal(f"{asked.bucket!r} is no name of a bucket ({said})", "Set S3_BUCKET to the bucket's name.")
    if code in CLOCK or (status in (400, 403) and SKEWED.search(text)):
        clock = f"; the store's clock says {headers['date']}" if "date" in headers else ""
        return Refusal(
            f"this machine's clock and the store's are too far apart ({said}{clock})",
            "Set this machine's clock right (NTP), then try again.",
        )
    if code in TOKEN:
        return Refusal(
            f"the store refused the session token ({said})",
            "Fetch a new session's AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; keys of a service "
            "account do not end.",
        )
    if "quota" in text and code not in BUSY and status != 429:
        return Refusal(
            f"the quota of the bucket or of its owner is used up ({said})",
            "Remove what is not needed (jobs `empty_…`), or have the quota raised.",
        )
    if status == 507 or FULL.search(text):
        return Refusal(f"the store is full ({said})", "Have room made in the store, then launch again.")
    if code in REGION or (status in (301, 307, 400) and WRONG_REGION.search(text)):
        return _region(error, asked, said, headers)
    if code in BUSY or status in (429, 503):
        return Refusal(
            f"the store is busy ({said})",
            "Try again later, or run fewer steps side by side.",
            may_retry=True,
            away=True,
        )
    if code in BROKEN_OFF or status == 408:
        return Refusal(f"the request broke off on its way ({said})", NETWORK, may_retry=True, away=True)
    if code in DAMAGED:
        return Refusal(
            f"what arrived is not what was sent ({said})",
            "Try again; if it goes on, look for a proxy that changes what passes.",
            may_retry=True,
        )
    if code in MEANWHILE or status in (409, 412):
        return Refusal(f"the object changed meanwhile ({said})", "Try again.", may_retry=True)
    if code in HEADERS or status in (411, 501) or (status == 400 and HEADER_WORDS.search(text)):
        return _headers(asked, said)
    if status in (301, 302, 303, 307, 308):
        return _redirect(headers.get("location", ""), asked)
    if code == "InvalidObjectState":
        return Refusal(f"the object lies in an archive ({said})", "Have it restored to the bucket's standard class.")
    if status == 413 or code in ("EntityTooLarge", "MaxMessageLengthExceeded"):
        return Refusal(
            f"the object is too large for the store ({said})", "Have the store's or its proxy's limit raised."
        )
    if status in (404, 405):
        return Refusal(
            f"this is no bucket of an S3 store ({said})",
            "Check S3_ENDPOINT (not the port of a console or web page) and S3_BUCKET.",
        )
    if "html" in headers.get("content-type", "") and code in ("", str(status)):
        return Refusal(
            f"a web server or proxy answered {status} in the store's place",
            "Check S3_ENDPOINT (not the port of a console or web page), and that no proxy or firewall is in between.",
            may_retry=status >= 500,
            away=status >= 500,
        )
    if code in KEY or status == 401:
        hint = " Or a proxy changes the requests." if code == "SignatureDoesNotMatch" else ""
        return Refusal(
            f"the store refused the key ({said})",
            f"Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (of the same account?).{hint}",
        )
    if code in FORBIDDEN or (status == 403 and code in ("", "403")):
        return Refusal(
            f"the store refused the key ({said})",
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (expired?) and the bucket's policy.",
        )
    if status == 400 and code in ("", "400", "BadRequest"):
        return Refusal(
            "the store answered 400 without a reason",
            "Check S3_ENDPOINT (https:// where the port asks for it), AWS_DEFAULT_REGION and AWS_SESSION_TOKEN.",
        )
    if 400 <= status < 500:
        return Refusal(f"the store answered {said}", "Ask who runs the store what this answer means.")
    return Refusal(f"the store answered {said}", TRY_AGAIN, may_retry=True, away=True)


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


def _parts(error: ClientError) -> tuple[str, int, str, dict[str, str]]:
    """Code, HTTP status, message in one line, and headers of an answer."""
    said: dict[str, Any] = error.response.get("Error", {})
    metadata: dict[str, Any] = error.response.get("ResponseMetadata", {})
    message = " ".join(str(said.get("Message") or "").split())[:240].rstrip(". ")
    return str(said.get("Code") or ""), status_of(error), message, metadata.get("HTTPHeaders", {})


def status_of(error: ClientError) -> int:
    """The HTTP status of an answer; 0 if it does not say."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _region(error: ClientError, asked: Asked, said: str, headers: dict[str, str]) -> Refusal:
    details: dict[str, Any] = error.response.get("Error", {})
    named = re.search(r"expecting '?([\w-]+)'?", said)
    expected = details.get("Region") or headers.get("x-amz-bucket-region") or (named.group(1) if named else "")
    remedy = f"Set AWS_DEFAULT_REGION={expected}." if expected else "Set AWS_DEFAULT_REGION to the bucket's region"
    if not expected:
        remedy += ", and S3_ENDPOINT to that region's address."
    return Refusal(f"the bucket is in another region than {asked.region!r} ({said})", remedy)


def _headers(asked: Asked, said: str) -> Refusal:
    found = f"the store does not take a checksum or header of the request ({said})"
    if asked.checksums != "when_required":
        return Refusal(found, f"Set {CHECKSUMS}=when_required: older stores know no other.")
    return Refusal(
        found,
        f"If the bucket asks for checksums (object lock), set {CHECKSUMS}=when_supported; else look for a proxy that "
        "changes requests, or ask who runs the store.",
    )


def _redirect(location: str, asked: Asked) -> Refusal:
    where = f" to {location.split('?')[0]}" if location else ""
    secure = "https://" + asked.endpoint.partition("://")[2]
    if asked.endpoint.startswith("http://") and (not location or location.startswith("https://")):
        return Refusal(f"the endpoint sends every request on{where}", f"Set S3_ENDPOINT={secure}.")
    return Refusal(f"the endpoint sends every request on{where}", "Set S3_ENDPOINT to the address that it leads to.")
