"""Everything that depends on a checkpoint, loaded: engine, assembler, tokenizer, identities.

Promises that the server never reads the tower, and that a codec which does not fit its model is
refused at loading. Leaves sockets to `server`; torch and transformers are imported here only when a
real model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_server.assemble import Assembler, SplitAssembler
from edge_server.engine.base import Engine
from edge_server.settings import ServerSettings
from edge_server.text import Decode
from shared.codec.codec import Codec
from shared.model.checkpoint import Checkpoint
from shared.model.projector import Projector
from shared.model.prompt import load_tokenizer

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What answers questions, real or fake."""

    model_id: str
    codec_id: str
    most_views: int  # that the model's rule makes of a picture
    assembler: Assembler
    engine: Engine
    decode: Decode


def load(settings: ServerSettings) -> Backend:
    """Loads the model of the settings with the embedded engine. Raises CheckpointError, CodecError, ValueError.

    Takes as long as reading the decoder does, and for a whole checkpoint (not a half) its hashing.
    """
    import torch

    from edge_server.engine.qwen3 import embedder, load_qwen3, stop_tokens
    from edge_server.engine.transformers import TransformersEngine

    if settings.dtype not in DTYPES:
        raise ValueError(f"dtype is {settings.dtype!r}; allowed are {', '.join(DTYPES)}")
    if settings.device not in (found := _devices()):
        raise ValueError(f"device is {settings.device!r}; torch finds on this machine: {', '.join(found)}")
    checkpoint = Checkpoint.open(settings.model, "server")
    tokenizer = load_tokenizer(checkpoint)
    codec = Codec.load(checkpoint.path)
    model = load_qwen3(checkpoint, device=settings.device, dtype=getattr(torch, settings.dtype))
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
    )


def _devices() -> list[str]:
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return ["cpu"]
    return ["cpu", kind.type, *(f"{kind.type}:{number}" for number in range(torch.accelerator.device_count()))]
