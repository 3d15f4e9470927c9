"""What to write beside the credentials that are there, for what is asked.

    --renew    authority + successor, token + token     devices trust both, all of it holds
    --finish   successor, token                         the server shows the successor's certificate

Promises an order in which every part of what is written is something that a later call completes. Leaves writing to
`credentials`.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from edge_server.certificates import Authority, PrivateKey, hosts_of, left, make_key, pem_of
from edge_server.credential_files import Credentials, CredentialsError, Found
from edge_server.device_credentials import device_files
from shared.rpc.certificate_files import SOON
from shared.rpc.tokens import Token

DAYS = 365
TOKEN_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for beside what is missing. `days` is the lifetime of a certificate that is signed now."""

    hosts: tuple[x509.GeneralName, ...]
    days: int = DAYS
    replace: bool = False
    device: str = ""
    renew: bool = False
    finish: bool = False


@dataclass(frozen=True)
class Plan:
    """The files to write, in this order: every part of them is something that a later call completes."""

    files: dict[Path, bytes]
    certificate: x509.Certificate
    ca: Sequence[x509.Certificate]
    warning: str = ""


def make_plan(files: Credentials, found: Found, wish: Wish) -> Plan:
    """Raises CredentialsError where what is missing cannot be made of what is there."""
    if wish.renew and found.untrusted:
        raise CredentialsError("there is nothing to renew yet; leave --renew out")
    if wish.finish and found.successor is None:
        raise CredentialsError("no renewal is under way; begin one with --renew")
    authority = Authority.make(wish.days) if found.untrusted else found.authority
    successor = found.successor or (Authority.make(wish.days) if wish.renew else None)
    tokens, ending = _tokens(files, found, wish)
    ca = _trusted(files, found, authority, successor, finish=wish.finish)
    renewed = found.certificate and successor and successor.signed(found.certificate)
    signing = successor if wish.finish or renewed else authority
    key, certificate, warning = _certificate(files, found, wish, signing)

    shared = [token.value for token in tokens if not token.name]
    old = {token.value for token in ending}
    client_token = found.client_token if found.client_token in [one for one in shared if one not in old] else None
    client_token = client_token or (shared[-1] if shared else found.client_token)
    of_devices: dict[Path, bytes] = {}
    for name in _devices(files, tokens, wish):
        if (signs := successor or authority) is None:
            raise CredentialsError(lost(f"{files.authority}, which would sign a device's certificate, is missing"))
        values = [token.value for token in tokens if token.name == name]
        best = [value for value in values if value not in old] or values
        of_devices |= device_files(files.devices / name, name, best, signs, ca, wish.days)

    clients = ca if of_devices or files.clients.exists() else found.clients
    successor_file = _File(files.successor, found.successor, successor, successor.pem if successor else b"")
    ending_file = _File(files.ending, found.ending, ending, _lines(ending))
    token_file = _File(files.token, found.tokens, tokens, _lines(tokens))
    given = (
        _File(files.clients, found.clients, clients, _bundle(clients)),
        _File(files.client_token, found.client_token, client_token, f"{client_token}\n".encode()),
        _File(files.ca, found.ca, ca, _bundle(ca)),
    )
    certified = (
        _File(files.key, found.key, key, pem_of(key)),
        _File(files.certificate, found.certificate, certificate, pem_of(certificate)),
    )
    if wish.finish and successor is not None:  # the old authority stays until nothing needs it
        order = [*certified, token_file, *given]
        last = [_File(files.authority, found.authority, successor, successor.pem)]
    else:
        authority_file = _File(files.authority, found.authority, authority, authority.pem if authority else b"")
        order = [successor_file, ending_file, token_file, authority_file, *given, *certified]
        last = []
    return Plan({**_changed(order), **of_devices, **_changed(last)}, certificate, ca, warning)


@dataclass(frozen=True)
class _File:
    path: Path
    found: object
    wanted: object
    content: bytes  # of what is wanted


