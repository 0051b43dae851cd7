"""One certificate for all parts of the embedded S3 server, by which they recognise each other and refuse everybody else.

Each part presents it and asks for it (mutual TLS). Its key lies in a folder that only this user can open, so other users can
reach S3 alone, which asks for its own keys. The certificate never leaves the machine.
"""

import os
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

CERTIFICATE, KEY = "server.crt", "server.key"
FIRST_DAY, LAST_DAY = datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=36500)
"""It does not expire: it lives as long as the folder, and is as secret."""
PARTS = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "MQ", "MSG_BROKER", "MSG_AGENT")
"""SeaweedFS' names of its parts that use gRPC."""
WEB_PARTS = ("MASTER", "VOLUME", "FILER", "ADMIN")
"""Those that also answer HTTP. S3 does too, and asks for its own keys."""


def make_certificate(folder: Path) -> None:
    """Write certificate and key into a folder, once."""
    if (folder / KEY).exists() and (folder / CERTIFICATE).exists():
        return
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "curvas")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), FIRST_DAY, LAST_DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    _write(folder / KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    _write(folder / CERTIFICATE, certificate.public_bytes(Encoding.PEM))


def tls_variables(folder: Path) -> dict[str, str]:
    """SeaweedFS' settings, as environment variables: every part but S3 asks for the certificate, in gRPC and in HTTP."""
    pair = {"CERT": str(folder / CERTIFICATE), "KEY": str(folder / KEY)}
    authority = str(folder / CERTIFICATE)
    variables = {"WEED_GRPC_CA": authority, "WEED_HTTPS_CLIENT_ENABLED": "true", "WEED_HTTPS_CLIENT_CA": authority}
    for kind, path in pair.items():
        variables |= {f"WEED_GRPC_{part}_{kind}": path for part in (*PARTS, "CLIENT")}
        variables |= {f"WEED_HTTPS_{part}_{kind}": path for part in (*WEB_PARTS, "CLIENT")}
    return variables | {f"WEED_HTTPS_{part}_CA": authority for part in WEB_PARTS}


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    part.replace(path)
