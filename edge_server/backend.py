"""Everything that depends on a checkpoint, loaded: engine, assembler, tokenizer, identities.

Promises that the server reads the tower only where it takes images, and that a codec which does not fit its
model is refused at loading. Leaves sockets to `server`; torch and transformers are imported here only when a
real model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_server.assemble import Assembler, SplitAssembler
from edge_server.engine.base import Engine
from edge_server.images import Looker, TowerLooker
from edge_server.settings import ServerSettings
from edge_server.text import Decode
from edge_server.thinking import Marks
from shared.codec.codec import Codec
from shared.codec.threads import use_one_blas_thread
from shared.model.checkpoint import Checkpoint, CheckpointError
from shared.model.device import devices
from shared.model.generation import GREEDY, Defaults, stop_tokens
from shared.model.projector import Projector
from shared.model.prompt import load_tokenizer
from shared.model.threads import use_threads, wait_asleep


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What answers questions, real or fake."""

    model_id: str
    codec_id: str
    most_views: int  # that the model's rule makes of a picture
    assembler: Assembler
    engine: Engine
    decode: Decode
    marks: Marks | None = None  # None: the model does not think aloud
    defaults: Defaults = GREEDY
    looker: Looker | None = None  # what sees pictures that come as image files


def load(settings: ServerSettings) -> Backend:
    """Loads the model of the settings with the embedded engine. Raises CheckpointError, CodecError, ValueError.

    Takes as long as reading the decoder does, and for a whole checkpoint (not a half) its hashing.
    """
    wait_asleep()
    import torch

    from edge_server.engine.qwen3 import embedder, load_qwen3
    from edge_server.engine.transformers import TransformersEngine

    if settings.device not in (found := devices()):
        raise ValueError(f"device is {settings.device!r}; torch finds on this machine: {', '.join(found)}")
    checkpoint = _whole(settings) if settings.take_images else Checkpoint.open(settings.model, "server")
    tokenizer = load_tokenizer(checkpoint)
    defaults = Defaults.read(checkpoint.path)
    use_one_blas_thread()
    use_threads(settings.engine_threads)
    codec = Codec.load(checkpoint.path)
    try:
        model = load_qwen3(checkpoint, device=settings.device, dtype=getattr(torch, settings.dtype))
    except (RuntimeError, MemoryError) as error:  # what torch raises when memory is short
        raise CheckpointError(
            f"the decoder in {checkpoint.path} could not be loaded on {settings.device} in {settings.dtype} ({error}); "
            "take --dtype bfloat16, or a device with more memory"
        ) from error
    assembler = SplitAssembler(
        config=checkpoint.config,
        codec=codec,
        projector=Projector(checkpoint),
        tokenizer=tokenizer,
        embed=embedder(model),
    )

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True))

    return Backend(
        model_id=checkpoint.model_id,
        codec_id=checkpoint.codec_id,
        most_views=checkpoint.config.rule.most_views,
        assembler=assembler,
        engine=TransformersEngine(
            model,
            stop_tokens(checkpoint, tokenizer.eos_token_id),
            parallel=settings.engine_parallel,
            queue=settings.engine_queue,
        ),
        decode=decode,
        marks=Marks.of(tokenizer.get_added_vocab()),
        defaults=defaults,
        looker=_looker(checkpoint, assembler, settings) if settings.take_images else None,
    )


def _whole(settings: ServerSettings) -> Checkpoint:
    """The checkpoint with both halves that images need."""
    halves = not (settings.model / "config.json").exists()
    checkpoint = Checkpoint.open(settings.model, "server" if halves else None)
    if checkpoint.side is not None:
        raise CheckpointError(
            f"{checkpoint.path} is the {checkpoint.side} half of a model; --take-images needs tower and decoder: give "
            "the whole checkpoint with --model, or leave --take-images out"
        )
    return checkpoint


def _looker(checkpoint: Checkpoint, assembler: SplitAssembler, settings: ServerSettings) -> TowerLooker:
    import torch

    from shared.model.tower import Tower

    tower = Tower(checkpoint, getattr(torch, settings.dtype), settings.device)
    return TowerLooker(checkpoint.config.rule, tower, assembler.place)
