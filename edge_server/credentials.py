"""Certificate and token for a server that listens beyond its own machine, and for its devices.

Promises that devices which have `client/` still get in afterwards, unless `replace` is asked for: authority and token
stay, and a certificate for more hosts or a longer time is signed by the same authority. `renew` puts a new authority
and new tokens beside the old ones, which hold until `finish`. Nothing is changed where a file is damaged. Leaves where
files lie to `credential_files`, certificates to `certificates`, and handing folders over to whoever runs devices.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from edge_server.certificates import general_name, hosts_of
from edge_server.credential_files import Credentials as Credentials
from edge_server.credential_files import CredentialsError as CredentialsError
from edge_server.credential_files import Found
from edge_server.credential_plan import DAYS, Plan, Wish, make_plan, spell
from shared.rpc.certificate_files import SOON
from shared.rpc.tokens import NAME, NAMES

if sys.platform != "win32":
    import fcntl


def write(
    folder: Path,
    hosts: Sequence[str],
    *,
    days: int = DAYS,
    replace: bool = False,
    device: str = "",
    renew: bool = False,
    finish: bool = False,
) -> Credentials:
    """Credentials for a server that clients call by any of `hosts` (names or addresses), beside those it has already.

    A service may call this at every start, and after an interrupted call. Raises ValueError for no host of a new
    server and for settings that do not go together, CredentialsError, OSError.
    """
    files = Credentials.below(folder)
    if not hosts and (replace or not files.certificate.exists()):
        raise ValueError("--host is missing; name what clients call the server by, for instance edge.example.org")
    if days <= SOON.days:
        raise ValueError(f"--days must be more than {SOON.days}, when a certificate is renewed, got {days}")
    if device and not NAME.fullmatch(device):
        raise ValueError(f"--device must be {NAMES}, got {device!r}")
    if replace + renew + finish > 1:
        raise ValueError("--replace, --renew and --finish are for one call each; give one of them")
    names = tuple(dict.fromkeys(general_name(host) for host in hosts))
    files.certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(files.certificate.parent):
        replace = replace and any(path.exists() for path in vars(files).values() if isinstance(path, Path))
        found = Found() if replace else Found.read(files)
        wish = Wish(hosts=names, days=days, replace=replace, device=device, renew=renew, finish=finish)
        plan = make_plan(files, found, wish)
        for path, content in plan.files.items():
            _write_secret(path, content)
        if finish or replace:
            files.ending.unlink(missing_ok=True)
            files.successor.unlink(missing_ok=True)
    return _told(files, found, wish, plan)


def _told(files: Credentials, found: Found, wish: Wish, plan: Plan) -> Credentials:
    """With what was done, for a person."""
    paths = ", ".join(map(str, plan.files))
    hand_over = f"{files.ca.parent} and what is in {files.devices}" if files.devices.exists() else f"{files.ca.parent}"
    if wish.renew:
        done = f"written: {paths}; what devices have still holds" if paths else "kept: a renewal is under way already"
        done += f"\nnow copy {hand_over} to the devices, which then trust both authorities; end with --finish"
    elif wish.finish:
        done = f"written: {paths}; the old tokens and the old authority hold no longer"
    elif not plan.files:
        done = "kept"
    elif wish.replace:
        done = "replaced: every device needs the new client/; a running server takes it without a restart"
    elif found.untrusted:
        done = f"written: {paths}"
    else:
        done = f"written: {paths}; the rest is kept, devices need nothing new"
        if found.certificate and plan.certificate != found.certificate:
            had = hosts_of(found.certificate)
            if added := [name for name in wish.hosts if name not in had]:
                done += f", {spell(added)} added"
            done += "; a running server takes the new certificate without a restart"
    if wish.device:
        done += (
            f"\ncopy {files.devices / wish.device} to the device; for a server that asks for its certificate: "
            f"--tls-client-ca {files.clients}"
        )
    certified = f"certificate for {spell(hosts_of(plan.certificate))} until {_end(plan.certificate)}{plan.warning}"
    told = f"{done}\n{certified}\nauthority valid until {' and '.join(map(_end, plan.ca))}"
    return replace(files, written=tuple(plan.files), told=told)


def _end(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


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
