"""The encoder of `--mode auto`: packets of a tower, and beside it the image files that answer as well.

Promises that everything but the files is the tower's: a picture that goes as features is the same picture as without
`auto`. Leaves choosing to `mode_choice`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from device_client.encoder import Encoder
from device_client.equal_files import NO_FILES, EqualFiles
from device_client.image_encoder import ImageEncoder
from device_client.picture import Encoded, Picture, as_file
from tofc.errors import ImageError
from tofc.model.views import ViewRule


class AutoEncoder:
    """An `Encoder` that encodes features, and plans image files."""

    form = None

    def __init__(self, tower: Encoder, files: EqualFiles = NO_FILES, *, no_files: str = "") -> None:
        """Wrap a tower. `no_files`: why there is no file for a picture, where there is none.

        Raises ImageCodecError if Pillow lacks the codec of a file.
        """
        self.files = files
        self.no_files = no_files
        self._tower = tower
        self._encoders = {
            form: ImageEncoder(model_id=self.model_id, codec_id=self.codec_id, rule=self.rule, form=form)
            for form in (files.one_view, files.crops)
            if form is not None
        }

    def plan_file(self, picture: Picture) -> Picture | None:
        """Return a picture as an image file, which is not made yet.

        None if no file answers as well, or the picture is too narrow for the file's scale.
        """
        if (form := self.files.form(picture.n_views)) is None:
            return None
        try:
            return replace(as_file(picture, self.rule, form), encoder=self._encoders[form])
        except ImageError:
            return None

    @property
    def model_id(self) -> str:
        return self._tower.model_id

    @property
    def codec_id(self) -> str:
        return self._tower.codec_id

    @property
    def feature_codec(self) -> str | None:
        return self._tower.feature_codec

    @property
    def rule(self) -> ViewRule:
        return self._tower.rule

    @property
    def setting(self) -> str:
        return self._tower.setting

    @property
    def ready(self) -> bool:
        return self._tower.ready

    def load(self) -> None:
        self._tower.load()

    def unload(self) -> None:
        self._tower.unload()

    def encode(self, image: Image.Image) -> Iterator[Encoded]:
        return self._tower.encode(image)
