"""Key/value caches, allocated once for the whole sample and passed as values, and the attention over them.

Shapes: B rows, H heads, S new slots, T slots so far (or all that there is room for), E head width, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.parts.visibility import Visibility


def attend(q_BHSE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, visibility: Visibility, factor: float) -> Tensor:
    """Attention of queries over keys and values with as many or fewer heads, heads side by side: (B, S, H E)."""
    queries, keys = q_BHSE.shape[2], k_BHTE.shape[2]
    kernel = visibility.kernel(queries, keys)
    out = F.scaled_dot_product_attention(
        q_BHSE,
        k_BHTE,
        v_BHTE,
        attn_mask=visibility.mask(queries, keys, q_BHSE.device) if kernel == "mask" else None,
        is_causal=kernel == "causal",
        scale=factor,
        enable_gqa=q_BHSE.shape[1] != k_BHTE.shape[1],
    )
    return out.transpose(1, 2).flatten(2)


class LayerCache:
    """Keys and values of one attention layer; ``append`` writes in place and returns what is filled.

    It is also how a layer decodes: a way of decoding that compresses what is kept, or leaves parts of a layer out, gives the net caches
    that ``attend``, are ``transformed`` or ``rest`` in another way.

    After ``fix`` shapes no longer depend on how much is filled: each row writes at its own slot and the whole buffers are returned,
    of which the mask hides what is not filled.
    """

    #: Whether the whole layer is left out for the slots at hand.
    rests: bool = False

    def __init__(self, rows: int, heads: int, slots: int, width: int, like: Tensor) -> None:
        self.key_BHTE = torch.empty((rows, heads, slots, width), device=like.device, dtype=like.dtype)
        self.value_BHTE = torch.empty_like(self.key_BHTE)
        self.used = 0
        self.at_B: Tensor | None = None

    def fix(self, at_B: Tensor) -> None:
        """From now on new slots are written at ``at_B`` (B or 1,), which is shared by all layers and moved by its owner."""
        self.at_B = at_B
        # A masked value still enters the sum with weight zero, so that it must be finite.
        self.key_BHTE[:, :, self.used :] = 0
        self.value_BHTE[:, :, self.used :] = 0

    def append(self, key_BHSE: Tensor, value_BHSE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots so far, (B, H, T, E) each."""
        if self.at_B is not None:
            slot_BS = self.at_B[:, None] + torch.arange(key_BHSE.shape[2], device=self.at_B.device)
            index = slot_BS[:, None, :, None].expand_as(key_BHSE)
            self.key_BHTE.scatter_(2, index, key_BHSE)
            self.value_BHTE.scatter_(2, index, value_BHSE)
            return self.key_BHTE, self.value_BHTE
        stop = self.used + key_BHSE.shape[2]
        if stop > self.key_BHTE.shape[2]:
            raise IndexError(f"cache of {self.key_BHTE.shape[2]} slots cannot take slot {stop}")
        self.key_BHTE[:, :, self.used : stop] = key_BHSE
        self.value_BHTE[:, :, self.used : stop] = value_BHSE
        self.used = stop
        return self.key_BHTE[:, :, :stop], self.value_BHTE[:, :, :stop]

    def attend(self, q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, visibility: Visibility, factor: float) -> Tensor:
        """New slots are kept, and their queries attend to all that are: (B, S, D)."""
        return attend(q_BHSE, *self.append(k_BHSE, v_BHSE), visibility, factor)

    def transformed(self, x_BSD: Tensor, mlp: Callable[[Tensor], Tensor]) -> Tensor:
        """The MLP branch of the layer, joined: (B, S, D)."""
        return mlp(x_BSD)

    def truncate(self, slots: int) -> None:
        """Forget all but the first slots."""
        self.used = min(self.used, slots)


class MemoryCache:
    """Keys and values of a memory that stands still, such as a text that every decoding step looks at."""

    def __init__(self) -> None:
        self.made: tuple[Tensor, Tensor] | None = None

    def once(self, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What the first call made."""
        if self.made is None:
            self.made = make()
        return self.made


class CrossLayerCache(LayerCache):
    """Of a layer that also looks at a memory: one generation, one memory."""

    def __init__(self, rows: int, heads: int, slots: int, width: int, like: Tensor) -> None:
        super().__init__(rows, heads, slots, width, like)
        self.memory = MemoryCache()
