"""The arguments that `picture()` accepts: a path, the bytes of an image file, a PIL image, or an array.

Promises that everything else is refused with an error that names its type and what is allowed, and that an array is
copied. Leaves opening, colours and orientation to `tofc.model.open_image`, which is the same for all four.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tofc.errors import ImageError

PictureSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
ALLOWED = "give a path, the bytes of an image file, a PIL image, or an array [height, width, 3] of uint8 (RGB)"


def read_source(source: PictureSource) -> Path | bytes | Image.Image:
    """Return what `open_picture` takes. Raises ImageError for anything that cannot be a picture.

    >>> read_source("cat.png")
    PosixPath('cat.png')
    >>> read_source(np.zeros((2, 3, 3), np.uint8)).size
    (3, 2)
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (str, os.PathLike)):
        return Path(source)
    if isinstance(source, (bytes, Image.Image)):
        return source
    raise ImageError(f"{type(source).__name__} is not a picture; {ALLOWED}")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        shape = ", ".join(map(str, array.shape))
        raise ImageError(f"an array [{shape}] of {array.dtype} is not a picture; {ALLOWED}")
    return Image.fromarray(np.ascontiguousarray(array))
