"""An encoder without a model, whose packets are hashes: for tests and for trying out the protocol.

Promises the same views as the real encoder, and packets that depend on the pixels and the setting only. No server can
answer from these packets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from PIL import Image

from device_client.picture import Encoded
from tofc.model.feature_codecs import DEFAULT
from tofc.model.views import ViewRule, plan


class FakeEncoder:
    """An `Encoder` that needs no weights. `encoded` counts the views that it encoded, over all pictures.

    `before_view` is called in the encoder thread before each view, with its index: a test can block it there.
    """

    def __init__(
        self,
        *,
        model_id: str = "0123456789abcdef",
        codec_id: str = "fedcba9876543210",
        feature_codec: str = DEFAULT,
        setting: str = "",
        packet_bytes: int = 100,
        views_per_packet: int = 1,
        saved_bytes: int = 0,
        rule: ViewRule | None = None,
        before_view: Callable[[int], None] | None = None,
    ) -> None:
        self.model_id = model_id
        self.codec_id = codec_id
        self.feature_codec = feature_codec
        self.setting = setting
        self.form = None
        self.rule = rule or ViewRule(global_size=336, crop_size=224, max_side=3024)
        self.loaded = self.unloaded = 0  # calls
        self.encoded = 0
        self._packet_bytes = packet_bytes
        self._views_per_packet = views_per_packet
        self._saved_bytes = saved_bytes
        self._before_view = before_view

    @property
    def ready(self) -> bool:
        return self.loaded > self.unloaded

    def load(self) -> None:
        self.loaded += 1

    def unload(self) -> None:
        self.unloaded += 1

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        layout = plan(image.width, image.height, self.rule)
        pixels = hashlib.sha256(image.tobytes()).digest()
        count, together, joins = layout.rows * layout.columns + 1, b"", 0
        for index in range(count):
            if self._before_view is not None:
                self._before_view(index)
            seed = pixels + index.to_bytes(4, "little") + self.setting.encode()
            packet = hashlib.shake_256(seed).digest(self._packet_bytes)
            self.encoded += 1
            together += packet[self._saved_bytes if joins else 0 :]
            joins += 1
            if index + 1 == count or joins == self._views_per_packet:
                yield Encoded(index=index, packet=packet, joins=joins, joined=together if joins > 1 else b"")
                together, joins = b"", 0
            else:
                yield Encoded(index=index, packet=packet, joins=0)
