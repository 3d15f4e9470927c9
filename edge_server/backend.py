"""Everything that is loaded from a checkpoint: engine, assembler, tokenizer, identities.

Promises that the vision tower is loaded only for a server that accepts image files; that all codecs of the checkpoint
are loaded, or only the one that the settings name; and that a codec which does not fit its model is refused at loading.
Leaves sockets to `server`; torch and transformers are imported only when a real model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_server.assemble import Assembler, SplitAssembler
from edge_server.detokenizer import Decode
from edge_server.engine.base import Engine
from edge_server.handshake import KnownCodec
from edge_server.image_decoding import TowerViewEncoder, ViewEncoder
from edge_server.reasoning import ThinkTokens
from edge_server.settings import ServerSettings
from edge_server.token_embedding import TABLE, TokenEmbedding
from tofc.codec.blas_threads import use_one_blas_thread
from tofc.codec.codec import Codec
from tofc.errors import CheckpointError, CodecError
from tofc.model.checkpoint import Checkpoint, Side
from tofc.model.feature_codecs import DEFAULT, codec_folder, codec_names
from tofc.model.generation import GREEDY, GenerationConfig, stop_tokens
from tofc.model.projector import Projector
from tofc.model.prompt import load_tokenizer
from tofc.model.released_names import DECODER, VISION
from tofc.model.resources import require_memory
from tofc.model.torch_devices import AUTO, check_device, default_dtype
from tofc.model.torch_threads import set_torch_threads, use_passive_waiting
from tofc.out_of_memory import out_of_memory

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What answers questions: a loaded model, or a fake."""

    model_id: str
    codecs: tuple[KnownCodec, ...]  # of the checkpoint, also those that are not served; the first is
    max_views: int  # of one picture, by the model's view rule
    assembler: Assembler
    engine: Engine
    decode: Decode
    think_tokens: ThinkTokens | None = None  # None: the model does not think
    generation_config: GenerationConfig = GREEDY
    view_encoder: ViewEncoder | None = None  # for image files; None: they are not accepted


def load(settings: ServerSettings) -> Backend:
    """Load the model of the settings with the embedded engine. Raises UsageError (CheckpointError, CodecError).

    Takes as long as reading the decoder, and for a whole checkpoint (not a half) also as long as hashing it.
    """
    use_passive_waiting()
    from edge_server.engine.qwen3 import load_qwen3
    from edge_server.engine.transformers import TransformersEngine

    check_device(settings.device)
    checkpoint = _open(settings)
    dtype = _dtype(checkpoint, settings)
    _require_memory(checkpoint, settings, dtype)
    tokenizer = load_tokenizer(checkpoint)
    generation_config = GenerationConfig.read(checkpoint.path)
    use_one_blas_thread()
    set_torch_threads(settings.engine_threads)
    codecs = _load_codecs(checkpoint, settings)
    with _out_of_memory_said("the decoder", checkpoint, settings, dtype):
        model = load_qwen3(checkpoint, device=settings.device, dtype=dtype)
    projector = Projector(checkpoint)
    assembler = SplitAssembler(
        config=checkpoint.config,
        codecs={known.codec_id: codec for known, codec in codecs.items() if codec is not None},
        projector=projector,
        tokenizer=tokenizer,
        embed=TokenEmbedding(checkpoint),
    )

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True))

    return Backend(
        model_id=checkpoint.model_id,
        codecs=tuple(codecs),
        max_views=checkpoint.config.rule.max_views,
        assembler=assembler,
        engine=TransformersEngine(
            model,
            stop_tokens(checkpoint, tokenizer.eos_token_id),
            parallel=settings.engine_parallel,
            queue=settings.engine_queue,
        ),
        decode=decode,
        think_tokens=ThinkTokens.of(tokenizer.get_added_vocab()),
        generation_config=generation_config,
        view_encoder=_view_encoder(checkpoint, projector, assembler, settings, dtype) if settings.take_images else None,
    )


def _open(settings: ServerSettings) -> Checkpoint:
    """Open the checkpoint: the server's half, or both, which image files need."""
    side: Side | None = "server"
    if settings.take_images and (settings.model / "config.json").exists():
        side = None
    checkpoint = Checkpoint.open(settings.model, side, feature_codec=settings.feature_codec or DEFAULT)
    if settings.take_images and checkpoint.side is not None:
        raise CheckpointError(
            f"{checkpoint.path} is the {checkpoint.side} half of a model; --take-images needs tower and decoder: give "
            "the whole checkpoint with --model, or leave --take-images out"
        )
    return checkpoint


def _load_codecs(checkpoint: Checkpoint, settings: ServerSettings) -> dict[KnownCodec, Codec | None]:
    """Load the codec that the settings name, or all of the checkpoint, the default one first; None for the others."""
    found: dict[KnownCodec, Codec | None] = {}
    names = codec_names(checkpoint.path)
    for name in (settings.feature_codec,) if settings.feature_codec else dict.fromkeys((DEFAULT, *names)):
        folder = codec_folder(checkpoint.path, name)
        try:
            codec = Codec.load(folder)
        except CodecError as error:
            raise CodecError(
                f"the codec {name} in {folder}: {error}; or serve another one only (--feature-codec NAME)"
            ) from error
        known = KnownCodec(name=name, codec_id=checkpoint.codec_id_of(name), entropy_model=codec.config.entropy_model)
        found[known] = codec
    for name in names:
        if all(name != known.name for known in found):
            with suppress(CheckpointError):  # it is known for messages only
                found[KnownCodec(name=name, codec_id=checkpoint.codec_id_of(name))] = None
    return found


def _dtype(checkpoint: Checkpoint, settings: ServerSettings) -> torch.dtype:
    """Return the number type of the networks."""
    import torch

    name = settings.dtype
    if name == AUTO:
        name = default_dtype(settings.device, checkpoint.stored[TABLE].dtype)
    found: torch.dtype = getattr(torch, name)
    return found


def _require_memory(checkpoint: Checkpoint, settings: ServerSettings, dtype: torch.dtype) -> None:
    """Check, before anything is loaded, that decoder and tower fit into memory together. Raises ResourceError."""
    if settings.take_images:  # the decoder alone is checked where it is loaded
        size = checkpoint.parameter_count((*DECODER, VISION)) * dtype.itemsize
        what = f"the decoder with the vision tower, which --take-images needs, in {str(dtype).removeprefix('torch.')}"
        require_memory(size, what, settings.device)


@contextmanager
def _out_of_memory_said(
    what: str, checkpoint: Checkpoint, settings: ServerSettings, dtype: torch.dtype
) -> Iterator[None]:
    """Turn an out-of-memory error of any library into a CheckpointError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise CheckpointError(
            f"{what} in {checkpoint.path} could not be loaded on {settings.device} in "
            f"{str(dtype).removeprefix('torch.')} ({error}); use --dtype bfloat16, or a device with more memory"
        ) from error


def _view_encoder(
    checkpoint: Checkpoint,
    projector: Projector,
    assembler: SplitAssembler,
    settings: ServerSettings,
    dtype: torch.dtype,
) -> TowerViewEncoder:
    from tofc.model.tower import Tower

    with _out_of_memory_said("the vision tower", checkpoint, settings, dtype):
        tower = Tower(checkpoint, dtype, settings.device)
        return TowerViewEncoder(checkpoint.config.rule, tower, projector, assembler.add_grid)
