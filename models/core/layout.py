"""Where every token stands: named axes, their sizes, and the vocabulary of each codebook.

Shapes: L positions, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tokenloom.models.core.config import fields_from

#: Axes along which positions are distinguished; ``index`` counts the tokens of a 1-D sequence that stand nowhere in the signal.
AxisName = Literal["time", "scale", "row", "column", "index"]
#: The axes inside a scale, by the layout's ``axis``: of images, of 1-D tokens, of samples or frames along time (series, audio).
_INNER: dict[str, tuple[AxisName, ...]] = {"grid": ("row", "column"), "sequence": ("index",), "time": ("time",)}


class LayoutError(ValueError):
    """Tokens, tokenizer and generator do not belong together."""


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Where every token stands, and who made it.

    ``grids`` are (rows, columns) per scale, small to large; one grid for a plain image, ``((1, n),)`` for tokens on one axis, which
    ``axis`` names: ``sequence`` for 1-D tokens, ``time`` for those along time.  ``frames`` repeats all grids in time.
    Discrete tokens have a ``vocabulary`` and ``channels == 0``; continuous latents have ``channels`` and ``vocabulary == 0``.
    ``vocabularies`` are the sizes of the codebooks where they differ, ``vocabulary`` being the largest (empty: all alike).
    ``tokenizer`` is the fingerprint of the tokenizer that made the tokens ("" for an unsaved one).
    """

    grids: tuple[tuple[int, int], ...]
    vocabulary: int = 0
    channels: int = 0
    codebooks: int = 1
    frames: int = 1
    axis: str = "grid"
    tokenizer: str = ""
    vocabularies: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.grids or any(h < 1 or w < 1 for h, w in self.grids):
            raise LayoutError(f"grids={self.grids!r}: needs at least one grid of positive size")
        if (self.vocabulary > 0) == (self.channels > 0):
            raise LayoutError(f"vocabulary={self.vocabulary}, channels={self.channels}: exactly one must be positive")
        if self.axis not in _INNER or self.frames < 1:
            raise LayoutError(f"axis={self.axis!r}, frames={self.frames}: the axis is one of {', '.join(_INNER)}, frames at least 1")
        if self.axis != "grid" and any(h != 1 for h, _ in self.grids):
            raise LayoutError(f"axis={self.axis!r}, grids={self.grids!r}: tokens on one axis stand in grids of one row")
        if self.axis == "time" and self.frames > 1:
            raise LayoutError(f"axis={self.axis!r}, frames={self.frames}: tokens along time have one frame, and as many columns as steps")
        if self.vocabularies and (len(self.vocabularies) != self.codebooks or max(self.vocabularies) != self.vocabulary):
            raise LayoutError(
                f"vocabularies={self.vocabularies}: must be one for each of {self.codebooks} codebooks, and "
                f"vocabulary={self.vocabulary} the largest of them"
            )

    @property
    def length(self) -> int:
        """Number of positions L."""
        return self.frames * sum(h * w for h, w in self.grids)

    @property
    def scale_sizes(self) -> tuple[int, ...]:
        """Positions per scale (of one frame)."""
        return tuple(h * w for h, w in self.grids)

    @property
    def discrete(self) -> bool:
        """True for ids, false for latents."""
        return self.vocabulary > 0

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The vocabulary of each codebook; none of latents."""
        return self.vocabularies or (self.vocabulary,) * self.codebooks if self.discrete else ()

    @property
    def id_dtype(self) -> torch.dtype:
        """Narrowest unsigned type that holds an id."""
        return torch.uint8 if self.vocabulary <= 1 << 8 else torch.uint16 if self.vocabulary <= 1 << 16 else torch.uint32

    @property
    def axes(self) -> tuple[AxisName, ...]:
        """The axes along which positions are distinguished, slowest first."""
        frames: tuple[AxisName, ...] = ("time",) if self.frames > 1 else ()
        scales: tuple[AxisName, ...] = ("scale",) if len(self.grids) > 1 else ()
        return frames + scales + _INNER[self.axis]

    @property
    def sizes(self) -> dict[AxisName, int]:
        """How many coordinates each axis has, in the largest scale."""
        rows, columns = max(h for h, _ in self.grids), max(w for _, w in self.grids)
        inner = (rows, columns) if self.axis == "grid" else (columns,)
        found: dict[AxisName, int] = {"time": self.frames, "scale": len(self.grids)}
        found.update(zip(_INNER[self.axis], inner))
        return {name: found[name] for name in self.axes}

    @cached_property
    def positions(self) -> Tensor:
        """(L, 4) int64: frame, scale, row, column of every token, in storage order; tokens on one axis are the columns of one row."""
        rows = [(t, s, r, c) for t in range(self.frames) for s, (h, w) in enumerate(self.grids) for r in range(h) for c in range(w)]
        return torch.tensor(rows, dtype=torch.int64)

    def coordinates(self, axis: AxisName) -> Tensor:
        """(L,) int64: where every token stands on an axis, zeros on one that the layout does not tell apart.

        Rows and columns are those of the grid in which tokens are stored, so that the column of a 1-D sequence is its index;
        ``index`` is the place in storage order.

        Raises:
            LayoutError: no axis has this name.
        """
        if axis == "index":
            return torch.arange(self.length)
        if axis not in get_args(AxisName):
            raise LayoutError(f"axis {axis!r}: must be one of {', '.join(get_args(AxisName))}")
        if axis == "time" and self.axis == "time":
            return self.positions[:, 3]
        return self.positions[:, ("time", "scale", "row", "column").index(axis)]

    def to_dict(self) -> dict[str, Any]:
        """Plain form for records and file metadata; fields that came later are left out while they have their default."""
        return {name: value for name, value in asdict(self).items() if name != "vocabularies" or value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenLayout:
        """Inverse of ``to_dict`` (lists become tuples).

        Raises:
            ConfigError: an unknown or missing field, or a value of the wrong type.
        """
        return cls(**fields_from(cls, data, "layout"))

    def check(self, other: TokenLayout) -> None:
        """Raise ``LayoutError`` naming each field in which ``other`` differs (an empty fingerprint matches any)."""
        mine, theirs = asdict(self), asdict(other)
        wrong = [
            f"{k}: {mine[k]!r} here, {theirs[k]!r} there"
            for k in mine
            if mine[k] != theirs[k] and not (k == "tokenizer" and "" in (mine[k], theirs[k]))
        ]
        if wrong:
            raise LayoutError("tokens do not fit: " + "; ".join(wrong))
