"""Where the credentials of a server and its devices lie, and what lies there already.

    FOLDER/server/        cert.pem  key.pem  token       → edge-server serve --tls-cert --tls-key --token-file
                          clients.pem                    → and --tls-client-ca, once a device has a certificate
    FOLDER/client/        ca.pem             token       → device-client --tls-ca --token-file, of devices in common
    FOLDER/devices/NAME/  ca.pem             token       for one device: a token that can be revoked alone
                          cert.pem  key.pem              → and --tls-cert --tls-key
    FOLDER/authority/     authority.pem                  signs certificates; neither server nor device needs it
                          next.pem  ending               while a renewal is under way: its successor, and old tokens

Promises that what is damaged or does not belong together is named. Leaves what to write to `credentials`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from edge_server.certificates import Authority, PrivateKey, read_key, signed_by
from shared.rpc.channel import read_token
from shared.rpc.errors import UnsafeAddressError
from shared.rpc.tokens import Token, read_tokens

T = TypeVar("T")


class CredentialsError(ValueError):
    """What is there can be neither kept nor completed; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where everything lies, and what `write` did about it."""

    certificate: Path
    key: Path
    token: Path
    clients: Path
    ca: Path
    client_token: Path
    authority: Path
    successor: Path
    ending: Path
    devices: Path
    written: tuple[Path, ...] = ()
    told: str = ""  # for a person

    @classmethod
    def below(cls, folder: Path) -> "Credentials":
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
            ending=authority / "ending",
            devices=folder / "devices",
        )


class Reader:
    """Reads files; `problems` collects what is damaged."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def load(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """None for a file that is not there, or that is damaged."""
        try:
            return read(path)
        except FileNotFoundError:
            return None
        except UnsafeAddressError as error:  # of a token, and it names the file
            self.problems.append(str(error))
        except ValueError as error:
            why = f": {error}" if str(error).startswith("its ") else ""  # the library's own words say less
            self.problems.append(f"{path} is damaged{why}")
        return None

    def check(self) -> None:
        """Raises CredentialsError where there is a problem."""
        if self.problems:
            raise CredentialsError(
                f"{'; '.join(self.problems)}. Nothing was changed: put the right file back, or delete the wrong one to "
                "have it written again from the others, or give --replace for all of them anew, client/ of every "
                "device too"
            )


def authority_of(path: Path) -> Authority:
    return Authority.read(path.read_bytes())


def certificate_of(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def certificates_of(path: Path) -> tuple[x509.Certificate, ...]:
    return tuple(x509.load_pem_x509_certificates(path.read_bytes()))


def key_of(path: Path) -> PrivateKey:
    return read_key(path.read_bytes())


@dataclass(kw_only=True)
class Found:
    """What lies in a folder already; None or empty for what does not."""

    authority: Authority | None = None
    successor: Authority | None = None  # of a renewal that is under way
    ending: tuple[Token, ...] = ()  # what a renewal began with
    ca: tuple[x509.Certificate, ...] = ()
    clients: tuple[x509.Certificate, ...] = ()
    key: PrivateKey | None = None
    certificate: x509.Certificate | None = None
    tokens: tuple[Token, ...] = ()
    client_token: str | None = None

    @classmethod
    def read(cls, files: Credentials) -> "Found":
        """Raises CredentialsError for all that is damaged, or does not belong together."""
        reader = Reader()
        found = cls(
            authority=reader.load(files.authority, authority_of),
            successor=reader.load(files.successor, authority_of),
            ending=reader.load(files.ending, read_tokens) or (),
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
            found.successor, found.ending = None, ()  # a renewal that was interrupted before it began, or at its end
        return found

    def _mismatches(self, files: Credentials) -> Iterator[str]:
        signers = [one.certificate for one in (self.authority, self.successor) if one is not None]
        if foreign := self.authority is not None and any(one not in signers for one in self.ca):
            yield f"{files.ca} is of another authority than {files.authority}"
        known = signers if self.authority else [*self.ca, *signers]
        if self.certificate and known and not foreign and not any(signed_by(self.certificate, one) for one in known):
            yield f"{files.certificate} was not signed by the authority in {files.ca}"
        if self.key and self.certificate and self.key.public_key() != self.certificate.public_key():
            yield f"{files.key} is not the key of {files.certificate}"
        shared = [token.value for token in self.tokens if not token.name]  # none: what devices shared was revoked
        if shared and self.client_token and self.client_token not in shared:
            yield f"{files.token} and {files.client_token} hold different tokens"

    @property
    def untrusted(self) -> bool:
        """Whether no device can know this server yet."""
        return self.authority is None and not self.ca and self.certificate is None
