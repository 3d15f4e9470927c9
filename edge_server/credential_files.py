"""The files of the credentials of a server and its devices, and reading those that exist.

    FOLDER/server/        cert.pem  key.pem  token       → edge-server serve --tls-cert --tls-key --token-file
                          clients.pem                    → and --tls-client-ca, once a device has a certificate
    FOLDER/client/        ca.pem             token       → device-client --tls-ca --token-file, shared by devices
    FOLDER/devices/NAME/  ca.pem             token       for one device: a token that can be revoked alone
                          cert.pem  key.pem              → and --tls-cert --tls-key
    FOLDER/authority/     authority.pem                  signs certificates; neither server nor device needs it
                          next.pem  ending               during a renewal: its successor, and the old tokens

Promises that damaged files, and files that do not belong together, are named. Leaves what to write to `credentials`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from edge_server.certificates import Authority, PrivateKey, read_key, signed_by
from tofc.errors import CredentialsError, SecurityError
from tofc.rpc.security import read_token
from tofc.rpc.tokens import Token, read_tokens

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The paths of all files, and a report of what `write` did."""

    certificate: Path
    key: Path
    token: Path
    clients: Path
    ca: Path
    client_token: Path
    authority: Path
    successor: Path
    old_tokens: Path  # the file "ending": the tokens that are valid until a renewal is finished
    devices: Path
    written: tuple[Path, ...] = ()
    summary: str = ""  # for a person

    @classmethod
    def below(cls, folder: Path) -> Credentials:
        """Return the paths below a folder."""
        server, client, authority = folder / "server", folder / "client", folder / "authority"
        return cls(
            certificate=server / "cert.pem",
            key=server / "key.pem",
            token=server / "token",
            clients=server / "clients.pem",
            ca=client / "ca.pem",
            client_token=client / "token",
            authority=authority / "authority.pem",
            successor=authority / "next.pem",
            old_tokens=authority / "ending",
            devices=folder / "devices",
        )


class Reader:
    """Reads files, and collects in `problems` what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def load(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """Read a file; None if it does not exist or is damaged."""
        try:
            return read(path)
        except FileNotFoundError:
            return None
        except SecurityError as error:  # of a token file; its message names the file
            self.problems.append(str(error))
        except ValueError as error:
            why = f": {error}" if str(error).startswith("its ") else ""  # messages of the library do not help
            self.problems.append(f"{path} is damaged{why}")
        return None

    def check(self) -> None:
        """Raise CredentialsError if there is a problem."""
        if self.problems:
            raise CredentialsError(
                f"{'; '.join(self.problems)}. Nothing was changed: put the right file back, or delete the wrong one to "
                "have it written again from the others, or give --replace to write everything anew; every device then "
                "needs its new files too"
            )


def authority_of(path: Path) -> Authority:
    """Read an authority."""
    return Authority.read(path.read_bytes())


def certificate_of(path: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def certificates_of(path: Path) -> tuple[x509.Certificate, ...]:
    """Read certificates."""
    return tuple(x509.load_pem_x509_certificates(path.read_bytes()))


def key_of(path: Path) -> PrivateKey:
    """Read a private key."""
    return read_key(path.read_bytes())


@dataclass(kw_only=True)
class ExistingCredentials:
    """The credentials that a folder holds; None or empty where a file is missing."""

    authority: Authority | None = None
    successor: Authority | None = None  # the new authority of an unfinished renewal
    old_tokens: tuple[Token, ...] = ()  # the tokens from before that renewal
    ca: tuple[x509.Certificate, ...] = ()
    clients: tuple[x509.Certificate, ...] = ()
    key: PrivateKey | None = None
    certificate: x509.Certificate | None = None
    tokens: tuple[Token, ...] = ()
    client_token: str | None = None

    @classmethod
    def read(cls, files: Credentials) -> ExistingCredentials:
        """Read all files. Raises CredentialsError naming all that are damaged or do not belong together."""
        reader = Reader()
        found = cls(
            authority=reader.load(files.authority, authority_of),
            successor=reader.load(files.successor, authority_of),
            old_tokens=reader.load(files.old_tokens, read_tokens) or (),
            ca=reader.load(files.ca, certificates_of) or (),
            clients=reader.load(files.clients, certificates_of) or (),
            key=reader.load(files.key, key_of),
            certificate=reader.load(files.certificate, certificate_of),
            tokens=reader.load(files.token, read_tokens) or (),
            client_token=reader.load(files.client_token, read_token),
        )
        reader.problems += found._mismatches(files)
        reader.check()
        if found.successor is None or (found.authority and found.authority.certificate == found.successor.certificate):
            found.successor, found.old_tokens = None, ()  # a renewal that was interrupted at its start or its end
        return found

    def _mismatches(self, files: Credentials) -> Iterator[str]:
        signers = [one.certificate for one in (self.authority, self.successor) if one is not None]
        if foreign := self.authority is not None and any(one not in signers for one in self.ca):
            yield f"{files.ca} and {files.authority} are of different authorities"
        known = signers if self.authority else [*self.ca, *signers]
        if self.certificate and known and not foreign and not any(signed_by(self.certificate, one) for one in known):
            yield f"{files.certificate} was not signed by the authority in {files.ca}"
        if self.key and self.certificate and self.key.public_key() != self.certificate.public_key():
            yield f"{files.key} is not the key of {files.certificate}"
        shared = [token.value for token in self.tokens if not token.name]  # empty: the shared token was revoked
        if shared and self.client_token and self.client_token not in shared:
            yield f"{files.token} and {files.client_token} hold different tokens"

    @property
    def is_new(self) -> bool:
        """Whether there is neither an authority nor a certificate yet, which devices could trust."""
        return self.authority is None and not self.ca and self.certificate is None
