"""Autoregressive flows over grids of any shape, with text before them in one causal stream (STARFlow, arXiv:2506.06276).

Shapes: B rows, L positions of a grid, T slots of text, C channels, W their features, D width, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.flows.autoregressive import Tempered
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import OffsetRMSNorm
from tokenloom.models.parts.visibility import Causal

#: Values from the first place to before the second, given what stands before each.
Fill = Callable[[int, int, Tensor], Tensor]
#: softplus(x + this) is 1 at x = 0.
ONE = 0.541324854612918
#: Frequencies of the axis of text and frames, where there is one.
THIRD = 8


class Grid(NamedTuple):
    """What positions are laid out on; ``frames`` 0: an image."""

    frames: int
    rows: int
    columns: int

    @property
    def length(self) -> int:
        """Number of positions."""
        return max(1, self.frames) * self.frame

    @property
    def frame(self) -> int:
        """Positions of a frame."""
        return self.rows * self.columns


def rotary(grid: Grid, text: int, reach: int, head_width: int, axes: Literal[2, 3], like: Tensor) -> Tensor:
    """(1, 1, T + L, E/2, 2) tables: rows and columns are spread over a square grid of ``reach``; on the third axis stand text, spread
    alike, and frames."""
    side = math.sqrt(grid.frame)
    y, x = (torch.arange(n, device=like.device) / side * reach for n in (grid.rows, grid.columns))
    rows = [c.flatten().repeat(max(1, grid.frames)) for c in torch.meshgrid(y, x, indexing="ij")]
    third = torch.arange(max(1, grid.frames), device=like.device).repeat_interleave(grid.frame).float()
    if text:
        rows = [torch.cat([c.new_zeros(text), c]) for c in rows]
        third = torch.cat([torch.arange(text, device=like.device) / text * reach, third])
    width = head_width // 2 - (THIRD if axes == 3 else 0)
    rate = 1.0 / 10000 ** (torch.arange(0, width, 2, device=like.device).float() / width)
    parts = [c[:, None] * rate for c in rows]
    if axes == 3:
        parts.append(third[:, None] / 10000 ** (torch.arange(THIRD, device=like.device).float() / THIRD))
    angle = torch.cat(parts, 1)
    return torch.stack([angle.cos(), angle.sin()], -1)[None, None]


@dataclass(frozen=True)
class Reversal:
    """How a flow is inverted: guidance ``weight``, ``temperature`` of attention, and with a ``chunk`` so many positions at once, by as many
    fixed-point iterations (0: until they are exact)."""

    weight: float = 0.0
    temperature: float = 1.0
    chunk: int = 0
    iterations: int = 0


class CausalFlow(nn.Module):
    """``z_i = (x_i - b_i) / s_i``, with s and b from the text and the positions before i, in order or from the last to the first."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="flow.causal"):
        """``start``: the first position is predicted from a learned value too, or ``kept`` as it is; ``scale``: s is softplus or the
        exponential; ``clip``: outputs are kept within it by a tangens hyperbolicus (0: they are not); ``last``: a norm before them;
        ``features`` of text slots (0: no text); ``axes`` of positions: three where there is text or are frames."""

        net: Transformer.Config
        start: Literal["learned", "kept"] = "learned"
        scale: Literal["softplus", "exp"] = "softplus"
        clip: float = 0.0
        last: Literal["norm", "raw"] = "norm"
        features: int = 0
        axes: Literal[2, 3] = 3

        def __post_init__(self) -> None:
            width = self.net.attention.head_width or self.net.width // self.net.heads
            if self.clip < 0 or width // 2 - (THIRD if self.axes == 3 else 0) < 2 or width % 4:
                raise ConfigError(
                    f"flow.clip={self.clip}, net.head_width={width}: not negative, and heads as wide as their positions need: a multiple "
                    f"of four of at least {4 + 2 * THIRD * (self.axes == 3)}"
                )

        def build(self, channels: int, flipped: Literal["no", "all", "frames"]) -> CausalFlow:
            """A flow of positions of these channels, from the last to the first, or so in each frame."""
            return self.construct(channels, flipped)

    def __init__(self, config: Config, channels: int, flipped: Literal["no", "all", "frames"]) -> None:
        super().__init__()
        self.config, self.flipped = config, flipped
        self.enter = nn.Linear(channels, config.net.width)
        self.first = nn.Parameter(torch.randn(1, 1, channels)) if config.start == "learned" else None
        self.text = nn.Linear(config.features, config.net.width) if config.features else None
        self.net = cast(Transformer, config.net.build(TokenLayout(grids=((1, 1),), channels=channels)))
        self.norm = OffsetRMSNorm(config.net.width, 1e-6) if config.last == "norm" else nn.Identity()
        self.out = nn.Linear(config.net.width, 2 * channels)
        nn.init.zeros_(self.out.weight)  # the flow starts as the identity
        nn.init.zeros_(self.out.bias)

    def order(self, x_BLC: Tensor, grid: Grid) -> Tensor:
        """Into the flow's order, or back."""
        if self.flipped == "no":
            return x_BLC
        if self.flipped == "frames" and grid.frames:
            return x_BLC.unflatten(1, (grid.frames, -1)).flip(2).flatten(1, 2)
        return x_BLC.flip(1)

    def forward(self, x_BLC: Tensor, grid: Grid, text_BTW: Tensor | None, reach: int) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, L, C), log-determinants of all values in the flow's order (B, L, C), and the text's hidden states (B, T, D)."""
        x = self.order(x_BLC, grid)
        text = self._text(text_BTW, x)
        h = torch.cat([text, self.enter(x if self.first is None else self._after_first(x)[:, :-1])], 1)
        h = self.norm(self.net.turned(h, self._turns(grid, text, reach), Causal(), h))
        s, b = self._affine(h[:, text.shape[1] :])
        if self.first is None:
            s, b = F.pad(s[:, :-1], (0, 0, 1, 0), value=1.0), F.pad(b[:, :-1], (0, 0, 1, 0))
        return self.order((x - b) / s, grid), -s.log(), h[:, : text.shape[1]]

    def inverse(self, z_BLC: Tensor, grid: Grid, text_BTW: Tensor | None, null_BTW: Tensor | None, reach: int, how: Reversal) -> Tensor:
        """x (B, L, C), by caches; with ``null_BTW``, or where there is no text to guide by, guidance as ``how`` says."""
        z, shift = self.order(z_BLC, grid), 0 if self.first is not None else 1
        guided = how.weight > 0 and null_BTW is not None and self.text is not None
        text = self._text(torch.cat([text_BTW, null_BTW]) if guided and text_BTW is not None and null_BTW is not None else text_BTW, z)
        turns, cache = self._turns(grid, text, reach), self._cache(z, text, 1.0 if how.chunk else how.temperature)
        if text.shape[1]:
            self.net.turned(text, turns[:, :, : text.shape[1]], Causal(), text, list(cache))
        x = self._after_first(z.clone())  # beginning with what predicts the first; the noise is the first guess

        def filled(start: int, stop: int, given: Tensor) -> Tensor:
            """Values start … stop - 1 from what is given before each of them, whose keys stay in the cache."""
            at = slice(text.shape[1] + start, text.shape[1] + stop)
            h = self.enter(given.repeat(1 + guided, 1, 1) if guided else given)
            s, b = self._affine(self.norm(self.net.turned(h, turns[:, :, at], Causal(), h, list(cache))))
            if guided:
                (s, s_null), (b, b_null) = s.chunk(2), b.chunk(2)
                s, b = mixed(s, s_null, b, b_null, how.weight)
            return z[:, shift + start : shift + stop] * s + b

        count = grid.length - shift
        if not how.chunk:
            for i in range(count):
                x[:, i + 1 : i + 2] = filled(i, i + 1, x[:, i : i + 1])
        else:
            self._iterate(x, count, grid, how, cache, filled)
        return self.order(x[:, 1 - shift :], grid)

    def _iterate(self, x: Tensor, count: int, grid: Grid, how: Reversal, cache: list[LayerCache], filled: Fill) -> None:
        """Chunk after chunk by fixed-point iteration (section 3.4), four times as long past the first frame, whose chunks begin with the
        frame before; keys are those of the last iteration's inputs."""
        start, text = 0, cache[0].used
        while start < count:
            stop = min(count, start + (how.chunk if start <= grid.frame else 4 * how.chunk))
            for i in range(how.iterations or stop - start + 1):
                for layer in cache:
                    layer.truncate(text + start)
                back = grid.frame if i == 0 and start > grid.frame else 0
                x[:, start + 1 : stop + 1] = filled(start, stop, x[:, start - back : stop - back])
            start = stop

    def _after_first(self, x: Tensor) -> Tensor:
        return x if self.first is None else torch.cat([self.first.expand(len(x), -1, -1).to(x), x], 1)

    def _text(self, text_BTW: Tensor | None, like: Tensor) -> Tensor:
        if self.text is None or text_BTW is None:
            return like.new_zeros(len(like) if text_BTW is None or self.text is None else len(text_BTW), 0, self.config.net.width)
        return self.text(text_BTW)

    def _turns(self, grid: Grid, text: Tensor, reach: int) -> Tensor:
        attention = cast(Attention, self.net.attention[0])
        return rotary(grid, text.shape[1], reach, attention.head_width, self.config.axes, text)

    def _affine(self, h_BnD: Tensor) -> tuple[Tensor, Tensor]:
        """Scales s and shifts b (B, n, C) of the positions after these."""
        out, clip = self.out(h_BnD), self.config.clip
        a, b = (clip * (out / clip).tanh() if clip else out).chunk(2, -1)
        s = F.softplus(a + ONE) if self.config.scale == "softplus" else a.exp()
        return s, b

    def _cache(self, like: Tensor, text: Tensor, temperature: float) -> list[LayerCache]:
        attention = cast(Attention, self.net.attention[0])
        slots = text.shape[1] + like.shape[1]
        layers = [Tempered(len(text), attention.kv_heads, slots, attention.head_width, like) for _ in self.net.attention]
        for layer in layers:
            layer.temperature = temperature
        return list(layers)


def mixed(s: Tensor, s_null: Tensor, b: Tensor, b_null: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Scale and shift of ``p^(1 + w) / p_null^w`` for normal distributions, which is one where the null is no narrower (section 3.5,
    equation 9)."""
    ratio = (s / s_null).clamp_max(1.0).square()
    total = 1 + weight - weight * ratio
    return s / total.sqrt(), ((1 + weight) * b - weight * ratio * b_null) / total
