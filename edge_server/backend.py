"""Everything that is loaded from a checkpoint: engine, assembler, tokenizer, identities.

Promises that the vision tower is loaded only for a server that accepts image files; that all codecs of the checkpoint
are loaded, or only the one that the settings name; and that a codec which does not fit its model is refused at loading.
Leaves sockets to `server`, and which engine to `engine_loading`; torch and transformers are imported only when a real
model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from edge_server.assemble import Assembler, SplitAssembler
from edge_server.detokenizer import Decode
from edge_server.engine.base import Engine
from edge_server.engine_loading import load_engine
from edge_server.handshake import KnownCodec
from edge_server.image_decoding import TowerViewEncoder, ViewEncoder
from edge_server.placement import compute_dtype, out_of_memory_said, require_networks_memory
from edge_server.reasoning import ThinkTokens
from edge_server.settings import ServerSettings
from edge_server.token_embedding import TokenEmbedding
from tofc.blas_threads import use_one_blas_thread
from tofc.codec.codec import Codec
from tofc.errors import CheckpointError, CodecError
from tofc.model.checkpoint import Checkpoint, Side
from tofc.model.feature_codecs import DEFAULT, codec_folder, codec_names
from tofc.model.generation import GREEDY, GenerationConfig, stop_tokens
from tofc.model.projector import Projector
from tofc.model.prompt import load_tokenizer
from tofc.model.torch_devices import check_device
from tofc.model.torch_threads import set_torch_threads, use_passive_waiting


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
    """Load the model of the settings, and its engine.

    Raises UsageError (CheckpointError, CodecError), and UnavailableError if no engine elsewhere answers. Takes as long
    as reading the decoder, and for a whole checkpoint (not a half) also as long as hashing it.
    """
    use_passive_waiting()
    if settings.needs_torch:
        check_device(settings.device)
    checkpoint = _open(settings)
    require_networks_memory(checkpoint, settings)
    tokenizer = load_tokenizer(checkpoint)
    generation_config = GenerationConfig.read(checkpoint.path)
    use_one_blas_thread()
    if settings.needs_torch:
        set_torch_threads(settings.engine_threads)
    codecs = _load_codecs(checkpoint, settings)
    engine = load_engine(settings, checkpoint, stop_tokens(checkpoint, tokenizer.eos_token_id))
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
        engine=engine,
        decode=decode,
        think_tokens=ThinkTokens.of(tokenizer.get_added_vocab()),
        generation_config=generation_config,
        view_encoder=_view_encoder(checkpoint, projector, assembler, settings) if settings.take_images else None,
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


def _view_encoder(
    checkpoint: Checkpoint,
    projector: Projector,
    assembler: SplitAssembler,
    settings: ServerSettings,
) -> TowerViewEncoder:
    from tofc.model.tower import Tower

    with out_of_memory_said("the vision tower", checkpoint, settings):
        tower = Tower(checkpoint, compute_dtype(checkpoint, settings), settings.device)
        return TowerViewEncoder(checkpoint.config.rule, tower, projector, assembler.add_grid)