def _changed(files: Sequence[_File]) -> dict[Path, bytes]:
    return {file.path: file.content for file in files if file.found != file.wanted}


def _lines(tokens: Sequence[Token]) -> bytes:
    return "".join(f"{token}\n" for token in tokens).encode()


def _bundle(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(map(pem_of, certificates))


def _tokens(files: Credentials, found: Found, wish: Wish) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    """Those that hold, and of them those that `finish` ends."""
    tokens = list(found.tokens)
    if not tokens and not found.untrusted and any(files.devices.glob("*/token")):
        raise CredentialsError(lost(f"{files.token} is missing, and devices have tokens that were in it"))
    if not tokens and found.client_token:
        tokens = [Token(found.client_token)]
    if not tokens and not found.untrusted:  # devices have one
        raise CredentialsError(lost(f"{files.token} and {files.client_token} are missing, and devices have it"))
    if not tokens:
        tokens = [_fresh()]
    ending = found.ending or (tuple(tokens) if wish.renew else ())
    ends = {token.value for token in ending}  # whatever name they have by now
    new = [token.name for token in tokens if token.value not in ends]
    tokens += [_fresh(name) for name in dict.fromkeys(token.name for token in tokens) if name not in new]
    if wish.device and wish.device not in [token.name for token in tokens]:
        tokens.append(_fresh(wish.device))
    if wish.finish:
        tokens = [token for token in tokens if token.value not in ends]
    return tuple(tokens), ending


def _trusted(
    files: Credentials, found: Found, authority: Authority | None, successor: Authority | None, *, finish: bool
) -> tuple[x509.Certificate, ...]:
    """The authorities that devices should know."""
    new = [successor.certificate] if successor else []
    old = [authority.certificate] if authority else [one for one in found.ca if one not in new]
    if not old and not finish:
        raise CredentialsError(lost(f"{files.ca} and {files.authority} are missing"))
    return tuple(new if finish else old + new)


def _certificate(
    files: Credentials, found: Found, wish: Wish, authority: Authority | None
) -> tuple[PrivateKey, x509.Certificate, str]:
    """The server's, what there is or one that `authority` signs, and a warning."""
    key, certificate = found.key, found.certificate
    had = hosts_of(certificate) if certificate else []
    lacking = [name for name in wish.hosts if name not in had]
    moved = wish.finish and authority is not None and certificate is not None and not authority.signed(certificate)
    if key is not None and certificate is not None and not lacking and not moved and left(certificate) >= SOON:
        return key, certificate, ""
    why = f"a certificate for {spell(lacking)}" if lacking else "the next certificate"
    unable = ""
    if authority is None:
        unable = f"{files.authority}, which would sign {why}, is missing (folders of earlier versions have none)"
    elif left(authority.certificate) < SOON:
        unable = f"the authority in {files.authority}, which would sign {why}, ends with it"
    if not unable and authority is not None:
        key = key or make_key()
        return key, authority.sign(key.public_key(), [*had, *lacking], wish.days), ""
    if key is None or certificate is None or lacking or left(certificate) <= timedelta(0):
        raise CredentialsError(lost(unable))
    return (
        key,
        certificate,
        f". It will not be renewed: {unable}. Plan a --renew before (--replace would lock devices out)",
    )


def _devices(files: Credentials, tokens: Sequence[Token], wish: Wish) -> list[str]:
    """Whose folders to write."""
    names = dict.fromkeys(token.name for token in tokens if token.name)
    if wish.renew:
        return list(names)
    return [name for name in names if name == wish.device or (wish.finish and (files.devices / name).exists())]


def _fresh(name: str = "") -> Token:
    return Token(secrets.token_hex(TOKEN_BYTES), name)


def lost(what: str) -> str:
    return (
        f"{what}. Nothing was changed: put it back, or give --replace for everything anew, client/ of every device too"
    )


def spell(names: Sequence[x509.GeneralName]) -> str:
    return ", ".join(str(name.value) for name in names)
