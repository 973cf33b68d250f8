"""Embeddings of tokens: ids by tables, latents by a linear map; the layout says which.

Shapes: B rows, n tokens, Q codebooks, C channels, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenloom.models.core.layout import LayoutError, TokenLayout


class Ids(nn.Module):
    """Embeddings of ids: one table, or one a codebook whose vectors are added.

    ``spare`` rows come after a codebook's vocabulary: the first is [MASK] where a feed masks, others stand in official tables.
    """

    mask: Tensor

    def __init__(self, layout: TokenLayout, width: int, spare: int = 0, std: float = 0.02) -> None:
        super().__init__()
        sizes = layout.codebook_sizes
        # One number of [MASK] a codebook; of one codebook a number alone.
        self.register_buffer("mask", torch.tensor(sizes if len(sizes) > 1 else sizes[0]), persistent=False)
        self.books = nn.ModuleList([nn.Embedding(size + spare, width) for size in sizes])
        for book in self.books:
            nn.init.trunc_normal_(book.weight, std=std)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        """(B, n) or (B, n, Q) ids to (B, n, D)."""
        if ids.ndim == 2:
            return self.books[0](ids)
        return torch.stack([book(part) for book, part in zip(self.books, ids.unbind(-1))]).sum(0)

    def inputs(self, ids: Tensor, known_Bn: Tensor) -> Tensor:
        """Ids with that of [MASK] where they are not known."""
        known = known_Bn.view(*known_Bn.shape, *[1] * (ids.ndim - 2))
        return torch.where(known, ids, self.mask)

    def masked(self, ids: Tensor, known_Bn: Tensor) -> Tensor:
        """The embeddings of these."""
        return self(self.inputs(ids, known_Bn))


class Values(nn.Module):
    """Embeddings of latents: a linear map; ``spare`` vectors beside it, of which the first is [MASK] where a feed masks (MAR)."""

    def __init__(self, layout: TokenLayout, width: int, spare: int = 0, std: float = 0.02) -> None:
        super().__init__()
        self.map = nn.Linear(layout.channels, width)
        nn.init.xavier_uniform_(self.map.weight)
        nn.init.zeros_(self.map.bias)
        self.spare: nn.Parameter | None = None
        if spare:
            self.spare = nn.Parameter(torch.empty(spare, width))
            nn.init.trunc_normal_(self.spare, std=std)

    def forward(self, value_BnC: Tensor) -> Tensor:
        """(B, n, C) latents to (B, n, D)."""
        return self.map(value_BnC.to(self.map.weight.dtype))

    def masked(self, value_BnC: Tensor, known_Bn: Tensor) -> Tensor:
        """The same with [MASK] where tokens are not known."""
        assert self.spare is not None
        return torch.where(known_Bn.unsqueeze(-1), self(value_BnC), self.spare[0])


def embedding(layout: TokenLayout, width: int, spare: int = 0, std: float = 0.02) -> Ids | Values:
    """The embedding of the tokens of a layout."""
    return (Ids if layout.discrete else Values)(layout, width, spare, std)


def table_of(feed: nn.Module, rows: int) -> Ids:
    """The feed's embeddings, for heads that share them; ``rows`` of a codebook are needed.

    Raises:
        LayoutError: the feed has none, or fewer rows.
    """
    table = getattr(feed, "table", None)
    if not isinstance(table, Ids) or len(table.books[0].weight) < rows:  # type: ignore[arg-type]
        raise LayoutError(f"this head shares the feed's embeddings of tokens, {rows} rows a codebook; the feed has fewer or none")
    return table
