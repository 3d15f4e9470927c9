"""The experiment finds what a global view tells about crops, and nothing where it tells nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tofc.codec.codec import Codec
from tofc.codec.fake import fake_features
from tofc.codec.index.fake import fake_index_weights
from tofc_lab.nano.across_views import CropFeatures, crop_features, mixture
from tofc_lab.nano.features import CachedPicture


@pytest.mark.parametrize("tells", [True, False])
def test_a_mixture_gains_where_the_global_view_tells_the_index(tells: bool) -> None:
    rng = np.random.default_rng(0)
    index = rng.integers(0, 8, 4000)
    seen = index if tells else rng.integers(0, 8, 4000)
    found = CropFeatures(index=index, seen=seen, bits=np.full(4000, 3.0), picture=np.arange(4000) // 20)
    measured = mixture(found, 8, 160)
    assert measured["pictures"] == 40 and measured["bytes_now"] == 7.5
    gained = measured["bytes_now"] - measured["bytes_with_the_global_view"]
    assert gained > 4 if tells else abs(gained) < 0.2


def test_crops_see_the_global_view_at_their_place() -> None:
    codec = Codec(fake_index_weights(seed=3))
    views = [fake_features(codec.weights, cells, seed) for seed, cells in enumerate((16, 16, 36))]
    picture = CachedPicture(features=np.concatenate(views).astype(np.float16), sides=(4, 4, 6), rows=1, columns=2)
    found = crop_features(codec, [picture], 0, lambda items, total: items)
    whole = codec.explain(picture.views()[2], 36, 0).indices
    assert whole is not None and len(found.index) == 32
    for place, cell in ((0, 0), (3, 2), (15, 32), (16, 3), (31, 35)):
        assert found.seen[place] == whole[cell, 0]
