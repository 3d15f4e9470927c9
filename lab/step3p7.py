"""Views and picture tokens against transformers' own Step3p7 processors.

Promises the largest differences between ``shared.model`` and transformers, on sizes that hold every edge of the
rule and on pixels. Leaves judging them to the caller. Needs torchvision, which nothing else here does.

Two things transformers does otherwise, and the engines that serve the model (vLLM, SGLang) do not: it cuts crops of
a picture that is shrunk first out of the unshrunk one, and stretches a crop that hangs over instead of padding it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from shared.model.config import SplitConfig
from shared.model.prompt import image_token_ids
from shared.model.views import STD, ImageError, View, ViewPlan, ViewRule, plan, views

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Size = tuple[int, int]
#: both resize twice at most, in two passes that each round to whole levels: one level apart more a pass
MOST_LEVELS = 4


def import_torchvision() -> bool:
    """Make torchvision importable, before anything of transformers is imported; False if it is not there.

    A build for another build of torch (a GPU's, beside a torch without one) cannot load its own operators. Nothing
    here calls them, but its import, and with it transformers', fails where nobody has declared them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        from torch.library import Library

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        library = Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        importlib.import_module("torchvision")
    return True


_kept: list[Any] = []  # what is declared goes with the object


def image_processor(rule: ViewRule) -> Any:
    """The image processor of transformers with the sizes of ``rule``; ``import_torchvision`` first."""
    from transformers import Step3p7ImageProcessor

    build: Any = Step3p7ImageProcessor  # untyped
    whole = {"height": rule.global_size, "width": rule.global_size}
    return build(size=whole, patch_size=rule.crop_size, max_image_size=rule.max_side)


def sizes(rule: ViewRule, count: int, seed: int = 0) -> list[Size]:
    """``count`` random sizes and those on either side of every edge of the rule, lying and standing."""
    small, large, most = rule.global_size // 3 // 2 * 2, rule.crop_size // 2, rule.max_side
    edges = [
        *((1, 1), (1, 4), (1, 5), (31, 31), (31, 32), (31, 124), (31, 125), (32, 128), (32, 129), (20, 300)),
        *((small * 2, small * 3), (small * 2, small * 3 + 1), (small * 2 - 1, small * 3)),  # aspect 1.5
        *((large, 4 * large), (large, 4 * large + 1), (large - 1, 4 * large)),  # aspect 4
    ]
    for side in (rule.global_size, rule.max_side):
        edges += [(short, side + more) for more in (-1, 0, 1) for short in (side // 5, side // 2, side - 1, side)]
    for times in (1, 2, 3):  # a fifth of a window more
        edges += [(rule.crop_size, int(rule.crop_size * (times + 0.2)) + more) for more in (0, 1)]
    rng = np.random.default_rng(seed)
    long = np.exp(rng.uniform(0, np.log(2 * most), count))
    short = long * np.exp(-np.abs(rng.normal(0, 0.8, count)))
    drawn = [(max(1, int(a)), max(1, int(b))) for a, b in zip(short, long, strict=True)]
    return [*edges, *((b, a) for a, b in edges), *(pair[::-1] if rng.random() < 0.5 else pair for pair in drawn)]


def other_plans(rule: ViewRule, tried: Sequence[Size]) -> list[Size]:
    """The sizes that ``views.plan`` and transformers plan otherwise; a refused one if transformers takes it well."""
    theirs = image_processor(rule)
    found = []
    for width, height in tried:
        shrunk, resized, window, columns, rows, padded = theirs._plan_patches(
            width, height, rule.global_size, rule.crop_size
        )
        try:
            ours = plan(width, height, rule)
        except ImageError:
            if rows * columns < rule.most_views:
                found.append((width, height))
            continue
        square = (max(width, height),) * 2 if padded else (width, height)
        if ours != ViewPlan(padded=square, shrunk=shrunk, resized=resized, window=window, rows=rows, columns=columns):
            found.append((width, height))
    return found


def noise(size: Size, seed: int = 0) -> Image.Image:
    """A picture in which every pixel is another: the hardest to resize alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def levels_apart(rule: ViewRule, image: Image.Image) -> float:
    """The most that a pixel of a view differs between ``views`` and transformers, in levels of 255.

    Of crops that hang over only the number is compared; a picture that is to be shrunk, transformers gets shrunk.
    """
    cut = plan(*image.size, rule)
    ours = views(image, rule)
    if cut.shrunk != cut.padded:
        image = image.resize(cut.shrunk, Image.Resampling.BILINEAR)
    found = image_processor(rule).preprocess(image, return_tensors="np")
    theirs = [*found.get("pixel_values_local", ()), *found["pixel_values"]]
    if len(ours) != len(theirs):
        return float("inf")
    if hangs_over(cut):
        ours, theirs = ours[-1:], theirs[-1:]
    return max(_levels(view, other) for view, other in zip(ours, theirs, strict=True))


def hangs_over(cut: ViewPlan) -> bool:
    """Whether a side is shorter than the window: then every crop is part black, and transformers stretches it."""
    return cut.window > min(cut.resized)


def _levels(view: View, theirs: Any) -> float:
    scale = 255 * np.array(STD)[:, None, None]
    return round(float(np.abs((view.pixels - np.asarray(theirs)) * scale).max()), 3)  # the rest is float32


def other_tokens(config: SplitConfig, tokenizer: PreTrainedTokenizerFast, tried: Sequence[Size]) -> list[Size]:
    """The sizes whose tokens ``prompt.image_token_ids`` and transformers' processor write otherwise."""
    from transformers import Step3p7Processor

    build: Any = Step3p7Processor  # untyped
    images = image_processor(config.rule)
    processor = build(image_processor=images, tokenizer=tokenizer)
    crop, whole = (config.grid(side) ** 2 for side in (config.crop_size, config.global_size))
    found = []
    for size in tried:
        text = processor.replace_image_token(images.preprocess(noise(size)), 0)
        cut = plan(*size, config.rule)
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        if theirs != image_token_ids(tokenizer, cut, [crop] * cut.crops, whole):
            found.append(size)
    return found
