"""Pictures → image files: the baseline that packets are compared with. No tower, no codec, no torch.

Promises the file of `shared.model.image_file` and the identities of the model, so that the server sees the picture
with the same model. Leaves the sending to `delivery`; the server has to run the tower (`--take-images`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from device_client.errors import EncoderError
from device_client.picture import Encoded, ImageForm
from shared.model.checkpoint import Origin
from shared.model.image_file import ImageFileError, compress, require
from shared.model.views import ViewRule


class ImageEncoder:
    """An `Encoder` whose only packet is the picture's file."""

    def __init__(self, *, model_id: str, codec_id: str, rule: ViewRule, form: ImageForm) -> None:
        """Raises ImageFileError where Pillow lacks the form's codec."""
        require(form.codec)
        self.model_id = model_id
        self.codec_id = codec_id
        self.rule = rule
        self.form = form
        self.setting = f"image {form.codec} {form.quality} {form.scale!r}"

    @classmethod
    def open(cls, model: Path, form: ImageForm) -> ImageEncoder:
        """For the model of a checkpoint directory; a half's configuration and ids will do. Raises CheckpointError."""
        origin = Origin.read(model)
        return cls(model_id=origin.model_id, codec_id=origin.codec_id, rule=origin.config.rule, form=form)

    @property
    def ready(self) -> bool:
        return True

    def load(self) -> None:
        """Nothing: Pillow is there."""

    def unload(self) -> None:
        """Nothing was loaded."""

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        begun = time.perf_counter()
        try:
            data = compress(image, self.form.codec, self.form.quality, self.form.scale)
        except ImageFileError as error:
            raise EncoderError(str(error)) from error
        yield Encoded(index=0, packet=data, encode_ms=(time.perf_counter() - begun) * 1e3)
