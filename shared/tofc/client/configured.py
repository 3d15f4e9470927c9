"""The settings of a client: one constructor for `Client` and `AsyncClient`.

Promises that a setting which is not allowed, or not together with another one, is refused at once; only the files of
the token and the certificates are read for that. Leaves the checks of pictures' settings to `device_client.options`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal

from device_client.link import Target
from device_client.options import ImageOptions, PacketOptions, encoder_opener
from device_client.servers import Servers
from tofc.client.argument_types import check_types
from tofc.client.connection import Connection
from tofc.client.local import LocalServer
from tofc.client.options import check_timeout, errors_name_keywords
from tofc.errors import UsageError
from tofc.model.feature_codecs import DEFAULT
from tofc.model.shipped import NANO
from tofc.rpc.address import DEFAULT_PORT, split_address
from tofc.rpc.client_security import load_client_security
from tofc.rpc.security import ClientSecurity

LOCAL = ":local:"
TIMEOUT_S = 300.0  # as the command's

Mode = Literal["features", "image", "auto"]
File = str | PathLike[str]


class Configured:
    """The constructor of `Client` and `AsyncClient`."""

    def __init__(
        self,
        address: str | Sequence[str] = f"127.0.0.1:{DEFAULT_PORT}",
        *,
        model: File = NANO,
        mode: Mode = "features",
        feature_codec: str | None = None,
        preset: str | None = None,
        features: int | None = None,
        budget_bytes: int | None = None,
        views_per_packet: int | None = None,
        backend: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        execution_provider: str | None = None,
        threads: int | None = None,
        codec: str | None = None,
        quality: int | None = None,
        scale: float | None = None,
        token: str | None = None,
        token_file: File | None = None,
        tls: bool = False,
        tls_ca: File | None = None,
        tls_cert: File | None = None,
        tls_key: File | None = None,
        timeout_s: float | None = TIMEOUT_S,
        wait_s: float | None = None,
    ) -> None:
        """Check the options; no model is loaded and no server is called before the first picture or question.

        Args:
            address: "HOST:PORT" of an edge server, or ":local:" for a private one in this process, which needs the
                extra `server`. A list names several servers of one model: this device asks one of them, always the
                same, and the others while that one cannot serve.
            model: folder of the server's model, whole or only its device half; for ":local:" whole.
            mode: "features" sends packets of the vision tower's features; "image" sends compressed image files, for
                comparison, to a server that allows them; "auto" sends whichever is predicted to be answered sooner.
            feature_codec: which of the model's codecs makes the packets, the name of its folder in codecs/; None: its
                default one. Every server of the model takes them, unless it was started for one codec only.
            preset: how precisely a picture is sent; nano has "low", "medium", "high" (its default) and "max".
            features: the most features of a view (the whole picture, or a part of a large one), instead of the
                preset's number.
            budget_bytes: the most bytes of all packets of a picture, instead of a preset.
            views_per_packet: how many parts of a large picture leave together, 1 to 64; None: 8. More take fewer bytes,
                fewer reach the server earlier.
            backend: what computes the vision tower, "numpy", "onnx", "torch" or "auto" (None): what suits the model.
            dtype: the vision tower's number type, "float32", "bfloat16" or "int8"; None: as the checkpoint is stored.
            device: where the vision tower computes, "cpu" (None), "cuda", …; with ":local:" the decoder too.
            execution_provider: ONNX Runtime's execution provider, such as "CUDA" or "OpenVINO"; None: the CPU.
            threads: CPU threads of the vision tower; None: one for numpy and ONNX Runtime, as many as torch chooses.
            codec: with mode="image" or "auto": "jpeg" (None), "webp", "avif" or "jxl".
            quality: with mode="image" or "auto": 1 to 100, as the format defines it; None: 75.
            scale: with mode="image" or "auto": factor of width and height, more than 0 up to 1; None: 1.
            token: the server's access token; instead of `token_file`.
            token_file: a file whose first line is the token.
            tls: encrypt the connection; trust the system's certificate authorities.
            tls_ca: encrypt the connection; trust the certificate authority in this file (PEM).
            tls_cert: this device's certificate (PEM), for a server that asks for one.
            tls_key: the private key of `tls_cert` (PEM).
            timeout_s: seconds until a question ends with `DeadlineError`; None for no limit. An `ask` may set another.
            wait_s: seconds to wait for a server that is not ready; None to wait only while it loads its model
                or is busy.

        Raises:
            UsageError: an option that is not allowed, or does not go with another.
            SecurityError: a certificate without its key, or a secret file that every user of this machine can read.
            OSError: a file that cannot be read.
            TypeError: an option of another type, or that does not exist.
        """
        check_types(
            address=address, model=model, features=features, budget_bytes=budget_bytes,
            views_per_packet=views_per_packet, threads=threads, quality=quality, scale=scale, token=token,
            token_file=token_file, tls=tls, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, timeout_s=timeout_s,
            wait_s=wait_s,
        )  # fmt: skip
        self._timeout_s = check_timeout(timeout_s)
        if wait_s is not None and not wait_s >= 0:
            raise UsageError(f"wait_s must be 0 or more seconds, got {wait_s:g}")
        with errors_name_keywords():
            open_encoder = encoder_opener(
                PacketOptions(
                    model=Path(model),
                    feature_codec=feature_codec,
                    preset=preset,
                    features=features,
                    budget_bytes=budget_bytes,
                    views_per_packet=views_per_packet,
                    backend=backend,
                    dtype=dtype,
                    device=device if mode != "image" else None,  # else it is the private server's
                    execution_provider=execution_provider,
                    threads=threads,
                ),
                ImageOptions(mode=mode, codec=codec, quality=quality, scale=scale),
            )
        security = _security(token, token_file, tls, tls_ca, tls_cert, tls_key)
        if address == LOCAL and security != ClientSecurity():
            raise UsageError(f"{LOCAL} needs no token and no TLS: nobody else can call it; leave them out")
        self._connection = Connection(
            targets=() if address == LOCAL else _targets(address, security),
            start_local=partial(
                LocalServer.start,
                Path(model),
                feature_codec=feature_codec or DEFAULT,
                device=device or "cpu",
                take_images=mode != "features",
            ),
            open_encoder=open_encoder,
            wait_s=wait_s,
        )
        self._address = address
        self._prepare()

    def _prepare(self) -> None:
        """Set up what a subclass needs besides the connection."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"


