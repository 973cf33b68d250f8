"""Named axes of tokens, rotary tables over them, and the stored form, which is that of the first version."""

from __future__ import annotations

import pytest
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.parts.rope import Rope, rotate

IMAGE = TokenLayout(grids=((2, 3),), vocabulary=8)
SCALES = TokenLayout(grids=((1, 1), (2, 2)), vocabulary=8)
ONE_D = TokenLayout(grids=((1, 4),), vocabulary=8, axis="sequence")
SERIES = TokenLayout(grids=((1, 5),), channels=3, axis="time")
VIDEO = TokenLayout(grids=((1, 2),), vocabulary=8, frames=2)
#: What the first version stored.
STORED = {"grids": [[1, 1], [2, 2]], "vocabulary": 8, "channels": 0, "codebooks": 1, "frames": 1, "axis": "grid", "tokenizer": "f"}


def test_axes_are_named_and_have_sizes() -> None:
    assert IMAGE.sizes == {"row": 2, "column": 3}
    assert SCALES.sizes == {"scale": 2, "row": 2, "column": 2}
    assert ONE_D.sizes == {"index": 4}
    assert SERIES.sizes == {"time": 5}
    assert VIDEO.sizes == {"time": 2, "row": 1, "column": 2}
    assert all(layout.axes == tuple(layout.sizes) for layout in (IMAGE, SCALES, ONE_D, SERIES, VIDEO))


def test_every_token_has_coordinates_on_every_axis() -> None:
    assert IMAGE.coordinates("row").tolist() == [0, 0, 0, 1, 1, 1]
    assert IMAGE.coordinates("column").tolist() == [0, 1, 2] * 2
    assert SCALES.coordinates("scale").tolist() == [0, 1, 1, 1, 1]
    assert SERIES.coordinates("time").tolist() == [*ONE_D.coordinates("index").tolist(), 4]
    assert VIDEO.coordinates("time").tolist() == [0, 0, 1, 1]
    assert IMAGE.coordinates("time").tolist() == [0] * 6
    with pytest.raises(LayoutError, match="'depth'"):
        IMAGE.coordinates("depth")  # type: ignore[arg-type]


def test_the_first_versions_form_is_read_and_still_written() -> None:
    layout = TokenLayout.from_dict(STORED)
    assert layout == TokenLayout(grids=((1, 1), (2, 2)), vocabulary=8, tokenizer="f")
    assert {**layout.to_dict(), "grids": [list(g) for g in layout.grids]} == STORED


def test_codebooks_have_vocabularies_of_their_own() -> None:
    layout = TokenLayout(grids=((2, 2),), vocabulary=8, codebooks=2, vocabularies=(8, 4))
    assert layout.codebook_sizes == (8, 4)
    assert TokenLayout(grids=((2, 2),), vocabulary=8, codebooks=2).codebook_sizes == (8, 8)
    assert SERIES.codebook_sizes == ()
    assert TokenLayout.from_dict({**layout.to_dict(), "vocabularies": [8, 4]}) == layout
    with pytest.raises(LayoutError, match="vocabularies"):
        layout.check(TokenLayout(grids=((2, 2),), vocabulary=8, codebooks=2))
    for wrong in ((8,), (8, 9), (4, 4)):
        with pytest.raises(LayoutError, match="vocabularies"):
            TokenLayout(grids=((2, 2),), vocabulary=8, codebooks=2, vocabularies=wrong)


@pytest.mark.parametrize("fields", [{"axis": "ring"}, {"frames": 0}, {"axis": "time", "frames": 2}, {"axis": "time", "grids": ((2, 2),)}])
def test_impossible_axes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(LayoutError, match="axis="):
        TokenLayout(**{"grids": ((1, 4),), "vocabulary": 8, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "axes"),
    [(IMAGE, ("row", "column")), (SERIES, ("time",)), (ONE_D, ("index",)), (VIDEO, ("time", "row", "column"))],
)
def test_rotary_scores_depend_on_differences_along_each_axis_alone(layout: TokenLayout, axes: tuple[str, ...]) -> None:
    """q and k at two positions: their product is a function of the differences of coordinates (RoFormer, section 3.2)."""
    rope = Rope.Config(axes=axes, base=50.0).build(layout, 12)  # type: ignore[arg-type]
    q, k = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    every = torch.arange(layout.length)[None]
    turned_q, turned_k = (rotate(x.expand(1, 1, layout.length, 12), rope(every))[0, 0] for x in (q, k))
    score_LL = turned_q @ turned_k.T
    at_LA = torch.stack([layout.coordinates(axis) for axis in axes], 1)  # type: ignore[arg-type]
    found: dict[tuple[int, ...], float] = {}
    for i in range(layout.length):
        for j in range(layout.length):
            difference = tuple((at_LA[i] - at_LA[j]).tolist())
            assert found.setdefault(difference, float(score_LL[i, j])) == pytest.approx(float(score_LL[i, j]), abs=1e-5)
    assert len({round(v, 4) for v in found.values()}) == len(found), "every difference has a score of its own"


def test_slots_without_a_position_are_zeroed() -> None:
    rope = Rope.Config().build(IMAGE, 8)
    assert float(rotate(torch.ones(1, 1, 1, 8), rope(torch.tensor([[-1]]))).abs().sum()) == 0


@pytest.mark.parametrize("axes", [(), ("row", "row")])
def test_rotary_axes_are_checked(axes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"rope\.axes"):
        Rope.Config(axes=axes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="head width 6"):
        Rope.Config().build(IMAGE, 6)


def test_the_compiled_and_the_eager_rotation_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = Rope.Config().build(IMAGE, 8)
    x, place = torch.randn(2, 16, 24)[..., 8:16].unflatten(1, (4, 4)), torch.tensor([[-1, 0, 3, 2]])
    eager = rotate(x, rope(place))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, rope(place)), eager)
