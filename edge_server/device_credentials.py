"""One device's folder: its own token and certificate, beside the authority that it trusts.

Promises that what is good is kept. Leaves which token and which authority to `credentials`.
"""

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from edge_server.certificates import Authority, left, make_key, pem_of
from edge_server.credential_files import Reader, certificate_of, certificates_of, key_of
from shared.rpc.certificate_files import SOON
from shared.rpc.channel import read_token


def device_files(
    folder: Path, name: str, tokens: Sequence[str], authority: Authority, ca: Sequence[x509.Certificate], days: int
) -> dict[Path, bytes]:
    """What to write in a device's `folder`, where one of `tokens`, best last, is the device's.

    A folder that holds none of them is of a device that was revoked: nothing of it is kept. Raises CredentialsError.
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
    good = (
        certificate is not None
        and certificate.public_key() == key.public_key()
        and authority.signed(certificate)
        and left(certificate) >= SOON
    )
    if not good:
        wanted[paths["cert"]] = pem_of(authority.sign_device(key.public_key(), name, days))
    return wanted
