"""Comparison of views and picture tokens with transformers' own Step3p7 processors.

Promises to find the differences between `tofc.model` and transformers, in sizes that include every edge of the rule and
in pixels. Leaves the limits to the caller. Needs torchvision, which nothing else in the project does.

Transformers differs in two ways from `tofc.model` and from the engines that serve the model (vLLM, SGLang): if a
picture must be shrunk, it cuts the crops before shrinking; and it stretches a crop that extends over the edge instead
of padding it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tofc.errors import ImageError
from tofc.model.config import SplitConfig
from tofc.model.prompt import image_token_ids
from tofc.model.views import View, ViewPlan, ViewRule, plan, views

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Size = tuple[int, int]
#: both resize at most twice, in two passes that each round to whole levels; a pass may add a difference of one level
MOST_LEVELS = 4


def import_torchvision() -> bool:
    """Import torchvision, before anything of transformers is imported; return False if it is not installed.

    A torchvision built for another torch (for instance one with CUDA) cannot load its operators. Nothing here calls
    them, but importing it, and transformers with it, fails unless they are declared.
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


_kept: list[Any] = []  # declarations of operators, which end when their object is deleted


def image_processor(rule: ViewRule) -> Any:
    """Return transformers' image processor with the sizes of `rule`; call `import_torchvision` first."""
    from transformers import Step3p7ImageProcessor

    build: Any = Step3p7ImageProcessor  # untyped
    whole = {"height": rule.global_size, "width": rule.global_size}
    return build(
        size=whole,
        patch_size=rule.crop_size,
        max_image_size=rule.max_side,
        image_mean=list(rule.normalisation.mean),
        image_std=list(rule.normalisation.std),
    )


def sizes(rule: ViewRule, count: int, seed: int = 0) -> list[Size]:
    """Return `count` random sizes, and those on both sides of every edge of the rule, landscape and portrait."""
    small, large, most = rule.global_size // 3 // 2 * 2, rule.crop_size // 2, rule.max_side
    edges = [
        *((1, 1), (1, 4), (1, 5), (31, 31), (31, 32), (31, 124), (31, 125), (32, 128), (32, 129), (20, 300)),
        *((small * 2, small * 3), (small * 2, small * 3 + 1), (small * 2 - 1, small * 3)),  # aspect 1.5
        *((large, 4 * large), (large, 4 * large + 1), (large - 1, 4 * large)),  # aspect 4
    ]
    for side in (rule.global_size, rule.max_side):
        edges += [(short, side + more) for more in (-1, 0, 1) for short in (side // 5, side // 2, side - 1, side)]
    for times in (1, 2, 3):  # windows and a fifth: a larger rest gets a window of its own
        edges += [(rule.crop_size, int(rule.crop_size * (times + 0.2)) + more) for more in (0, 1)]
    rng = np.random.default_rng(seed)
    long = np.exp(rng.uniform(0, np.log(2 * most), count))
    short = long * np.exp(-np.abs(rng.normal(0, 0.8, count)))
    drawn = [(max(1, int(a)), max(1, int(b))) for a, b in zip(short, long, strict=True)]
    return [*edges, *((b, a) for a, b in edges), *(pair[::-1] if rng.random() < 0.5 else pair for pair in drawn)]


def other_plans(rule: ViewRule, tried: Sequence[Size]) -> list[Size]:
    """Return the sizes that `views.plan` and transformers plan differently, or that only `views.plan` refuses."""
    theirs = image_processor(rule)
    found = []
    for width, height in tried:
        shrunk, resized, window, columns, rows, padded = theirs._plan_patches(
            width, height, rule.global_size, rule.crop_size
        )
        try:
            ours = plan(width, height, rule)
        except ImageError:
            if rows * columns < rule.max_views:
                found.append((width, height))
            continue
        square = (max(width, height),) * 2 if padded else (width, height)
        if ours != ViewPlan(padded=square, shrunk=shrunk, resized=resized, window=window, rows=rows, columns=columns):
            found.append((width, height))
    return found


def noise(size: Size, seed: int = 0) -> Image.Image:
    """Return a picture of random pixels, which shows differences in resizing best."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def levels_apart(rule: ViewRule, image: Image.Image) -> float:
    """Return the largest difference of a pixel between `views` and transformers, in levels of 255.

    Where the two differ on purpose: crops that extend over the edge are counted but not compared, and transformers gets
    a picture that is shrunk already.
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
    """Return whether a side is shorter than the window: crops are then padded, where transformers stretches them."""
    return cut.window > min(cut.resized)


def _levels(view: View, theirs: Any) -> float:
    scale = 255 * np.array(view.normalisation.std)[:, None, None]
    return round(float(np.abs((view.pixels - np.asarray(theirs)) * scale).max()), 3)  # beyond that it is float32 noise


def other_tokens(config: SplitConfig, tokenizer: PreTrainedTokenizerFast, tried: Sequence[Size]) -> list[Size]:
    """Return the sizes whose tokens differ between `prompt.image_token_ids` and transformers' processor."""
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
