"""The settings of a server: what it runs and what it allows.

Promises checked values, with defaults that suit one machine. Leaves where they come from (command line, environment, a
test) to `cli`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edge_server.engine_address import engine_urls
from tofc.errors import UsageError
from tofc.model.feature_codecs import DEFAULT
from tofc.model.shipped import find_model
from tofc.packet_limits import MOST_VIEWS
from tofc.rpc.address import DEFAULT_PORT
from tofc.rpc.certificate_files import check_authorities, check_pair
from tofc.rpc.channel import MAX_UP_BYTES
from tofc.rpc.security import ServerSecurity
from tofc.rpc.tokens import Token, read_tokens
from tofc.secret_file import check_private
from tofc.text import read_pem
from tofc.v1 import tofc_pb2 as pb

MIB = 1024 * 1024
TYPES = ("float32", "bfloat16", "float16")
DTYPES = ("auto", *TYPES)
ENGINES = ("embedded", "vllm-remote", "vllm")
IMAGE_BYTES = 8 * MIB  # with `--take-images`: a photograph of good quality
IMAGE_PIXELS = 25_000_000
STOP_TEXTS = 4  # of one question, as in OpenAI's interface
MAX_TURNS = 512  # of a question, earlier ones included; empty ones cost tokens of the prompt too


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """The limits of one session."""

    packet_bytes: int = 65_536
    views_per_packet: int = MOST_VIEWS
    views_per_picture: int = 0  # 0: as many as the model's view rule can give, see `for_model`
    pictures_per_question: int = 8
    questions_in_flight: int = 8
    question_bytes: int = 32_768
    new_tokens: int = 1024
    views_in_flight: int = 8  # decoded at once; a client that sends more is slowed down
    pictures_under_way: int = 16  # incomplete; beyond it the oldest that no question waits for may be evicted
    numbers: int = 10_000  # refs of pictures, and numbers of questions; a client that needs more opens another session
    samples: int = 64  # of one question, all rounds together; 0: questions are answered once
    context_tokens: int = 0  # of prompt and answer together, for devices to know; 0: the model's, see `for_model`
    image_bytes: int = 0  # of an image file; 0, and then image_pixels too: image files are not accepted
    image_pixels: int = 0  # width times height of an image file

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("views_per_picture", "samples", "context_tokens", "image_bytes", "image_pixels") and value == 0:
                continue
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if (self.image_bytes == 0) != (self.image_pixels == 0):
            raise UsageError(
                "image_bytes and image_pixels must both be 0 (image files are not accepted) or both at least 1, got "
                f"{self.image_bytes} and {self.image_pixels}"
            )
        for name in ("packet_bytes", "question_bytes"):
            if getattr(self, name) > MAX_UP_BYTES // 2:
                raise UsageError(f"{name} must be at most {MAX_UP_BYTES // 2}, got {getattr(self, name)}")

    def for_model(self, max_views: int, max_positions: int) -> SessionLimits:
        """Return these limits, with `max_views` for `views_per_picture` if that is 0, and the model's context."""
        return replace(self, views_per_picture=self.views_per_picture or max_views, context_tokens=max_positions)

    @property
    def message(self) -> pb.Limits:
        """The limits as they are sent to devices."""
        return pb.Limits(
            packet_bytes=self.packet_bytes,
            views_per_packet=self.views_per_packet,
            views_per_picture=self.views_per_picture,
            pictures_per_question=self.pictures_per_question,
            questions_in_flight=self.questions_in_flight,
            question_bytes=self.question_bytes,
            new_tokens=self.new_tokens,
            image_bytes=self.image_bytes,
            image_pixels=self.image_pixels,
            samples=self.samples,
            stop_texts=STOP_TEXTS,
            context_tokens=self.context_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of one server."""

    model: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT  # 0: any free one
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # of /metrics, /livez and /readyz; 0: any free one; None: they are not served
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # clients must show a certificate that it signed
    token_file: Path | None = None
    feature_codec: str | None = None  # the only codec that is served; None: all of the checkpoint
    device: str = "cpu"
    dtype: str = "auto"  # float32 on a CPU, elsewhere as the checkpoint is stored
    trace: bool = False  # send traces, also if OTEL_EXPORTER_OTLP_ENDPOINT is not set
    engine: str = "embedded"
    engine_urls: tuple[str, ...] = ()  # of vllm-remote
    engine_key_file: Path | None = None  # whose first line is their API key
    cuda_graph: bool = False  # of the embedded engine: an answer's tokens as a CUDA graph, see `static_decoder`
    engine_dtype: str | None = None  # of vLLM, and of the rows that it is sent; None: the checkpoint's
    engine_private_network: bool = False  # whether http:// beyond this machine is safe
    limits: SessionLimits = SessionLimits()
    sessions: int = 64
    engine_queue: int = 32  # questions that wait for the engine; beyond it each client may still have one
    engine_parallel: int = 32  # questions that are answered at once
    engine_cache_bytes: int | None = None  # of keys and values, see `key_value_bytes`
    cache_bytes: int = 512 * MIB  # of decoded pictures
    threads: int = 2  # that decode packets and build prompts
    engine_threads: int | None = None  # of torch on a CPU, for decoder and tower; None: torch's own choice
    hello_timeout_s: float = 10.0  # how long a new stream may take to send Hello
    picture_timeout_s: float = 60.0  # how long a question waits for views of its pictures
    grace_s: float = 5.0  # for questions in progress when the server stops

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", find_model(self.model))
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port must be 0 (any free one) to 65535, got {self.port}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise UsageError(f"--metrics-port must be 0 (any free one) to 65535, got {self.metrics_port}")
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        self._check_engine()
        if self.take_images and self.feature_codec not in (None, DEFAULT):
            raise UsageError(
                f"--feature-codec {self.feature_codec} excludes --take-images, which is for devices of the default "
                "codec; leave out one of them"
            )
        for name in ("sessions", "engine_queue", "engine_parallel", "key_value_bytes", "cache_bytes", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, value in (
            ("hello_timeout_s", self.hello_timeout_s),
            ("--picture-timeout", self.picture_timeout_s),
        ):
            if not value > 0:  # also refuses NaN
                raise UsageError(f"{name} must be more than 0 seconds, got {value}")

    def _check_engine(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"--engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.engine_dtype not in (None, *TYPES):
            raise UsageError(f"--engine-dtype must be one of {', '.join(TYPES)}, got {self.engine_dtype!r}")
        if self.engine == "vllm-remote" and not self.engine_urls:
            raise UsageError("--engine vllm-remote needs --engine-url http://HOST:PORT of a vLLM or vllm-router")
        if self.engine != "vllm-remote":
            for option, given in (("--engine-url", self.engine_urls), ("--engine-key-file", self.engine_key_file)):
                if given:
                    raise UsageError(f"{option} is for --engine vllm-remote, but the engine is {self.engine}")
        if self.cuda_graph and self.engine != "embedded":
            raise UsageError(f"--cuda-graph is for --engine embedded, but the engine is {self.engine}; leave it out")
        if self.cuda_graph and self.device.partition(":")[0] != "cuda":
            raise UsageError(
                f"--cuda-graph needs a GPU of NVIDIA or AMD (--device cuda), but the device is {self.device}; leave it "
                "out"
            )
        urls = engine_urls(self.engine_urls, private_network=self.engine_private_network)
        object.__setattr__(self, "engine_urls", urls)

    @property
    def key_value_bytes(self) -> int:
        """Bytes of the decoder's keys and values: of running questions, the rest of earlier prompts."""
        if self.engine_cache_bytes is not None:
            return self.engine_cache_bytes
        return (1024 if self.device == "cpu" else 4096) * MIB  # on a CPU: 32 answers of nano, each of all positions

    @property
    def needs_torch(self) -> bool:
        """Whether this process computes with torch: the decoder, or the tower for image files."""
        return self.engine != "vllm-remote" or self.take_images

    @property
    def take_images(self) -> bool:
        """Whether pictures may come as image files, which needs the vision tower."""
        return self.limits.image_bytes > 0

    def tls(self) -> ServerSecurity:
        """Read certificates and key from their files. Raises UsageError (SecurityError), OSError."""
        security = ServerSecurity(
            certificate=read_pem(self.tls_cert) if self.tls_cert else None,
            key=read_pem(self.tls_key) if self.tls_key else None,
            client_ca=read_pem(self.tls_client_ca) if self.tls_client_ca else None,
        )
        if self.tls_cert is not None and self.tls_key is not None:
            check_pair(self.tls_cert, self.tls_key)
            check_private(self.tls_key)
        if self.tls_client_ca is not None and security.client_ca is not None:
            check_authorities(security.client_ca, self.tls_client_ca, "--tls-client-ca")
        return security

    def tokens(self) -> tuple[Token, ...]:
        """Read the tokens that clients may show. Raises UsageError (SecurityError), OSError."""
        if self.token_file is None:
            return ()
        tokens = read_tokens(self.token_file)
        check_private(self.token_file)
        return tokens
