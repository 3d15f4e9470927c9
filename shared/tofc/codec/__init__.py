"""The run-time codec: features ⇄ packets, with numpy and exact integers, without torch.

Promises that most callers need only `Codec`. Leaves training a codec to `tofc_lab`.
"""

from __future__ import annotations

from tofc.codec.codec import Codec, CodedView, Decoded, Explanation
from tofc.codec.config import CodecConfig
from tofc.codec.weights import CodecWeights
from tofc.errors import CodecError, PacketError

__all__ = ["Codec", "CodecConfig", "CodecError", "CodecWeights", "CodedView", "Decoded", "Explanation", "PacketError"]
