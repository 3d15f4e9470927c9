"""All settings of vector quantisation that are tried: how many codewords in how many stages, which λ, which context.

    training views ─ codebooks ─ their indices ─ context ─→ settings

Promises that codebooks and nets are fitted only when a setting is measured, once, and kept in the run's folder under
the name of all that they depend on. Leaves fitting to `codebooks` and `index_contexts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from tofc_lab.nano.answerer import Reduce
from tofc_lab.progress import Log, print_now
from tofc_lab.rate_distortion.codebooks import RECIPE, Codebooks, Design
from tofc_lab.rate_distortion.index_contexts import Context, CountContext, NetContext
from tofc_lab.rate_distortion.setting import Setting
from tofc_lab.rate_distortion.training_views import Training

WEIGHTS = (0.01, 0.025, 0.07, 0.14)
WEIGHTS_OF_STAGES = (0.005, 0.015, 0.05)


class IndexMethods:
    """Codebooks and contexts of one training set; `training` loads it, `identity` changes whenever it does."""

    def __init__(self, training: Callable[[], Training], folder: Path, identity: bytes, log: Log = print_now) -> None:
        self._training, self._folder, self._identity, self._log = cache(training), folder, identity + RECIPE, log
        self._codebooks = lru_cache(8)(self._fitted)
        # only two contexts: tables of 4096 × 4096 are large
        self._contexts: Callable[[Any, Design], Context] = lru_cache(2)(self._context)

    def settings(self) -> dict[str, list[Setting]]:
        """Return all settings by method."""
        fixed = [Design(sizes=(size,)) for size in (64, 256, 1024, 4096)]
        one = [Design(sizes=(size,), weight=weight) for size, weight in product((1024, 4096), WEIGHTS)]
        residual = [
            Design(sizes=sizes, weight=weight)
            for sizes, weight in product(((256,) * 2, (256,) * 4, (64,) * 8), WEIGHTS_OF_STAGES)
        ]
        groups = [
            Design(sizes=(256,) * count, product=True, weight=weight)
            for count, weight in product((2, 4, 8), WEIGHTS_OF_STAGES)
        ]
        return {
            "VQ, indices of fixed length": self._of(fixed, (36, 16)),
            "ECVQ, static table": self._of(one, (36, 16)),
            "ECVQ, counts of neighbours": self._of(one, (36,), CountContext),
            "ECVQ, net over neighbours": self._of(one, (36,), NetContext),
            "residual VQ, static table": self._of(residual, (36, 16)),
            "residual VQ, counts of neighbours": self._of(residual, (36,), CountContext),
            "product VQ, static table": self._of(groups, (36, 16)),
            "product VQ, counts of neighbours": self._of(groups, (36,), CountContext),
        }

    def _of(
        self, designs: Sequence[Design], features: Sequence[int], kind: type[CountContext | NetContext] | None = None
    ) -> list[Setting]:
        """Return the settings of one method."""

        def make(design: Design) -> Callable[[int], Reduce]:
            return lambda n: self._codebooks(design).reduce(n, self._contexts(kind, design) if kind else None)

        return [
            Setting(name=f"{design}, {n} features", features=n, make=make(design), identity=self._identity)
            for n, design in product(features, designs)
        ]

    def _path(self, design: Design, suffix: str) -> Path:
        digest = hashlib.sha256(self._identity + repr(design).encode()).hexdigest()[:12]
        return self._folder / f"{digest}{suffix}"

    def _fitted(self, design: Design) -> Codebooks:
        if not (path := self._path(design, ".npz")).exists():
            self._log(f"fits {design}{', components split' if design.product else ''}")
            Codebooks.fit(self._training(), design).save(path)
        return Codebooks.load(path)

    def _context(self, kind: type[CountContext | NetContext], design: Design) -> Context:
        books = self._codebooks(design)
        grids, shares = books.grids(), [-stage.bits for stage in books.stages]
        if kind is CountContext:
            return CountContext.fit(grids, shares)
        return NetContext.fit(grids, shares, self._path(design, "-net.pt"))
