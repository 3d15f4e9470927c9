"""The options that commands of `device-client` share, in groups: the server, the packets, the image file, the answer.

Promises that each is an environment variable too (TOFC_DEVICE_…), and that a value which is not allowed, or not
together with another one, is refused before anything slow begins. Leaves sampling to `sampling`, and what the
options mean to `encoder`, `session` and `link`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from device_client.auto_encoder import AutoEncoder
from device_client.compute import Compute
from device_client.encoder import Encoder, TowerEncoder
from device_client.equal_files import EqualFiles
from device_client.image_encoder import ImageEncoder
from device_client.link import Target
from device_client.picture import ImageForm
from device_client.rate import RateChoice
from device_client.servers import Servers
from tofc.errors import UsageError
from tofc.model.feature_codecs import DEFAULT
from tofc.model.shipped import NANO, find_model
from tofc.option_groups import Option
from tofc.packet_limits import MOST_VIEWS, VIEWS_PER_PACKET
from tofc.rpc.address import DEFAULT_PORT, split_address
from tofc.rpc.client_security import load_client_security
from tofc.terminal import note
from tofc.tracing import Tracer, open_tracer

MODES = ("features", "image", "auto")
DEFAULT_FORM = ImageForm()


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where the server is, how the connection is protected, and how long to wait for it."""

    server: Annotated[
        list[str],
        Option(
            envvar="TOFC_DEVICE_SERVER",
            help="Address of the edge server. Repeat the option, or separate addresses by commas, to name several "
            "servers of one model: this device asks one of them, always the same, and the others while that one "
            "cannot serve.",
            metavar="HOST:PORT",
        ),
    ] = field(default_factory=lambda: [f"127.0.0.1:{DEFAULT_PORT}"])
    wait_s: Annotated[
        float | None,
        Option(
            "--wait",
            envvar="TOFC_DEVICE_WAIT",
            help="Seconds to wait for a server that is not running yet, is loading its model, has lost its engine, is "
            "full or is busy; 0: do not wait.",
            show_default="no limit while it loads or has lost its engine, --timeout while it is busy, otherwise 0",
            metavar="S",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        Option(envvar="TOFC_DEVICE_TOKEN_FILE", help="File with the server's access token.", metavar="PATH"),
    ] = None
    tls: Annotated[
        bool,
        Option(
            "--tls",
            envvar="TOFC_DEVICE_TLS",
            help="Encrypt the connection; trust the system's certificate authorities.",
        ),
    ] = False
    tls_ca: Annotated[
        Path | None,
        Option(
            envvar="TOFC_DEVICE_TLS_CA",
            help="Encrypt the connection; trust the certificate authority in this file (PEM).",
            metavar="PATH",
        ),
    ] = None
    tls_cert: Annotated[
        Path | None,
        Option(
            envvar="TOFC_DEVICE_TLS_CERT",
            help="This device's certificate (PEM), for a server that asks for one.",
            metavar="PATH",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        Option(envvar="TOFC_DEVICE_TLS_KEY", help="Private key of --tls-cert (PEM).", metavar="PATH"),
    ] = None
    trace: Annotated[
        bool,
        Option(
            "--trace",
            envvar="TOFC_DEVICE_TRACE",
            help="Send OpenTelemetry traces to localhost:4317, or where OTEL_EXPORTER_OTLP_ENDPOINT says.",
        ),
    ] = False

    def __post_init__(self) -> None:
        for address in self.addresses:
            if split_address(address)[1] == 0:
                raise UsageError(
                    f"--server must have a port above 0, got {address}; write for instance 127.0.0.1:50061"
                )
        if self.wait_s is not None and not self.wait_s >= 0:
            raise UsageError(f"--wait must be 0 or more seconds, got {self.wait_s:g}")

    @property
    def addresses(self) -> list[str]:
        """The servers' addresses, as they were given."""
        return [address for given in self.server for address in given.replace(",", " ").split() or [given]]

    def targets(self) -> list[Target]:
        """Read the files and return where and how to connect. Raises UsageError, CredentialsError, OSError."""
        security = load_client_security(
            token_file=self.token_file,
            tls=self.tls,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            warn=lambda text: note(f"device-client: {text}"),
        )
        targets = [Target(address=address, security=security) for address in self.addresses]
        _ = Servers(targets=tuple(targets))  # it checks them
        return targets

    def tracer(self) -> Tracer:
        """Return where spans go. Raises UsageError if they are wanted and OpenTelemetry is not installed."""
        return open_tracer("device-client", wanted=self.trace, warn=lambda text: note(f"device-client: {text}"))


@dataclass(frozen=True, kw_only=True)
class PacketOptions:
    """The model, and how it turns a picture into packets; None: the option was not given."""

    model: Annotated[
        Path,
        Option(
            "--model",
            envvar="TOFC_MODEL",
            help="The server's model: a checkpoint's folder, complete or only its device half, or the name of a model "
            "that ships with TOFC.",
            show_default="nano",
            metavar="NAME|PATH",
        ),
    ] = NANO
    feature_codec: Annotated[
        str | None,
        Option(
            envvar="TOFC_DEVICE_FEATURE_CODEC",
            help="Which of the model's codecs turns a picture's features into packets: the name of its folder in "
            f"codecs/, or {DEFAULT}. The format of an image file is --codec.",
            show_default="the model's",
            metavar="NAME",
        ),
    ] = None
    preset: Annotated[
        str | None,
        Option(
            envvar="TOFC_DEVICE_PRESET",
            help="How precisely a picture is sent, by name; more precise takes more bytes. nano, the model that is "
            "shipped, has low, medium, high and max.",
            show_default="the codec's",
            metavar="NAME",
        ),
    ] = None
    features: Annotated[
        int | None,
        Option(
            "--features",
            "-n",
            envvar="TOFC_DEVICE_FEATURES",
            help="Send at most N features of each view (the whole picture, or a part of a large one); fewer take fewer "
            "bytes.",
            show_default="the preset's",
            metavar="N",
        ),
    ] = None
    budget_bytes: Annotated[
        int | None,
        Option(
            envvar="TOFC_DEVICE_BUDGET_BYTES",
            help="Send at most B bytes of a picture, as precisely as they allow; instead of --preset and --features.",
            show_default=False,
            metavar="B",
        ),
    ] = None
    views_per_packet: Annotated[
        int | None,
        Option(
            envvar="TOFC_DEVICE_VIEWS_PER_PACKET",
            help="How many parts of a large picture leave together: more take fewer bytes, fewer reach the server "
            f"earlier; 1 to {MOST_VIEWS}.",
            show_default=str(VIEWS_PER_PACKET),
            metavar="N",
        ),
    ] = None
    backend: Annotated[
        str | None,
        Option(
            envvar="TOFC_DEVICE_BACKEND",
            help="What computes a picture's features: numpy, in float32 on the CPU; onnx, ONNX Runtime; torch; auto: "
            "what suits the model.",
            show_default="auto",
            metavar="NAME",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        Option(
            envvar="TOFC_DEVICE_DTYPE",
            help="Number type that this device computes in: float32; bfloat16, half the memory, slow on CPUs without "
            "it; int8, a quarter of the memory, CPU only.",
            show_default="as stored",
            metavar="TYPE",
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(
            envvar="TOFC_DEVICE_ACCELERATOR",
            help="Processor that computes a picture's features: cpu, cuda, cuda:1 and so on.",
            show_default="cpu",
            metavar="DEVICE",
        ),
    ] = None
    execution_provider: Annotated[
        str | None,
        Option(
            envvar="TOFC_DEVICE_EXECUTION_PROVIDER",
            help="ONNX Runtime's execution provider that computes a picture's features: CUDA, TensorRT, OpenVINO, "
            "CoreML, QNN and so on, if its build has it.",
            show_default="CPU",
            metavar="NAME",
        ),
    ] = None
    threads: Annotated[
        int | None,
        Option(
            "--threads",
            envvar="TOFC_DEVICE_THREADS",
            help="CPU threads that compute a picture's features.",
            show_default="numpy, onnx: 1; torch: OMP_NUM_THREADS, else one per core",
            metavar="N",
        ),
    ] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", find_model(self.model))
        _ = self.rate, self.compute  # they check their values: wrong ones are reported before anything is opened

    @property
    def rate(self) -> RateChoice:
        """How many bytes a picture may take."""
        return RateChoice(
            preset=self.preset,
            features=self.features,
            budget_bytes=self.budget_bytes,
            views_per_packet=VIEWS_PER_PACKET if self.views_per_packet is None else self.views_per_packet,
        )

    @property
    def compute(self) -> Compute:
        """Where and in which type features are computed."""
        return Compute(
            backend=self.backend or "auto",
            dtype=self.dtype,
            device=self.device or "cpu",
            provider=self.execution_provider,
            threads=self.threads,
        )

    def open_encoder(self) -> TowerEncoder:
        """Open the model. Raises UsageError, CheckpointError, EncoderError."""
        return TowerEncoder.open(self.model, self.rate, self.compute, self.feature_codec or DEFAULT)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Whether a picture is sent as an image file instead, and what file; None: the option was not given."""

    mode: Annotated[
        str,
        Option(
            envvar="TOFC_DEVICE_MODE",
            help="What is sent of a picture. features: packets, computed on this device. image: a compressed image "
            "file, for comparison; the server must allow it. auto: whichever of the two is predicted to be answered "
            "sooner, the file in a quality that answers as well.",
            metavar="MODE",
        ),
    ] = "features"
    codec: Annotated[
        str | None,
        Option(
            "--codec",
            envvar="TOFC_DEVICE_CODEC",
            help="With --mode image or auto: the format, one of jpeg, webp, avif and jxl.",
            show_default=f"{DEFAULT_FORM.codec}; auto: as the model says",
            metavar="CODEC",
        ),
    ] = None
    quality: Annotated[
        int | None,
        Option(
            "--quality",
            envvar="TOFC_DEVICE_QUALITY",
            help="With --mode image or auto: quality of the file, 1 to 100, as the format defines it.",
            show_default=f"{DEFAULT_FORM.quality}; auto: as the model says",
            metavar="Q",
        ),
    ] = None
    scale: Annotated[
        float | None,
        Option(
            "--scale",
            envvar="TOFC_DEVICE_SCALE",
            help="With --mode image or auto: multiply width and height by S before compressing; at most 1.",
            show_default=f"{DEFAULT_FORM.scale:g}; auto: as the model says",
            metavar="S",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"--mode must be one of {', '.join(MODES)}, got {self.mode}")
        for option, value in (("--codec", self.codec), ("--quality", self.quality), ("--scale", self.scale)):
            if value is not None and self.mode == "features":
                raise UsageError(f"{option} {value} belongs to --mode image or auto; add that, or leave {option} out")

    @property
    def given(self) -> bool:
        """Whether the user chose a file."""
        return (self.codec, self.quality, self.scale) != (None, None, None)

    @property
    def form(self) -> ImageForm:
        """The file to send."""
        return ImageForm(
            codec=DEFAULT_FORM.codec if self.codec is None else self.codec,
            quality=DEFAULT_FORM.quality if self.quality is None else self.quality,
            scale=DEFAULT_FORM.scale if self.scale is None else self.scale,
        )


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How long an answer may take and how it is shown."""

    timeout_s: Annotated[
        float,
        Option(
            "--timeout",
            envvar="TOFC_DEVICE_TIMEOUT",
            help="Seconds for each answer, counted from when the server is ready; 0: no limit.",
            metavar="S",
        ),
    ] = 300.0
    show_thinking: Annotated[
        bool,
        Option(
            "--show-thinking",
            envvar="TOFC_DEVICE_SHOW_THINKING",
            help='Show what the model thinks before it answers: on stderr, or in JSON as the field "thinking".',
        ),
    ] = False
    as_json: Annotated[
        bool,
        Option("--json", envvar="TOFC_DEVICE_JSON", help="Print one JSON object per answer, for programs."),
    ] = False

    def __post_init__(self) -> None:
        if not self.timeout_s >= 0:
            raise UsageError(f"--timeout must be 0 (no limit) or more seconds, got {self.timeout_s:g}")

    @property
    def limit_s(self) -> float | None:
        """Seconds for an answer; None: no limit."""
        return self.timeout_s or None


def open_auto(packets: PacketOptions, given: ImageForm | None, tower: TowerEncoder | None = None) -> AutoEncoder:
    """Open the encoder of --mode auto. `given`: the image file; None: one that answers as well as the preset.

    `tower`: of these packets, if it is open already.

    Raises as `PacketOptions.open_encoder`, and ImageCodecError.
    """
    tower = tower or packets.open_encoder()
    if tower.feature_codec != DEFAULT:
        raise UsageError(
            f"--feature-codec {tower.feature_codec} does not go with --mode auto: image files need the model's default "
            "codec; leave one of them out"
        )
    if given is not None:
        return AutoEncoder(tower, EqualFiles(one_view=given, crops=given))
    if packets.features is not None or packets.budget_bytes is not None:
        option = "--features" if packets.features is not None else "--budget-bytes"
        return AutoEncoder(tower, no_files=f"no image file is known to answer as well as {option}; give --quality too")
    name, files = tower.equal_files()
    return AutoEncoder(tower, files, no_files=f"the model names no image file that answers as well as preset {name}")


def encoder_opener(packets: PacketOptions, image: ImageOptions) -> Callable[[], Encoder]:
    """Check that the options go together and return what opens their encoder. Raises UsageError, ImageCodecError."""
    if image.mode == "features":
        return packets.open_encoder
    if image.mode == "auto":
        given = image.form if image.given else None
        return lambda: open_auto(packets, given)
    for one in fields(packets):
        value = getattr(packets, one.name)
        if one.name != "model" and value is not None:
            option = "--" + one.name.replace("_", "-")
            raise UsageError(
                f"{option} {value} belongs to --mode features or auto; leave out {option} or --mode image (--quality "
                "makes an image file smaller)"
            )
    form = image.form
    return lambda: ImageEncoder.open(packets.model, form)
