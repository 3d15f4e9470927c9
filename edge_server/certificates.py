"""An authority, and the certificates that it signs.

Promises elliptic curves (P-256, which every TLS library supports) and only fields that a client needs, because every
new connection carries the server's certificate. Leaves files to `credentials`.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tofc.errors import UsageError

AUTHORITY_DAYS = 3650  # longer than certificates, because a new authority is copied to devices by hand
CLOCK_SKEW = datetime.timedelta(minutes=5)  # certificates begin this much earlier, for devices whose clocks are slow
LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
HOST_NAME = re.compile(rf"(\*\.)?({LABEL}\.)*(?!\d+$){LABEL}")


@dataclass(frozen=True)
class Authority:
    """Signs certificates. Devices trust its own certificate."""

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def make(cls, days: int) -> Authority:
        """Make an authority that is valid for `days` or AUTHORITY_DAYS, whichever is longer."""
        key = make_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"TOFC {secrets.token_hex(4)}")])
        begin = _now() - CLOCK_SKEW
        end = begin + datetime.timedelta(days=max(days, AUTHORITY_DAYS))
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(name, name, key.public_key(), begin, end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, pem: bytes) -> Authority:
        """Read certificate and key. Raises ValueError for other bytes, UsageError for a key of another certificate."""
        certificate, key = x509.load_pem_x509_certificate(pem), read_key(pem)
        if key.public_key() != certificate.public_key():
            raise UsageError("its key does not belong to its certificate")
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """Certificate and key."""
        return pem_of(self.certificate) + pem_of(self.key)

    def sign(self, key: PublicKey, hosts: Iterable[x509.GeneralName], days: int) -> x509.Certificate:
        """Sign a server's certificate for `hosts`, valid for `days` but not longer than the authority itself.

        It is also a client certificate: a health check beside the server uses it where clients must show one.
        """
        # The hosts are its alternative names, which must be critical if there is no subject (RFC 5280).
        return (
            self._leaf(x509.Name([]), key, days, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
            .add_extension(x509.SubjectAlternativeName(hosts), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def sign_device(self, key: PublicKey, name: str, days: int) -> x509.Certificate:
        """Sign a device's certificate, which no client accepts as a server's."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._leaf(subject, key, days, ExtendedKeyUsageOID.CLIENT_AUTH).sign(self.key, hashes.SHA256())

    def _leaf(
        self, subject: x509.Name, key: PublicKey, days: int, *usages: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        begin = _now() - CLOCK_SKEW
        end = min(begin + datetime.timedelta(days=days), self.certificate.not_valid_after_utc)
        builder = _builder(subject, self.certificate.subject, key, begin, end)
        return builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)

    def signed(self, certificate: x509.Certificate) -> bool:
        """Say whether this authority signed a certificate."""
        return signed_by(certificate, self.certificate)


def make_key() -> ec.EllipticCurvePrivateKey:
    """Make a new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def read_key(pem: bytes) -> PrivateKey:
    """Read a private key. Raises ValueError for other bytes, UsageError for a key that cannot be used."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise UsageError("its key has a password") from None
    if not isinstance(key, PrivateKey):
        raise UsageError("its key is neither of an elliptic curve nor RSA")
    return key


def pem_of(item: x509.Certificate | PrivateKey) -> bytes:
    """Encode a certificate, or a private key without a password."""
    if isinstance(item, x509.Certificate):
        return item.public_bytes(serialization.Encoding.PEM)
    return item.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def hosts_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Return the names and addresses that a certificate is for."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Say whether `authority` signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def time_left(certificate: x509.Certificate) -> datetime.timedelta:
    """Return how long a certificate is still valid."""
    return certificate.not_valid_after_utc - _now()


def general_name(host: str) -> x509.GeneralName:
    """Turn 'edge.example.org', '192.0.2.7' or '[2001:db8::7]' into a certificate's name for it. Raises UsageError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        if not HOST_NAME.fullmatch(host):
            raise UsageError(
                f"--host must be what clients write before the port, for instance edge.example.org or 192.0.2.7 "
                f"(a name with non-ASCII letters in its xn-- form), got {host!r}"
            ) from None
        return x509.DNSName(host.lower())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(secrets.randbits(64) | 1 << 63)
        .not_valid_before(begin)
        .not_valid_after(end)
    )
