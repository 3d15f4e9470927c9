"""Certificate and token for a server that listens beyond its own machine.

    FOLDER/server/      cert.pem  key.pem  token      → edge-server serve --tls-cert --tls-key --token-file
    FOLDER/client/      ca.pem             token      → device-client --tls-ca --token-file
    FOLDER/authority/   authority.pem                 signs later certificates; neither server nor device needs it

Promises that devices which have `client/` still get in afterwards, unless `replace` is asked for: authority and token
stay, and a certificate for more hosts or a longer time is signed by the same authority. Nothing is changed where a
file is damaged. Leaves certificates to `certificates`, handing `client/` over to whoever runs devices.
"""

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from edge_server.certificates import Authority, PrivateKey, general_name, hosts_of, left, make_key, pem_of, read_key
from shared.rpc.channel import read_token
from shared.rpc.errors import UnsafeAddressError

if sys.platform != "win32":
    import fcntl

DAYS = 365
RENEWAL = timedelta(days=14)  # a certificate with less than this left is renewed
TOKEN_BYTES = 32

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where everything lies, and what `write` did about it."""

    certificate: Path
    key: Path
    token: Path
    ca: Path
    client_token: Path
    authority: Path
    written: tuple[Path, ...] = ()
    told: str = ""  # for a person

    @classmethod
    def below(cls, folder: Path) -> "Credentials":
        server, client = folder / "server", folder / "client"
        return cls(
            certificate=server / "cert.pem",
            key=server / "key.pem",
            token=server / "token",
            ca=client / "ca.pem",
            client_token=client / "token",
            authority=folder / "authority" / "authority.pem",
        )


class CredentialsError(ValueError):
    """What is there can be neither kept nor completed; nothing was changed."""


def write(folder: Path, hosts: Sequence[str], *, days: int = DAYS, replace: bool = False) -> Credentials:
    """Credentials for a server that clients call by any of `hosts` (names or addresses), beside those it has already.

    A service may call this at every start, and after an interrupted call. `days` is the lifetime of a certificate that
    is signed now. Raises ValueError for no host or too short a lifetime, CredentialsError, OSError.
    """
    if not hosts:
        raise ValueError("--host is missing; name what clients call the server by, for instance edge.example.org")
    if days <= RENEWAL.days:
        raise ValueError(f"--days must be more than {RENEWAL.days}, when a certificate is renewed, got {days}")
    names = list(dict.fromkeys(general_name(host) for host in hosts))
    files = Credentials.below(folder)
    files.certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(files.certificate.parent):
        replace = replace and any(path.exists() for path in vars(files).values() if isinstance(path, Path))
        found = _Found() if replace else _Found.read(files)
        plan = _plan(files, found, names, days)
        for path, content in plan.files.items():
            _write_secret(path, content)
    return Credentials(**{**vars(files), "written": tuple(plan.files), "told": plan.told(replace, found, names)})


@dataclass(kw_only=True)
class _Found:
    """What lies in a folder already; None for what does not."""

    authority: Authority | None = None
    ca: x509.Certificate | None = None
    key: PrivateKey | None = None
    certificate: x509.Certificate | None = None
    token: str | None = None
    client_token: str | None = None

    @classmethod
    def read(cls, files: Credentials) -> "_Found":
        """Raises CredentialsError for all that is damaged, or does not belong together."""
        problems: list[str] = []

        def load(path: Path, reader: Callable[[Path], T]) -> T | None:
            try:
                return reader(path)
            except FileNotFoundError:
                return None
            except UnsafeAddressError as error:  # of a token, and it names the file
                problems.append(str(error))
            except ValueError as error:
                why = f": {error}" if str(error).startswith("its ") else ""  # the library's own words say less
                problems.append(f"{path} is damaged{why}")
            return None

        found = cls(
            authority=load(files.authority, lambda path: Authority.read(path.read_bytes())),
            ca=load(files.ca, lambda path: x509.load_pem_x509_certificate(path.read_bytes())),
            key=load(files.key, lambda path: read_key(path.read_bytes())),
            certificate=load(files.certificate, lambda path: x509.load_pem_x509_certificate(path.read_bytes())),
            token=load(files.token, read_token),
            client_token=load(files.client_token, read_token),
        )
        problems += found._mismatches(files)
        if problems:
            raise CredentialsError(
                f"{'; '.join(problems)}. Nothing was changed: put the right file back, or delete the wrong one to have "
                "it written again from the others, or give --replace for all of them anew, client/ of every device too"
            )
        return found

    def _mismatches(self, files: Credentials) -> Iterator[str]:
        signer = self.authority.certificate if self.authority else self.ca
        if self.authority and self.ca and self.ca != self.authority.certificate:
            yield f"{files.ca} is of another authority than {files.authority}"
        elif signer and self.certificate and not _signed_by(self.certificate, signer):
            yield f"{files.certificate} was not signed by the authority in {files.ca}"
        if self.key and self.certificate and self.key.public_key() != self.certificate.public_key():
            yield f"{files.key} is not the key of {files.certificate}"
        if self.token and self.client_token and self.token != self.client_token:
            yield f"{files.token} and {files.client_token} hold different tokens"

    @property
    def untrusted(self) -> bool:
        """Whether no device can know this server yet."""
        return self.authority is None and self.ca is None and self.certificate is None


@dataclass(frozen=True)
class _Plan:
    """The files to write, in this order: every part of them is something that a later call completes."""

    files: dict[Path, bytes]
    certificate: x509.Certificate
    warning: str = ""

    def told(self, replace: bool, found: _Found, names: Sequence[x509.GeneralName]) -> str:
        if not self.files:
            done = "kept"
        elif replace:
            done = "replaced: every device needs the new client/, and a running server a restart"
        elif found.untrusted:
            done = f"written: {', '.join(map(str, self.files))}"
        else:
            paths = ", ".join(map(str, self.files))
            done = f"written: {paths}; the rest is kept, devices need nothing new"
            if found.certificate and self.certificate != found.certificate:
                had = hosts_of(found.certificate)
                if added := [name for name in names if name not in had]:
                    done += f", {_spell(added)} added"
                done += "; restart a running server to use the new certificate"
        until = f"{self.certificate.not_valid_after_utc:%Y-%m-%d}"
        return f"{done}\ncertificate for {_spell(hosts_of(self.certificate))} until {until}{self.warning}"


def _plan(files: Credentials, found: _Found, names: Sequence[x509.GeneralName], days: int) -> _Plan:
    """Raises CredentialsError where what is missing cannot be made of what is there."""
    authority, token = found.authority, found.token or found.client_token
    if found.untrusted:
        authority = Authority.make(days)
    elif token is None:  # devices have one
        raise CredentialsError(_lost(f"{files.token} and {files.client_token} are missing, and devices have it"))
    token = token or secrets.token_hex(TOKEN_BYTES)
    key, certificate, warning = found.key, found.certificate, ""

    had = hosts_of(certificate) if certificate else []
    lacking = [name for name in names if name not in had]
    if key is None or certificate is None or lacking or left(certificate) < RENEWAL:
        why = f"a certificate for {_spell(lacking)}" if lacking else "the next certificate"
        unable = ""
        if authority is None:
            unable = f"{files.authority}, which would sign {why}, is missing (folders of earlier versions have none)"
        elif left(authority.certificate) < RENEWAL:
            unable = f"the authority in {files.authority}, which would sign {why}, ends with it"
        if not unable and authority is not None:
            key = key or make_key()
            certificate = authority.sign(key.public_key(), [*had, *lacking], days)
        elif key is None or certificate is None or lacking or left(certificate) <= timedelta(0):
            raise CredentialsError(_lost(unable))
        else:
            warning = f". It will not be renewed: {unable}. Plan a --replace and new client/ for every device before"

    assert key is not None and certificate is not None
    ca = found.ca or (authority.certificate if authority else None)
    if ca is None:
        raise CredentialsError(_lost(f"{files.ca} and {files.authority} are missing"))
    wanted = {
        files.token: (found.token, token, f"{token}\n".encode()),
        files.authority: (found.authority, authority, authority.pem if authority else b""),
        files.client_token: (found.client_token, token, f"{token}\n".encode()),
        files.ca: (found.ca, ca, pem_of(ca)),
        files.key: (found.key, key, pem_of(key)),
        files.certificate: (found.certificate, certificate, pem_of(certificate)),
    }
    return _Plan(
        {path: content for path, (is_, should, content) in wanted.items() if is_ != should}, certificate, warning
    )


def _lost(what: str) -> str:
    return (
        f"{what}. Nothing was changed: put it back, or give --replace for everything anew, client/ of every device too"
    )


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _spell(names: Sequence[x509.GeneralName]) -> str:
    return ", ".join(str(name.value) for name in names)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Another call for the same folder waits until this one is done."""
    if sys.platform == "win32":
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _write_secret(path: Path, content: bytes) -> None:
    """Replaces a file at once, readable by its owner alone from its first byte on.

    Who could read the file that was there, or else owns the folder, can read this one: a service's user stays able to
    when root renews its certificate.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        before = path.stat()
        mode = before.st_mode & 0o777
    except FileNotFoundError:
        before, mode = path.parent.stat(), 0o600
    try:
        if sys.platform != "win32" and (path.exists() or os.geteuid() == 0):
            os.chown(part, before.st_uid, before.st_gid)
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
