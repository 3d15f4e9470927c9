"""Writes certificates and tokens for a server that listens beyond its own machine, and for its devices.

Promises that devices which have `client/` can still connect afterwards, except after `replace`: authority and token
stay, and a certificate for more hosts or a longer time is signed by the same authority. `renew` adds a new authority
and new tokens to the old ones, which stay valid until `finish`. Nothing is changed if a file is damaged.
Leaves paths to `credential_files`, certificates to `certificates`, and copying folders to devices to their owner.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from edge_server.certificates import general_name, hosts_of
from edge_server.credential_files import Credentials as Credentials
from edge_server.credential_files import ExistingCredentials
from edge_server.credential_plan import DAYS, CredentialRequest, Plan, make_plan, spell
from tofc.errors import CredentialsError as CredentialsError
from tofc.errors import UsageError
from tofc.rpc.certificate_files import RENEW_BEFORE
from tofc.rpc.tokens import NAME, NAMES

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
    """Write credentials for a server that clients dial by any of `hosts` (names or addresses), keeping existing ones.

    A service may call this at every start, and after an interrupted call. Raises UsageError (CredentialsError), also
    for a new server without a host and for settings that exclude each other, and OSError.
    """
    files = Credentials.below(folder)
    if not hosts and (replace or not files.certificate.exists()):
        raise UsageError("--host is missing; give the name that clients dial, for instance edge.example.org")
    if days <= RENEW_BEFORE.days:
        raise UsageError(
            f"--days must be more than {RENEW_BEFORE.days}, because certificates are renewed that early, got {days}"
        )
    if device and not NAME.fullmatch(device):
        raise UsageError(f"--device must be {NAMES}, got {device!r}")
    if replace + renew + finish > 1:
        raise UsageError("--replace, --renew and --finish exclude each other; give one of them")
    names = tuple(dict.fromkeys(general_name(host) for host in hosts))
    files.certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(files.certificate.parent):
        replace = replace and any(path.exists() for path in vars(files).values() if isinstance(path, Path))
        existing = ExistingCredentials() if replace else ExistingCredentials.read(files)
        request = CredentialRequest(hosts=names, days=days, replace=replace, device=device, renew=renew, finish=finish)
        plan = make_plan(files, existing, request)
        for path, content in plan.files.items():
            _write_secret(path, content)
        if finish or replace:
            files.old_tokens.unlink(missing_ok=True)
            files.successor.unlink(missing_ok=True)
    return _summarise(files, existing, request, plan)


def _summarise(
    files: Credentials, existing: ExistingCredentials, request: CredentialRequest, plan: Plan
) -> Credentials:
    """Return `files` with a summary of what was done, for people."""
    paths = ", ".join(map(str, plan.files))
    hand_over = f"{files.ca.parent} and what is in {files.devices}" if files.devices.exists() else f"{files.ca.parent}"
    if request.renew:
        done = (
            f"written: {paths}; what devices have is still valid" if paths else "kept: a renewal is already in progress"
        )
        done += f"\nnow copy {hand_over} to the devices, which then trust both authorities; then run --finish"
    elif request.finish:
        done = f"written: {paths}; the old tokens and the old authority are no longer valid"
    elif not plan.files:
        done = "kept: no file needs to change"
    elif request.replace:
        done = "replaced: every device needs the new client/; a running server uses the new files without a restart"
    elif existing.is_new:
        done = f"written: {paths}"
    else:
        done = f"written: {paths}; the rest is kept, existing devices need nothing new"
        if existing.certificate and plan.certificate != existing.certificate:
            hosts = hosts_of(existing.certificate)
            if added := [name for name in request.hosts if name not in hosts]:
                done += f"; {spell(added)} added"
            done += "; a running server uses the new certificate without a restart"
    if request.device:
        done += (
            f"\ncopy {files.devices / request.device} to the device; a server asks for its certificate with "
            f"--tls-client-ca {files.clients}"
        )
    certified = f"certificate for {spell(hosts_of(plan.certificate))} until {_end(plan.certificate)}{plan.warning}"
    summary = f"{done}\n{certified}\nauthority valid until {' and '.join(map(_end, plan.ca))}"
    return replace(files, written=tuple(plan.files), summary=summary)


def _end(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder: other calls for it wait until this one is done."""
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
    """Replace a file atomically; at no moment can others read more of it than of the old file.

    It keeps the owner and mode of the old file, so that a service's user can still read its certificate after root has
    renewed it. A new file can be read only by its owner, which is the folder's owner if root writes it.
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
