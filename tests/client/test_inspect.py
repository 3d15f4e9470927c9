from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from device_client.encoder import TowerEncoder
from device_client.inspect import draw, stage_line
from device_client.inspect_panel import by_bits, by_index, class_colour, pieces
from tofc.codec import CodecWeights
from tofc.codec.codec import Codec, Explanation
from tofc.codec.entropy_model import Symbols
from tofc.codec.fake import fake_features, fake_weights
from tofc.codec.index.fake import fake_index_weights
from tofc.codec.selective_hyperprior.fake import fake_selective_hyperprior
from tofc.model.views import View, ViewRule, views

RULE = ViewRule(global_size=336, crop_size=224, max_side=3024)


def explained(size: tuple[int, int], n: int, weights: CodecWeights | None = None) -> list[tuple[View, Explanation]]:
    codec = Codec(weights or fake_weights(seed=3))
    found = []
    for number, view in enumerate(views(Image.new("RGB", size, "orange"), RULE)):
        cells = 36 if view.kind == "global" else 16
        found.append((view, codec.explain(fake_features(codec.weights, cells, seed=number), min(n, cells))))
    return found


@pytest.mark.parametrize(("size", "rows", "columns"), [((300, 300), 0, 0), ((672, 448), 2, 3), ((224 * 9, 224), 1, 9)])
def test_map_is_a_readable_png(tmp_path: Path, size: tuple[int, int], rows: int, columns: int) -> None:
    map_of = draw("a picture.jpg", explained(size, 12), rows, columns, 20, (14_250, "quality 75, 336×336"))
    map_of.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as read:
        read.load()
        assert read.format == "PNG" and read.width >= 624 and read.height >= 624
        assert len(read.getcolors(1 << 24) or ()) > 20


def test_a_view_is_coded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TowerEncoder.open(Path(__file__).resolve().parents[2] / "models/nano")
    encoder.load()
    coded: list[Symbols] = []
    choose = Codec.symbols

    def spy(*arguments: Any) -> Symbols:
        coded.append(choose(*arguments))
        return coded[-1]

    monkeypatch.setattr(Codec, "symbols", spy)
    maps = [one for _, one in encoder.explain(Image.linear_gradient("L").resize((448, 448)).convert("RGB"))]
    assert len(maps) > 1 and [one.coded.symbols for one in maps] == coded


def test_borders_run_between_clusters_only() -> None:
    one, all_of_them = explained((300, 300), 1), explained((300, 300), 36)
    few, many = (np.asarray(draw("x", maps, 0, 0, 20)).astype(int) for maps in (one, all_of_them))
    assert few.shape == many.shape
    white = [int((sheet.min(axis=2) == 255).sum()) for sheet in (few, many)]
    assert white[0] < white[1] / 10


def test_the_expert_of_a_cluster_is_drawn_where_a_codec_has_experts() -> None:
    maps = explained((300, 300), 12, fake_selective_hyperprior(seed=3))
    (view, one), *_ = maps
    assert one.experts is not None
    other = replace(one, experts=one.experts + 1)
    found = [np.asarray(draw("x", [(view, each)], 0, 0, 20)) for each in (one, other, replace(one, experts=None))]
    assert (found[0] != found[1]).any() and (found[0] != found[2]).any()


def test_a_codec_of_indices_gets_a_second_block_in_which_colours_are_indices() -> None:
    maps = explained((672, 448), 12, fake_index_weights(seed=3))
    sheet = draw("x", maps, 2, 3, 20)
    assert sheet.height > draw("x", explained((672, 448), 12), 2, 3, 20).height + 624
    (view, one), *_ = maps
    assert one.indices is not None
    other = replace(one, indices=np.zeros_like(one.indices))
    found = [np.asarray(draw("x", [(view, each), *maps[1:]], 2, 3, 20)) for each in (one, other)]
    changed = np.flatnonzero((found[0] != found[1]).any(axis=(1, 2)))
    assert len(changed) and changed.min() > 92 + 624, "the bits are the same, only the block of indices differs"


def test_equal_indices_have_equal_colours_in_all_views() -> None:
    maps = [one for _, one in explained((672, 448), 12, fake_index_weights(seed=3))]
    indices = sorted({index for one in maps for index in one.indices[:, 0].tolist()})
    colours = {index: class_colour(rank) for rank, index in enumerate(indices)}
    for one in maps:
        regions = by_index(one, colours)
        shown = regions.colours[regions.owner].reshape(-1, 3)
        wanted = [colours[index] for index in one.indices[one.merged.assignment, 0].tolist()]
        assert shown.tolist() == [list(colour) for colour in wanted]
        assert {*regions.labels} == {str(index) for index in one.indices[:, 0].tolist()}


def test_the_bits_of_an_index_and_its_residuals_are_told() -> None:
    maps = explained((300, 300), 12, fake_index_weights(seed=3))
    (_, one), *_ = maps
    first, second = one.stage_bits.mean(axis=0)
    assert stage_line(maps) == f"a feature's index takes {first:.1f} bits, its residuals {second:.1f}, on average"
    each = one.stage_bits[0]
    assert by_bits(one, (0, 99)).labels[0] == f"{each.sum():.0f}\n{each[0]:.0f}+{each[1]:.0f}"
    alone = explained((300, 300), 12, fake_index_weights(seed=3, K=(48,)))
    assert "residual" not in stage_line(alone) and "\n" not in by_bits(alone[0][1], (0, 99)).labels[0]


def test_a_long_name_is_shortened() -> None:
    short = draw("x" * 500, explained((300, 300), 4), 0, 0, 20)
    assert short.width == draw("x", explained((300, 300), 4), 0, 0, 20).width


def test_every_piece_of_a_cluster_is_found() -> None:
    owner = np.array([[0, 1, 0], [1, 1, 0], [0, 2, 2]])
    assert pieces(owner) == [
        (0, [(0, 0)]),
        (1, [(0, 1), (1, 0), (1, 1)]),
        (0, [(0, 2), (1, 2)]),
        (0, [(2, 0)]),
        (2, [(2, 1), (2, 2)]),
    ]
