"""The run-time codec: features ⇄ packets, with numpy and exact integers, never torch."""

from shared.codec.codec import Codec, Decoded, Explanation
from shared.codec.packet import PacketError
from shared.codec.weights import CodecConfig, CodecError, CodecWeights

__all__ = ["Codec", "CodecConfig", "CodecError", "CodecWeights", "Decoded", "Explanation", "PacketError"]
