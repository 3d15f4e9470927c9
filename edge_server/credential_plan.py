"""Which files to write, given the existing credentials and a request.

A renewal replaces the authority by its successor, and every token by a new one, in two steps:

    --renew    both authorities, old and new tokens     devices trust both, and all tokens are valid
    --finish   the successor, the new tokens            the server's certificate is signed by the successor

Promises an order in which a later call can complete every interrupted write. Leaves writing to `credentials`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from edge_server.certificates import Authority, PrivateKey, hosts_of, make_key, pem_of, time_left
from edge_server.credential_files import Credentials, ExistingCredentials
from edge_server.device_credentials import device_files
from tofc.errors import CredentialsError
from tofc.rpc.certificate_files import RENEW_BEFORE
from tofc.rpc.tokens import Token

DAYS = 365
TOKEN_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class CredentialRequest:
    """What to write apart from missing files. `days` is the lifetime of new certificates."""

    hosts: tuple[x509.GeneralName, ...]
    days: int = DAYS
    replace: bool = False
    device: str = ""
    renew: bool = False
    finish: bool = False


@dataclass(frozen=True)
class Plan:
    """The files to write, in this order: a later call can complete the plan after any of them."""

    files: dict[Path, bytes]
    certificate: x509.Certificate
    ca: Sequence[x509.Certificate]
    warning: str = ""


def make_plan(files: Credentials, found: ExistingCredentials, request: CredentialRequest) -> Plan:
    """Plan what to write. Raises CredentialsError if missing files cannot be derived from the existing ones."""
    if request.renew and found.is_new:
        raise CredentialsError("there are no credentials to renew yet; leave --renew out")
    if request.finish and found.successor is None:
        raise CredentialsError("no renewal was started; start one with --renew")
    authority = Authority.make(request.days) if found.is_new else found.authority
    successor = found.successor or (Authority.make(request.days) if request.renew else None)
    tokens, old_tokens = _tokens(files, found, request)
    ca = _trusted(files, found, authority, successor, finish=request.finish)
    renewed = found.certificate and successor and successor.signed(found.certificate)
    signer = successor if request.finish or renewed else authority
    key, certificate, warning = _certificate(files, found, request, signer)

    old = {token.value for token in old_tokens}
    shared = [token.value for token in tokens if not token.name]
    # client/ keeps its token if that is valid and not old; else it gets the newest shared token, if there is one.
    client_token = found.client_token if found.client_token in [one for one in shared if one not in old] else None
    client_token = client_token or (shared[-1] if shared else found.client_token)
    of_devices: dict[Path, bytes] = {}
    for name in _devices(files, tokens, request):
        if (device_signer := successor or authority) is None:
            raise CredentialsError(unchanged(f"{files.authority}, which would sign a device's certificate, is missing"))
        values = [token.value for token in tokens if token.name == name]
        lasting = [value for value in values if value not in old] or values
        of_devices |= device_files(files.devices / name, name, lasting, device_signer, ca, request.days)

    clients = ca if of_devices or files.clients.exists() else found.clients
    successor_file = _File(files.successor, found.successor, successor, successor.pem if successor else b"")
    old_tokens_file = _File(files.old_tokens, found.old_tokens, old_tokens, _lines(old_tokens))
    token_file = _File(files.token, found.tokens, tokens, _lines(tokens))
    client_files = (
        _File(files.clients, found.clients, clients, _bundle(clients)),
        _File(files.client_token, found.client_token, client_token, f"{client_token}\n".encode()),
        _File(files.ca, found.ca, ca, _bundle(ca)),
    )
    certificate_files = (
        _File(files.key, found.key, key, pem_of(key)),
        _File(files.certificate, found.certificate, certificate, pem_of(certificate)),
    )
    if request.finish and successor is not None:
        # The old authority is replaced last: until then another call can complete an interrupted one.
        order = [*certificate_files, token_file, *client_files]
        last = [_File(files.authority, found.authority, successor, successor.pem)]
    else:
        authority_file = _File(files.authority, found.authority, authority, authority.pem if authority else b"")
        order = [successor_file, old_tokens_file, token_file, authority_file, *client_files, *certificate_files]
        last = []
    return Plan({**_changed(order), **of_devices, **_changed(last)}, certificate, ca, warning)


@dataclass(frozen=True)
class _File:
    path: Path
    found: object
    wanted: object
    content: bytes  # to write for `wanted`


def _changed(files: Sequence[_File]) -> dict[Path, bytes]:
    return {file.path: file.content for file in files if file.found != file.wanted}


def _lines(tokens: Sequence[Token]) -> bytes:
    return "".join(f"{token}\n" for token in tokens).encode()


def _bundle(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(map(pem_of, certificates))


def _tokens(
    files: Credentials, found: ExistingCredentials, request: CredentialRequest
) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
    """Return the tokens that are valid from now on, and the old ones, which `finish` ends."""
    tokens = list(found.tokens)
    if not tokens and not found.is_new and any(files.devices.glob("*/token")):
        raise CredentialsError(unchanged(f"{files.token} is missing, and devices have tokens that were in it"))
    if not tokens and found.client_token:
        tokens = [Token(found.client_token)]
    if not tokens and not found.is_new:
        missing = f"{files.token} and {files.client_token} are missing"
        raise CredentialsError(unchanged(f"{missing}, and devices may have the token that was in them"))
    if not tokens:
        tokens = [_new_token()]
    old_tokens = found.old_tokens or (tuple(tokens) if request.renew else ())
    old = {token.value for token in old_tokens}  # by value: names may have been changed since
    have_new = [token.name for token in tokens if token.value not in old]
    tokens += [_new_token(name) for name in dict.fromkeys(token.name for token in tokens) if name not in have_new]
    if request.device and request.device not in [token.name for token in tokens]:
        tokens.append(_new_token(request.device))
    if request.finish:
        tokens = [token for token in tokens if token.value not in old]
    return tuple(tokens), old_tokens


def _trusted(
    files: Credentials,
    found: ExistingCredentials,
    authority: Authority | None,
    successor: Authority | None,
    *,
    finish: bool,
) -> tuple[x509.Certificate, ...]:
    """Return the authorities that devices should trust."""
    new = [successor.certificate] if successor else []
    old = [authority.certificate] if authority else [one for one in found.ca if one not in new]
    if not old and not finish:
        raise CredentialsError(unchanged(f"{files.ca} and {files.authority} are missing"))
    return tuple(new if finish else old + new)


def _certificate(
    files: Credentials, found: ExistingCredentials, request: CredentialRequest, authority: Authority | None
) -> tuple[PrivateKey, x509.Certificate, str]:
    """Return the server's key and certificate, existing or signed by `authority`, and a warning."""
    key, certificate = found.key, found.certificate
    hosts = hosts_of(certificate) if certificate else []
    lacking = [name for name in request.hosts if name not in hosts]
    other_signer = (
        request.finish and authority is not None and certificate is not None and not authority.signed(certificate)
    )
    if (
        key is not None
        and certificate is not None
        and not lacking
        and not other_signer
        and time_left(certificate) >= RENEW_BEFORE
    ):
        return key, certificate, ""
    wanted = f"a certificate for {spell(lacking)}" if lacking else "the next certificate"
    obstacle = ""
    if authority is None:
        obstacle = f"{files.authority}, which would sign {wanted}, is missing (earlier versions did not write it)"
    elif time_left(authority.certificate) < RENEW_BEFORE:
        days = RENEW_BEFORE.days
        obstacle = f"the authority in {files.authority}, which would sign {wanted}, expires in less than {days} days"
    if not obstacle and authority is not None:
        key = key or make_key()
        return key, authority.sign(key.public_key(), [*hosts, *lacking], request.days), ""
    if key is None or certificate is None or lacking or time_left(certificate) <= timedelta(0):
        raise CredentialsError(unchanged(obstacle, missing=authority is None))
    return (
        key,
        certificate,
        f". It will not be renewed: {obstacle}. Run --renew before it expires (--replace would lock devices out)",
    )


def _devices(files: Credentials, tokens: Sequence[Token], request: CredentialRequest) -> list[str]:
    """Return the names of the devices whose folders are written."""
    names = dict.fromkeys(token.name for token in tokens if token.name)
    if request.renew:
        return list(names)
    return [name for name in names if name == request.device or (request.finish and (files.devices / name).exists())]


def _new_token(name: str = "") -> Token:
    return Token(secrets.token_hex(TOKEN_BYTES), name)


def unchanged(problem: str, *, missing: bool = True) -> str:
    """Return the message for a problem that only the user can solve; `missing`: by putting files back."""
    remedy = "put back what is missing, or give --replace" if missing else "give --replace"
    return (
        f"{problem}. Nothing was changed: {remedy} to write everything anew; every device then needs its new files too"
    )


def spell(names: Sequence[x509.GeneralName]) -> str:
    """Write names for a person."""
    return ", ".join(str(name.value) for name in names)
