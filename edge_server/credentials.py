"""Certificate and token for a server that listens beyond its own machine.

Promises one folder for the server and one for its clients, each with only what that side needs; the key of
the authority that signs is never written. Leaves handing the clients' folder over to whoever runs them.

    FOLDER/server/   cert.pem  key.pem  token      → edge-server serve --tls-cert --tls-key --token-file
    FOLDER/client/   ca.pem             token      → device-client --tls-ca --token-file
"""

import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 365
RENEWAL_DAYS = 14  # a certificate with less than this left is written anew
TOKEN_BYTES = 32
LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
HOST_NAME = re.compile(rf"(\*\.)?{LABEL}(\.{LABEL})*")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where everything lies; `fresh` says whether `write` made it just now."""

    certificate: Path
    key: Path
    authority: Path
    token: Path
    client_token: Path
    fresh: bool


def write(folder: Path, hosts: Sequence[str], *, days: int = DAYS) -> Credentials:
    """Writes credentials for a server that clients call by any of `hosts` (names or addresses).

    What is there already is kept while its certificate names all `hosts` and lasts two more weeks, so a
    service may call this at every start. Raises ValueError for no host or no lifetime, OSError.
    """
    if not hosts:
        raise ValueError("no host is given; name what clients call the server by, for instance edge.example.org")
    if days <= RENEWAL_DAYS:
        raise ValueError(f"a lifetime of {days} days would be renewed at once; give more than {RENEWAL_DAYS}")
    names = [_general_name(host) for host in hosts]
    server, client = folder / "server", folder / "client"
    found = Credentials(
        certificate=server / "cert.pem",
        key=server / "key.pem",
        authority=client / "ca.pem",
        token=server / "token",
        client_token=client / "token",
        fresh=False,
    )
    if _usable(found, names):
        return found

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ
    end = begin + datetime.timedelta(days=days)
    issuer = _name(f"TOFC authority {secrets.token_hex(4)}")
    authority = (
        _builder(issuer, issuer, authority_key.public_key(), begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder(_name("TOFC edge server"), issuer, key.public_key(), begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    token = (secrets.token_hex(TOKEN_BYTES) + "\n").encode()
    for side in (server, client):
        side.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_secret(found.key, _pem_key(key))
    _write_secret(found.token, token)
    _write_secret(found.client_token, token)
    _write_secret(found.authority, authority.public_bytes(serialization.Encoding.PEM))
    # The certificate comes last: an interrupted run leaves nothing that `_usable` accepts.
    _write_secret(found.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return replace(found, fresh=True)


def _usable(found: Credentials, names: Sequence[x509.GeneralName]) -> bool:
    """False for what is missing, damaged, nearly over or of different runs: all are mended by writing anew."""
    if not all(path.is_file() for path in (found.key, found.token, found.client_token, found.authority)):
        return False
    try:
        certificate = x509.load_pem_x509_certificate(found.certificate.read_bytes())
        authority = x509.load_pem_x509_certificate(found.authority.read_bytes())
        certificate.verify_directly_issued_by(authority)
        key = serialization.load_pem_private_key(found.key.read_bytes(), password=None)
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    same_key = key.public_key() == certificate.public_key()
    same_token = found.token.read_bytes() == found.client_token.read_bytes()
    return same_key and same_token and left > datetime.timedelta(days=RENEWAL_DAYS) and set(names) <= set(named)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        if not HOST_NAME.fullmatch(host):
            raise ValueError(
                f"{host!r} is no host name; give what clients write before the port, for instance edge.example.org or "
                "192.0.2.7 (a name in other letters in its xn-- form)"
            ) from None
        return x509.DNSName(host)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_secret(path: Path, content: bytes) -> None:
    """Replaces a file, readable by its owner alone from its first byte on."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    part.replace(path)
