"""Pictures → image files: the baseline that packets are compared with. No vision tower, no codec, no torch.

Promises the file that `tofc.model.image_codec` makes, and the ids of the model, so that the server answers with the
same model. Leaves the sending to `picture_upload` and the vision tower to the server (`--take-images`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from device_client.picture import Encoded, ImageForm
from tofc.errors import EncoderError, ImageCodecError
from tofc.model.checkpoint import ModelIdentity
from tofc.model.image_codec import compress, require
from tofc.model.views import ViewRule


class ImageEncoder:
    """An `Encoder` whose only packet is the picture's file."""

    def __init__(self, *, model_id: str, codec_id: str, rule: ViewRule, form: ImageForm) -> None:
        """Raise ImageCodecError if Pillow lacks the form's codec."""
        require(form.codec)
        self.model_id = model_id
        self.codec_id = codec_id
        self.feature_codec = None
        self.rule = rule
        self.form = form
        self.setting = f"image {form.codec} {form.quality} {form.scale!r}"

    @classmethod
    def open(cls, model: Path, form: ImageForm) -> ImageEncoder:
        """Open the model's configuration in a checkpoint folder, whole or half. Raises CheckpointError."""
        identity = ModelIdentity.read(model)
        return cls(model_id=identity.model_id, codec_id=identity.codec_id, rule=identity.config.rule, form=form)

    @property
    def ready(self) -> bool:
        """Always true: there is nothing to load."""
        return True

    def load(self) -> None:
        """Do nothing: Pillow is loaded already."""

    def unload(self) -> None:
        """Do nothing."""

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        """Yield the picture's file. Raises EncoderError."""
        start = time.perf_counter()
        try:
            data = compress(image, self.form.codec, self.form.quality, self.form.scale)
        except ImageCodecError as error:
            raise EncoderError(str(error)) from error
        yield Encoded(index=0, packet=data, encode_ms=((end := time.perf_counter()) - start) * 1e3, ended_s=end)
