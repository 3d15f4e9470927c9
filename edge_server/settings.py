"""What a server runs and allows.

Promises checked values with defaults that suit one machine; leaves where they come from (command line,
environment, a test) to `cli`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from shared.rpc.certificate_files import check_authorities, check_pair
from shared.rpc.channel import DEFAULT_PORT, UP_BYTES, ServerSecurity
from shared.rpc.tofc.v1 import tofc_pb2
from shared.rpc.tokens import Token, read_tokens
from shared.secret_file import check_private
from shared.text import read_pem

MIB = 1024 * 1024
DTYPES = ("float32", "bfloat16", "float16")
IMAGE_BYTES = 8 * MIB  # `--take-images`: a photograph in good quality
IMAGE_PIXELS = 25_000_000
MOST_TURNS = 512  # of a question, those before it included; also empty ones cost the prompt tokens


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """What one session may use; `message` tells it to the device."""

    packet_bytes: int = 65_536
    views_per_picture: int = 0  # 0: the most that the model's rule makes, see `for_model`
    pictures_per_question: int = 8
    questions_in_flight: int = 8
    question_bytes: int = 32_768
    new_tokens: int = 1024
    views_in_flight: int = 8  # decoded at once; a client keeps to as many unacknowledged
    pictures_under_way: int = 16  # incomplete; beyond it the oldest that no question waits for is let go
    numbers: int = 10_000  # pictures, and questions, that a session may number before it must be opened anew
    image_bytes: int = 0  # of an image file; 0, and then both: none are taken
    image_pixels: int = 0  # of an image

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("views_per_picture", "image_bytes", "image_pixels") and value == 0:
                continue
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if (self.image_bytes == 0) != (self.image_pixels == 0):
            raise ValueError(
                f"image_bytes is {self.image_bytes} and image_pixels {self.image_pixels}; both are 0 (no images are "
                "taken) or both at least 1"
            )
        for name in ("packet_bytes", "question_bytes"):
            if getattr(self, name) > UP_BYTES // 2:
                raise ValueError(f"{name} is {getattr(self, name)}; messages hold at most {UP_BYTES // 2} bytes of it")

    def for_model(self, most_views: int) -> "SessionLimits":
        """These limits, with the views that a model's rule makes of a picture where none were set."""
        return replace(self, views_per_picture=self.views_per_picture or most_views)

    @property
    def message(self) -> tofc_pb2.Limits:
        return tofc_pb2.Limits(
            packet_bytes=self.packet_bytes,
            views_per_picture=self.views_per_picture,
            pictures_per_question=self.pictures_per_question,
            questions_in_flight=self.questions_in_flight,
            question_bytes=self.question_bytes,
            new_tokens=self.new_tokens,
            image_bytes=self.image_bytes,
            image_pixels=self.image_pixels,
        )


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """One server. Seconds for times, bytes for sizes."""

    model: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT  # 0: any free one
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # clients have to show a certificate that it signed
    token_file: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    limits: SessionLimits = SessionLimits()
    sessions: int = 64
    engine_queue: int = 32  # questions waiting for the engine; one more is refused
    engine_parallel: int = 8  # questions that hold a key-value cache and take turns
    cache_bytes: int = 512 * MIB  # of decoded pictures
    threads: int = 2  # for entropy decoding and prompts
    engine_threads: int | None = None  # of torch on a CPU, for decoder and tower; None: as many as it takes
    hello_timeout: float = 10.0
    picture_timeout: float = 60.0  # a question waits so long for views of its pictures
    grace: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; allowed are 0 (any free one) to 65535")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; allowed are {', '.join(DTYPES)}")
        for name in ("sessions", "engine_queue", "engine_parallel", "cache_bytes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("hello_timeout", "picture_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0 seconds")

    @property
    def take_images(self) -> bool:
        """Whether pictures may come as image files, which needs the tower."""
        return self.limits.image_bytes > 0

    def tls(self) -> ServerSecurity:
        """Certificates and key from their files. Raises UnsafeAddressError, ValueError, OSError."""
        found = ServerSecurity(
            certificate=read_pem(self.tls_cert) if self.tls_cert else None,
            key=read_pem(self.tls_key) if self.tls_key else None,
            client_ca=read_pem(self.tls_client_ca) if self.tls_client_ca else None,
        )
        if self.tls_cert is not None and self.tls_key is not None:
            check_pair(self.tls_cert, self.tls_key)
            check_private(self.tls_key)
        if self.tls_client_ca is not None and found.client_ca is not None:
            check_authorities(found.client_ca, self.tls_client_ca, "--tls-client-ca")
        return found

    def tokens(self) -> tuple[Token, ...]:
        """Those that clients may show. Raises UnsafeAddressError, OSError."""
        if self.token_file is None:
            return ()
        tokens = read_tokens(self.token_file)
        check_private(self.token_file)
        return tokens
