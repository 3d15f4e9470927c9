"""The two entropy models of compressai that training and baselines need, without the rest of compressai.

`import compressai` loads image models, torchvision and a plotting stack, and its metadata pins numpy below 2; the
entropy models need none of that. So a stand-in for the top-level package, with the two functions that its
subpackages call, is put into `sys.modules` first.
"""

from __future__ import annotations

import importlib.util
import sys
import types


def _put_stand_in() -> None:
    if "compressai" in sys.modules:
        return
    spec = importlib.util.find_spec("compressai")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("compressai is not installed: run `make lab` (training needs it, serving does not)")
    package = types.ModuleType("compressai")
    package.__path__ = list(spec.submodule_search_locations)
    package.get_entropy_coder = lambda: "ans"  # type: ignore[attr-defined]
    package.available_entropy_coders = lambda: ["ans"]  # type: ignore[attr-defined]
    sys.modules["compressai"] = package


_put_stand_in()

from compressai.entropy_models import EntropyBottleneck, GaussianConditional  # noqa: E402

__all__ = ["EntropyBottleneck", "GaussianConditional"]
