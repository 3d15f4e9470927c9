"""How long a codec is trained, and how many codewords it gets, by the amount of data.

Promises that the amount is read from the pictures' headers, so that what is chosen can be said before the tower is
loaded. The rules are from nano, whose full training sees each view as often (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tofc.model.config import SplitConfig
from tofc_lab.codec.index.train import IndexRecipe
from tofc_lab.distillation import pictures

VECTORS = 20  # features for each codeword: the mean of fewer is that of these pictures, not of the next ones
RESIDUALS = 16  # codewords of the first codebook for each one of a residual's: few features need a second codeword
PASSES = 64  # times that the context model sees each feature, at most: eight at each of eight qualities
LEAST_STEPS = 100  # of the context model, whose learning rate grows over the first 100
DECODER_PASSES = 32  # times that a picture is seen through the decoder, each time with other questions
QUICK_STEPS = 1000  # of the context model: about a minute on one core


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Pictures to train on, and the features of all their views."""

    pictures: int
    features: int

    @classmethod
    def of(cls, paths: Iterable[Path], config: SplitConfig) -> Self:
        """Count the features of picture files by their headers; files that are not pictures have none."""
        counts = [pictures.feature_count(path, config) for path in paths]
        return cls(pictures=sum(count > 0 for count in counts), features=sum(counts))

    def codewords(self) -> tuple[int, ...]:
        """Return the sizes of an index codec's three codebooks."""
        first = min(max(self.features // VECTORS, 16), IndexRecipe().codewords[0])
        return (first, *(2 * [max(first // RESIDUALS, 4)]))

    def entropy_steps(self, batch: int, most: int) -> int:
        """Return the steps of a context model in batches of this number of features."""
        return min(max(PASSES * self.features // batch, LEAST_STEPS), most)

    def decoder_steps(self, batch: int, most: int) -> int:
        """Return the steps through the decoder in batches of this number of pictures."""
        return min(max(DECODER_PASSES * self.pictures // batch, LEAST_STEPS), most)

    def index_recipe(self, recipe: IndexRecipe, follow: Collection[str], *, quick: bool = False) -> IndexRecipe:
        """Return the recipe with those of `codewords` and `steps` that are named by `follow` chosen for this amount."""
        if "codewords" in follow:
            recipe = with_codewords(recipe, self.codewords())
        if "steps" in follow:
            most = min(recipe.steps, QUICK_STEPS) if quick else recipe.steps
            recipe = replace(recipe, steps=self.entropy_steps(recipe.batch, most))
        return recipe

    def __str__(self) -> str:
        return f"{self.pictures} pictures to train on, {self.features} features"


def with_codewords(recipe: IndexRecipe, sizes: tuple[int, ...]) -> IndexRecipe:
    """Return the recipe with codebooks of these sizes, those of residuals fitted at the residuals' price."""
    first, *_, residual = recipe.weights
    return replace(recipe, codewords=sizes, weights=(first, *(len(sizes) - 1) * [residual]))


def described(recipe: IndexRecipe) -> str:
    """Return what will be trained, in words."""
    sizes = ", ".join(map(str, recipe.codewords))
    return f"up to {sizes} codewords, {recipe.components} components, {recipe.steps} steps of the context model"
