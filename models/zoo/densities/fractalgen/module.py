"""Levels inside levels, down to pixels.

Shapes: B images, M patches of all of them, L patches of one, C channels, P numbers of a patch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, Density
from tokenloom.models.core.requests import labels_of
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.orders.sizes import Curve, Steps, TruncatedNormal
from tokenloom.models.zoo.densities.fractalgen.level import Level, LevelSize
from tokenloom.models.zoo.densities.fractalgen.pixel import LEVELS, PixelLevel

#: Into so many parts of equal probability the shares of hidden patches are cut.
QUANTILES = 256
#: Values from logits (M, V) of a channel, those of the null condition (M, V) or None, and the numbers of the M pixels.
Choose = Callable[[Tensor, SampleDraws, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class FractalSampler(configs.Config, tag="sampler.fractal"):
    """Guidance ``weight`` (0: none), growing over the outermost level's patches if ``linear``; logits are multiplied by ``sharpness``.

    Values that the condition gives less than ``threshold`` are not made likelier by guidance (arXiv:2502.17437, appendix B)."""

    weight: float = 0.0
    schedule: Literal["linear", "constant"] = "linear"
    sharpness: float = 1.0
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf or not 0 < self.sharpness < math.inf or not 0 <= self.threshold < 1:
            raise ConfigError(
                f"sampler.weight={self.weight}, sharpness={self.sharpness}, threshold={self.threshold}: weight not negative, sharpness "
                "positive, both finite, threshold in [0, 1)"
            )

    def guided(self, logits: Tensor, null: Tensor | None, weight: float) -> Tensor:
        """Logits under guidance."""
        logits = logits * self.sharpness
        if null is None:
            return logits
        null = null * self.sharpness
        raised = torch.maximum(null, logits - logits.amax(-1, keepdim=True) + null.amax(-1, keepdim=True))
        null = torch.where(logits.softmax(-1) < self.threshold, raised, null)
        return null + (1 + weight) * (logits - null)


class FractalGen(Density):
    """``p(image) = prod over patches of p(patch | earlier ones)``, each patch by the same kind of model (arXiv:2502.17437)."""

    options = {
        "guidance": lambda weight: {"sampler.weight": float(weight)},
        "guidance_schedule": lambda name: {"sampler.schedule": name},
        "temperature": lambda value: {"sampler.sharpness": 1 / max(float(value), 1e-6)},
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.fractalgen"):
        """``levels`` from the whole image to single pixels; ``conditions`` of a patch: its own prediction, or all five around it;
        ``guide``: width, depth and heads of the head that draws a patch's mean pixel first (None: none does); the loss of the first
        channel counts ``first`` times; pixels are standardised by ``mean`` and ``std`` of values in [0, 1], their means where an image
        has another number of channels."""

        levels: tuple[LevelSize, ...]
        conditions: Literal[1, 5] = 5
        guide: tuple[int, int, int] | None = None
        first: float = 1.0
        classes: int = 0
        dropout: float = 0.1
        curve: Curve = TruncatedNormal()
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)
        sampler: FractalSampler = FractalSampler()

        def __post_init__(self) -> None:
            sides = [level.side for level in self.levels]
            if len(sides) < 2 or sides[-1] != 1 or 0 in sides[1:] or any(a and (a % b or a == b) for a, b in pairwise(sides)):
                raise ConfigError(f"levels: sides {sides}: at least two, each dividing the one before, the last 1")
            if any(level.kind == "ar" for level in self.levels[:-1]) and (self.conditions != 1 or self.guide):
                raise ConfigError(f"conditions={self.conditions}, guide={self.guide}: levels of kind ar take one condition and no guide")
            if self.classes < 0 or not 0 <= self.dropout < 1 or not 0 < self.first < math.inf:
                raise ConfigError(f"classes={self.classes}, dropout={self.dropout}, first={self.first}: not negative, in [0, 1), positive")
            if len(self.mean) != len(self.std) or min(self.std, default=0.0) <= 0:
                raise ConfigError(f"mean={self.mean}, std={self.std}: as many of each, deviations positive")

        @property
        def axis_labels(self) -> dict[str, str]:
            kinds = "masked" if any(level.kind == "mar" for level in self.levels[:-1]) else "raster"
            return {"net": "transformers", "order": f"{kinds}, levels", "head": "categorical", "objective": "NLL"}

        def build(self, *, signal: SignalSpec, **given: Any) -> FractalGen:
            """The density of square images of the first level's side.

            Raises:
                ConfigError: other images.
            """
            side = self.levels[0].side or signal.plane[0]
            if signal.plane != (side, side) or side % self.levels[1].side or side == self.levels[1].side:
                sides = [level.side for level in self.levels]
                raise ConfigError(f"levels: sides {sides} do not fit images of {signal.plane[0]}x{signal.plane[1]} pixels")
            first = replace(self.levels[0], side=side)
            return FractalGen(replace(self, levels=(first, *self.levels[1:])), (signal.channels, *signal.shape))

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.shape, channels = config, shape, shape[0]
        width = config.levels[0].width
        self.classes = nn.Embedding(config.classes, width) if config.classes else None
        self.null = nn.Parameter(0.02 * torch.randn(1, width))
        self.levels = nn.ModuleList()
        for index, (size, below) in enumerate(pairwise(config.levels)):
            above = config.levels[max(0, index - 1)].width
            guide = None
            if index and config.guide:
                inner = LevelSize(side=1, width=config.guide[0], depth=config.guide[1], heads=config.guide[2])
                guide = PixelLevel(inner.masked(), above, channels)
            self.levels.append(Level(size, below.side, channels, above, config.conditions, guide))
        self.pixels = PixelLevel(config.levels[-1].masked(), config.levels[-2].width, channels)
        fits = len(config.mean) == channels
        for name, values in (("mean_C", config.mean), ("std_C", config.std)):
            each = torch.tensor(values if fits else [sum(values) / len(values)] * channels)
            self.register_buffer(name, each, persistent=False)

    @property
    def likelihood(self) -> Literal["exact", "bound"]:  # type: ignore[override]
        """Exact patch after patch; with masked levels or a guiding pixel a bound, of one order and of the true mean pixels."""
        return "bound" if self.config.guide or any(size.kind == "mar" for size in self.config.levels[:-1]) else "exact"

    def values(self, x: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """Values 0 … 255 of standardised pixels (…, C), with ``noise`` added before they are rounded."""
        return ((x * self.std_C + self.mean_C) * (LEVELS - 1) + noise).round().clamp(0, LEVELS - 1).long()

    def standard(self, value: Tensor) -> Tensor:
        """Standardised pixels (…, C) of values."""
        return (value / (LEVELS - 1) - self.mean_C) / self.std_C

    @property
    def conditional(self) -> bool:
        """Whether it has classes."""
        return self.classes is not None

    def roots(self, label_B: Tensor | None, rows: int) -> list[Tensor]:
        """The conditions of the outermost level; labels below zero, or none, are the null class."""
        null = self.null.expand(rows, -1)
        if label_B is None or self.classes is None:
            return [null] * 5
        found = torch.where((label_B < 0)[:, None], null, self.classes(label_B.clamp_min(0)))
        return [found] * 5

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: mean cross-entropy of a channel over the pixels that masked levels hide, the first channel's counting more, plus
        that of the guiding pixels."""
        x = self._standardised(self.signal_of(batch))
        label = labels_of(batch.conditions)
        if label is not None:
            label = torch.where(draws.uniform() < self.config.dropout, -1, label)
        masks = [self.hidden_of(draws, cast(Level, level), i) for i, level in enumerate(self.levels)]
        return {"loss": self.trained(x, self.roots(label, len(x)), masks)}

    def hidden_of(self, draws: Draws, level: Level, index: int) -> Callable[[Tensor], Tensor] | None:
        """A rule for the hidden patches (M, L) of the images of a masked level, each with a share of its own; images are known by their
        places (M,) among all that could reach the level."""
        if level.kind == "ar":
            return None
        every = math.prod(cast(Level, above).length for above in list(self.levels)[:index])
        shares = [max(1, math.ceil(self.config.curve.masked((i + 0.5) / QUANTILES) * level.length)) for i in range(QUANTILES)]

        def hidden(which_M: Tensor) -> Tensor:
            inner = draws.fork(f"mask{index}")
            quantile_M = (inner.uniform(every).flatten()[which_M] * QUANTILES).long()
            order_ML = inner.uniform(every, level.length).flatten(0, 1)[which_M].argsort(1)
            return order_ML < torch.tensor(shares, device=which_M.device)[quantile_M][:, None]

        return hidden

    def trained(
        self,
        x_BCHW: Tensor,
        conds: list[Tensor],
        hidden: list[Callable[[Tensor], Tensor] | None],
        noise: Callable[[int], Tensor] = lambda rows: torch.zeros(()),
    ) -> Tensor:
        """The loss of standardised images, with a rule for the hidden patches of each masked level; ``noise`` (rows, C) decides between
        two values of a mean pixel that are equally near."""
        guiding, which = x_BCHW.new_zeros(()), torch.arange(len(x_BCHW), device=x_BCHW.device)
        for level, rule in zip(cast(list[Level], list(self.levels)), hidden):
            patches, mask = level.patches(x_BCHW), None if rule is None else rule(which)
            pixel = x_BCHW.mean((2, 3)) if level.guide is not None else None
            if level.guide is not None and pixel is not None:
                guiding = guiding + self.weighed(level.guide.nll(self.values(pixel, noise(len(pixel))), conds[0]))
            around = level.around(level.predict(patches, None if mask is None else ~mask, conds, pixel))
            keep = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device) if mask is None else mask
            which = (which[:, None] * level.length + torch.arange(level.length, device=which.device))[keep]
            conds, x_BCHW = [c[keep] for c in around], patches[keep].unflatten(1, (-1, level.patch, level.patch))
        return guiding + self.weighed(self.pixels.nll(self.values(x_BCHW.flatten(1)), conds[0]))

    def weighed(self, nll_MC: Tensor) -> Tensor:
        """The mean over pixels and channels, the first channel counting ``first`` times."""
        weight = torch.ones(nll_MC.shape[1], device=nll_MC.device)
        weight[0] = self.config.first
        return (nll_MC.mean(0) * weight).sum() / weight.sum()

    def log_prob(self, batch: Batch, draws: Draws) -> Tensor:
        """(B,) nats, patches of masked levels in one random order and the configured number of steps."""
        x = self._standardised(self.signal_of(batch))
        rows = len(x)
        conds, total = self.roots(labels_of(batch.conditions), rows), x.new_zeros(rows)
        for index, level in enumerate(cast(list[Level], list(self.levels))):
            pixel = x.mean((2, 3)) if level.guide is not None else None
            if level.guide is not None and pixel is not None:
                total = total - level.guide.nll(self.values(pixel), conds[0]).sum(1).view(rows, -1).sum(1)
            patches = level.patches(x)
            order = draws.fork(f"order{index}").uniform(len(x) // rows, level.length).flatten(0, 1).argsort(1)
            if level.kind == "ar":
                around = level.around(level.predict(patches, None, conds, pixel))
            else:
                around = self._stepwise(level, patches, conds, pixel, order)
            conds = [c.flatten(0, 1) for c in around]
            x = patches.flatten(0, 1).unflatten(1, (-1, level.patch, level.patch))
        return total - self.pixels.nll(self.values(x.flatten(1)), conds[0]).sum(1).view(rows, -1).sum(1)

    def _stepwise(self, level: Level, patches: Tensor, conds: list[Tensor], pixel: Tensor | None, order: Tensor) -> list[Tensor]:
        """The conditions of all patches, each as it is when its patch is decoded."""
        known = torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
        found: list[Tensor] | None = None
        for members in order.split(list(Steps(count=level.size.steps).cut(level.length)), dim=1):
            around = level.around(level.predict(patches, known, conds, pixel))
            found = [torch.zeros_like(c) for c in around] if found is None else found
            index = members[..., None].expand(-1, -1, around[0].shape[-1])
            found = [f.scatter(1, index, c.gather(1, index)) for f, c in zip(found, around)]
            known = known.scatter(1, members, True)
        assert found is not None
        return found

    @torch.no_grad()
    def sample(self, conditions: Conditions | None, draws: SampleDraws) -> Tensor:
        """One image (B, C, H, W) in [-1, 1] for each of the draws' samples."""
        value = self.drawn(labels_of(conditions), draws, multinomial)
        return value / ((LEVELS - 1) / 2) - 1

    def drawn(self, label_B: Tensor | None, draws: SampleDraws, choose: Choose) -> Tensor:
        """Values (B, C, H, W) 0 … 255, each chosen from its logits."""
        own, rows = self.config.sampler, draws.rows
        conds = self.roots(label_B, rows)
        guided = own.weight > 0 and label_B is not None and self.classes is not None
        null = self.roots(None, rows) if guided else None
        x = self._level(0, conds, null, own.weight if guided else 0.0, draws, choose)
        return self.values(x.movedim(1, -1)).movedim(-1, 1)

    def _level(
        self, index: int, conds: list[Tensor], null: list[Tensor] | None, weight: float, draws: SampleDraws, choose: Choose
    ) -> Tensor:
        """Standardised images (M, C, side, side) of a level, given conditions (M, D) and those without a class."""
        rows = len(conds[0])
        if index == len(self.levels):
            return self.standard(self._pixel(self.pixels, conds, null, weight, draws, choose))[:, :, None, None]
        level, own = cast(Level, self.levels[index]), self.config.sampler
        pixel = None
        if level.guide is not None:
            pixel = self.standard(self._pixel(level.guide, conds, null, weight, draws.fork("guide"), choose))
        both = conds if null is None else [torch.cat(pair) for pair in zip(conds, null)]
        pixels = pixel if null is None or pixel is None else pixel.repeat(2, 1)
        x = torch.zeros(rows, level.length, level.embed.in_features, device=conds[0].device)
        known = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        if level.kind == "ar":
            members = list(torch.arange(level.length, device=x.device).expand(rows, -1).split(1, 1))
        else:  # from the back of the order; those of a step in raster order
            order = draws.uniform("order", 0, level.length).argsort(1).flip(1)
            members = [part.sort(1).values for part in order.split(list(Steps(count=level.size.steps).cut(level.length)), 1)]
        cache, feed, used, done = level.cache(len(both[0]), x), level.first(both, pixels), 0, 0
        for step, place in enumerate(members):
            count, twice = place.shape[1], place if null is None else place.repeat(2, 1)
            if level.kind == "ar":
                h = level.read(torch.cat(feed, 1), cache, used)[:, -1:]
                used += sum(part.shape[1] for part in feed)
                around = [h]
            else:
                data, seen = (x, known) if null is None else (x.repeat(2, 1, 1), known.repeat(2, 1))
                around = level.around(level.predict(data, seen, both, pixels))
                around = [c.gather(1, twice[..., None].expand(-1, -1, c.shape[-1])) for c in around]
            flat = [c.flatten(0, 1) for c in around]
            done += count
            # Of the outermost level: the share that is decided after the step, as if one patch were always left to masked ones.
            share = (
                1.0 if index or own.schedule == "constant" else (done if level.kind == "ar" else min(done, level.length - 1)) / level.length
            )
            inner = draws.children(f"{step}", count)
            below = [c[: rows * count] for c in flat], None if null is None else [c[rows * count :] for c in flat]
            image = self._level(index + 1, *below, weight * share, inner, choose)
            patch = image.flatten(1).view(rows, count, -1)
            x = x.scatter(1, place[..., None].expand_as(patch), patch)
            known = known.scatter(1, place, True)
            feed = [level.embed(patch if null is None else patch.repeat(2, 1, 1))]
        return level.image(x)

    def _pixel(
        self, head: PixelLevel, conds: list[Tensor], null: list[Tensor] | None, weight: float, draws: SampleDraws, choose: Choose
    ) -> Tensor:
        def chosen(channel: int, logits: Tensor, without: Tensor | None) -> Tensor:
            return choose(self.config.sampler.guided(logits, without, weight), draws, channel)

        return head.sample(conds[0], None if null is None else null[0], chosen)

    def _standardised(self, signal: Tensor) -> Tensor:
        value = ((signal + 1) * ((LEVELS - 1) / 2)).round()
        return self.standard(value.movedim(1, -1)).movedim(-1, 1)


def multinomial(logits_MV: Tensor, draws: SampleDraws, channel: int) -> Tensor:
    """(M,) a value by the softmax of its logits."""
    u_M1 = draws.uniform("value", channel, 1).to(logits_MV.device)
    return (logits_MV.softmax(-1).cumsum(-1) < u_M1).sum(-1).clamp_max(logits_MV.shape[-1] - 1)