def _security(
    token: str | None,
    token_file: File | None,
    tls: bool,
    tls_ca: File | None,
    tls_cert: File | None,
    tls_key: File | None,
) -> ClientSecurity:
    if token is not None and token_file is not None:
        raise UsageError("token and token_file exclude each other; leave one of them out")
    with errors_name_keywords():
        security = load_client_security(
            token_file=_path(token_file),
            tls=tls,
            tls_ca=_path(tls_ca),
            tls_cert=_path(tls_cert),
            tls_key=_path(tls_key),
            warn=lambda text: warnings.warn(text, stacklevel=5),
        )
    if token is None:
        return security
    if not token or not all("!" <= character <= "~" for character in token):
        got = "others" if token else "none"
        raise UsageError(
            f"token must be visible ASCII characters without spaces, got {got}; copy it from the server's token file"
        )
    return replace(security, token=token)


def _path(file: File | None) -> Path | None:
    return None if file is None else Path(file)


def _targets(address: str | Sequence[str], security: ClientSecurity) -> tuple[Target, ...]:
    addresses = [address] if isinstance(address, str) else list(address)
    targets = tuple(Target(address=_checked(one), security=security) for one in addresses)
    with errors_name_keywords():
        _ = Servers(targets=targets)  # it checks them
    return targets


def _checked(address: str) -> str:
    if not isinstance(address, str):
        raise TypeError(f"address must be a str or a list of them, got {address!r:.80} among them")
    if address == LOCAL:
        raise UsageError(f"{LOCAL} is a server for this client alone; give it alone, or leave it out")
    if split_address(address)[1] == 0:
        raise UsageError(f"address {address!r} has port 0, which nobody listens on; write for instance 127.0.0.1:50061")
    return address
