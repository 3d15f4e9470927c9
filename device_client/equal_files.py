"""The image files that answer as well as a codec's packets: what `--mode auto` may send instead.

    image_files.json beside codec.json ─ preset ─→ EqualFiles: a form for pictures of one view, one for crops

Promises that a codec without the file, or a preset that it does not name, has no equal files, so that nothing worse is
sent unasked. Leaves measuring them to `tofc-lab image-files`.

>>> from tofc.model.shipped import NANO
>>> read_equal_files(NANO, "high").form(views=1)
ImageForm(codec='webp', quality=25, scale=0.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_client.picture import ImageForm
from tofc.errors import CheckpointError, ImageCodecError
from tofc.model.config import read_json
from tofc.model.feature_codecs import IMAGE_FILES


@dataclass(frozen=True, kw_only=True)
class EqualFiles:
    """Forms of image files, by the kind of picture; None: no file is known to answer as well."""

    one_view: ImageForm | None = None
    crops: ImageForm | None = None

    def form(self, views: int) -> ImageForm | None:
        """Return the form for a picture of so many views."""
        return self.one_view if views == 1 else self.crops


NO_FILES = EqualFiles()


def read_equal_files(codec: Path, preset: str) -> EqualFiles:
    """Read the files that equal a preset of the codec in a folder. Raises CheckpointError if that file is damaged."""
    path = codec / IMAGE_FILES
    if not path.exists():
        return NO_FILES
    try:
        forms = read_json(path)["presets"].get(preset, {})
        return EqualFiles(**{kind: _form(values) for kind, values in forms.items()})
    except (KeyError, TypeError, AttributeError, ImageCodecError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); make it again with `tofc-lab image-files`") from None


def _form(values: Any) -> ImageForm:
    return ImageForm(codec=values["codec"], quality=values["quality"], scale=values["scale"])
