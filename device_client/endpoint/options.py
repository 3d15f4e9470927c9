"""The options of `device-client serve`, besides those that `ask` has too.

Promises that a value which is not allowed is refused before anything is loaded, and that nothing listens beyond this
machine without TLS and a key. Leaves the edge server's options to `device_client.options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from device_client.endpoint.fetch import check_domains
from device_client.endpoint.messages import ORDERS
from tofc.errors import SecurityError, UsageError
from tofc.option_groups import Option
from tofc.rpc.address import is_loopback
from tofc.rpc.certificate_files import check_pair
from tofc.rpc.tokens import Token, read_tokens
from tofc.secret_file import check_exist, check_private

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Where the endpoint listens, who may use it, and what it takes."""

    host: Annotated[
        str,
        Option(
            envvar="TOFC_DEVICE_HOST",
            help="Address to listen on. Any other than this machine's needs --endpoint-cert and --api-key-file.",
            metavar="HOST",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, Option(envvar="TOFC_DEVICE_PORT", help="Port to listen on; 0: any free one.", metavar="PORT")
    ] = 8080
    api_key_file: Annotated[
        Path | None,
        Option(
            envvar="TOFC_DEVICE_API_KEY_FILE",
            help="File with the API keys that clients must send, one on each line, of at least 16 characters.",
            metavar="PATH",
        ),
    ] = None
    endpoint_cert: Annotated[
        Path | None,
        Option(envvar="TOFC_DEVICE_ENDPOINT_CERT", help="Certificate of the endpoint (PEM): https.", metavar="PATH"),
    ] = None
    endpoint_key: Annotated[
        Path | None,
        Option(envvar="TOFC_DEVICE_ENDPOINT_KEY", help="Private key of --endpoint-cert (PEM).", metavar="PATH"),
    ] = None
    allow_origin: Annotated[
        list[str],
        Option(
            envvar="TOFC_DEVICE_ALLOW_ORIGIN",
            help="A web page's origin that may use the endpoint, such as https://example.org; repeat the option for "
            "several; *: all.",
            metavar="ORIGIN",
        ),
    ] = field(default_factory=list)
    allow_domain: Annotated[
        list[str],
        Option(
            envvar="TOFC_DEVICE_ALLOW_DOMAIN",
            help="Fetch pictures from addresses of this domain and those below it; repeat the option for several. "
            "Without it pictures are data URLs only.",
            metavar="DOMAIN",
        ),
    ] = field(default_factory=list)
    served_model: Annotated[
        str | None,
        Option(
            envvar="TOFC_DEVICE_SERVED_MODEL",
            help="Name of the model in /v1/models; requests may name any.",
            show_default="the name of the model's folder",
            metavar="NAME",
        ),
    ] = None
    thinking_budget: Annotated[
        int | None,
        Option(
            envvar="TOFC_DEVICE_THINKING_BUDGET",
            help="Most tokens that a model may think before it must answer; max_tokens counts the answer only.",
            show_default="the server's limit",
            metavar="N",
        ),
    ] = None
    hide_thinking: Annotated[
        bool,
        Option(
            "--hide-thinking",
            envvar="TOFC_DEVICE_HIDE_THINKING",
            help="Do not receive what the model thinks: fewer bytes, and no reasoning_content.",
        ),
    ] = False
    order: Annotated[
        str,
        Option(
            envvar="TOFC_DEVICE_ORDER",
            help="Of texts and pictures in a message. question-last: a text before pictures that end the message is "
            "moved behind them, where models expect a question. as-sent: nothing is moved.",
            metavar="ORDER",
        ),
    ] = ORDERS[0]
    timeout_s: Annotated[
        float,
        Option(
            "--timeout",
            envvar="TOFC_DEVICE_TIMEOUT",
            help="Seconds for each answer; 0: no limit. A request may lower it (timeout).",
            metavar="S",
        ),
    ] = 300.0
    body_timeout_s: Annotated[
        float,
        Option(
            "--body-timeout",
            envvar="TOFC_DEVICE_BODY_TIMEOUT",
            help="Seconds within which the body of a request must arrive.",
            metavar="S",
        ),
    ] = 60.0
    body_mib: Annotated[
        int, Option("--body-mib", envvar="TOFC_DEVICE_BODY_MIB", help="Most MiB of a request's body.", metavar="N")
    ] = 64
    keep_mib: Annotated[
        int,
        Option(
            "--keep-mib",
            envvar="TOFC_DEVICE_KEEP_MIB",
            help="Most MiB of packets and pixels that are kept of earlier pictures; 0: each is encoded again.",
            metavar="N",
        ),
    ] = 64
    requests: Annotated[
        int,
        Option(
            envvar="TOFC_DEVICE_REQUESTS",
            help="Most requests at one time; further ones are told to come back (429).",
            metavar="N",
        ),
    ] = 64

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--body-mib", self.body_mib, 1),
            ("--keep-mib", self.keep_mib, 0),
            ("--requests", self.requests, 1),
            ("--thinking-budget", self.thinking_budget or 0, 0),
        ):
            if value < least:
                raise UsageError(f"{option} must be at least {least}, got {value}")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port must be 0 (any free one) to 65535, got {self.port}")
        if self.order not in ORDERS:
            raise UsageError(f"--order must be one of {', '.join(ORDERS)}, got {self.order}")
        if not self.timeout_s >= 0:
            raise UsageError(f"--timeout must be 0 (no limit) or more seconds, got {self.timeout_s:g}")
        if not self.body_timeout_s > 0:
            raise UsageError(f"--body-timeout must be more than 0 seconds, got {self.body_timeout_s:g}")
        for origin in self.allow_origin:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                raise UsageError(f"--allow-origin must be like https://example.org, or *, got {origin!r}")
        check_domains(self.allow_domain)
        if (self.endpoint_cert is None) != (self.endpoint_key is None):
            raise SecurityError("--endpoint-cert and --endpoint-key belong together; give both, or neither")
        if not self.local and (self.endpoint_cert is None or self.api_key_file is None):
            raise SecurityError(
                f"listening on {self.host!r} needs --endpoint-cert, --endpoint-key and --api-key-file, because it is "
                "not this machine; without them only 127.0.0.1, ::1 and localhost are allowed"
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that pictures are fetched from."""
        return check_domains(self.allow_domain)

    def keys(self) -> Sequence[Token]:
        """Read the API keys, and check the files of the certificate. Raises UsageError (SecurityError), OSError."""
        files = {
            "--api-key-file": self.api_key_file,
            "--endpoint-cert": self.endpoint_cert,
            "--endpoint-key": self.endpoint_key,
        }
        check_exist(files, "give the path of a file")
        if self.endpoint_cert is not None and self.endpoint_key is not None:
            check_pair(self.endpoint_cert, self.endpoint_key)
        for secret in (self.api_key_file, self.endpoint_key):
            if secret is not None:
                check_private(secret)
        return read_tokens(self.api_key_file) if self.api_key_file is not None else ()
