"""One device's folder: its own token and certificate, and the authority that it trusts.

Promises that valid files are kept. Leaves which token and which authority to `credential_plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from edge_server.certificates import Authority, make_key, pem_of, time_left
from edge_server.credential_files import Reader, certificate_of, certificates_of, key_of
from tofc.rpc.certificate_files import RENEW_BEFORE
from tofc.rpc.security import read_token


def device_files(
    folder: Path, name: str, tokens: Sequence[str], authority: Authority, ca: Sequence[x509.Certificate], days: int
) -> dict[Path, bytes]:
    """Return what to write in a device's `folder`. Each of `tokens` is valid for the device, the last one longest.

    If the folder holds none of them, its device was revoked: then its key and certificate are replaced too. Raises
    CredentialsError.
    """
    paths = {"token": folder / "token", "ca": folder / "ca.pem", "key": folder / "key.pem", "cert": folder / "cert.pem"}
    reader = Reader()
    token = reader.load(paths["token"], read_token)
    key = reader.load(paths["key"], key_of)
    certificate = reader.load(paths["cert"], certificate_of)
    trusted = reader.load(paths["ca"], certificates_of) or ()
    reader.check()
    wanted: dict[Path, bytes] = {}
    if token not in tokens:
        key, certificate = None, None
        wanted[paths["token"]] = f"{tokens[-1]}\n".encode()
    if trusted != tuple(ca):
        wanted[paths["ca"]] = b"".join(map(pem_of, ca))
    if key is None:
        key = make_key()
        wanted[paths["key"]] = pem_of(key)
    certificate_is_good = (
        certificate is not None
        and certificate.public_key() == key.public_key()
        and authority.signed(certificate)
        and time_left(certificate) >= RENEW_BEFORE
    )
    if not certificate_is_good:
        wanted[paths["cert"]] = pem_of(authority.sign_device(key.public_key(), name, days))
    return wanted
