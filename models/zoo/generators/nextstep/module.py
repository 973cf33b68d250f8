"""One causal stream of text tokens, which a softmax predicts, and continuous image tokens, which a flow draws.

Shapes: B rows, P slots of text, N image tokens, S = P + N - 1 slots, C channels of a token, D width, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Condition, Conditions, LayoutError, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.flows.matching import FlowSampler
from tokenloom.models.parts.heads.flow import FlowMatching
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.time import sinusoidal_grid
from tokenloom.models.parts.visibility import Causal, Mask, Visibility
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.zoo.generators.nextstep.words import Words


class NextStep(protocols.Generator):
    """``p(text) prod_i p(token i | text, tokens before it)`` by one decoder with two heads (arXiv:2508.10711).

    Another condition than ``Words`` stands as its prefix slots in the place of the text, which then is not predicted."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.nextstep"):
        """``patch``: latents of a token, on a side; ``base`` of the rotary angles; ``weights`` of the losses of text and image; ``places``:
        side of the table of places that hidden states of image tokens are given (0: none); tokens are drawn and fed back as they are or
        ``normalised`` each by itself."""

        net: Transformer.Config
        head: FlowMatching.Config
        patch: int = 1
        base: float = 10000.0
        weights: tuple[float, float] = (0.01, 1.0)
        places: int = 32
        tokens: Literal["drawn", "normalised"] = "drawn"
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler(head=FlowSampler())

        def __post_init__(self) -> None:
            if self.patch < 1 or len(self.weights) != 2 or min(self.weights) < 0:
                raise ConfigError(f"patch={self.patch}, weights={self.weights}: a patch of at least one, two weights that are not negative")

            if (self.net.attention.head_width or self.net.width // self.net.heads) % 2:
                raise ConfigError(f"net.width={self.net.width}, heads={self.net.heads}: heads must be of an even width")

        @property
        def axis_labels(self) -> dict[str, str]:
            own = {"order": "text, then raster", "feed": "words and latents", "objective": "NLL of text, flow matching"}
            return super().axis_labels | own

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> NextStep:
            """The generator for these tokens.

            Raises:
                LayoutError: no latents of one grid, or a patch or a table of places that does not fit it.
            """
            if layout.discrete or len(layout.grids) != 1 or layout.frames > 1:
                raise LayoutError(f"grids={layout.grids}: this generator models continuous tokens of one grid; use a tokenizer such as kl")
            count = layout.length // self.patch**2
            if any(side % self.patch for side in layout.grids[0]) or (self.places and count > self.places**2):
                raise LayoutError(f"patch={self.patch}, places={self.places}: do not fit a grid of {layout.grids[0]}")
            return NextStep(self, layout, classes)

    place: Tensor

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout, self.sampler, width = config, layout, config.sampler, config.net.width
        self.grid = layout.grids[0][0] // config.patch, layout.grids[0][1] // config.patch
        self.count, self.channels = self.grid[0] * self.grid[1], layout.channels * config.patch**2
        self.condition = config.condition.build(classes, width)
        if not self.condition.prefix:
            raise ConfigError(f"condition={config.condition.label}: it has no slots to stand before the image")
        self.net = cast(Transformer, config.net.build(layout))
        self.embed, self.between = nn.Linear(self.channels, width), nn.Linear(width, width)
        words = config.condition.vocabulary if isinstance(config.condition, Words.Config) else 0
        self.words = nn.Linear(width, words, bias=False) if words else None
        for module in (self.embed, self.between, self.words):
            if module is not None:
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.embed.bias)
        nn.init.zeros_(self.between.bias)
        self.head = cast(FlowMatching, config.head.build(TokenLayout(grids=(self.grid,), channels=self.channels), width, cast(Any, None)))
        self.register_buffer("place", sinusoidal_grid((config.places, config.places), width) if config.places else torch.zeros(0, width))

    def patches(self, token_BLC: Tensor) -> Tensor:
        """(B, N, C) tokens of latents, channels before the places of a patch."""
        image = token_BLC.transpose(1, 2).unflatten(2, self.layout.grids[0])
        x = F.pixel_unshuffle(image, self.config.patch).flatten(2).transpose(1, 2)
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) if self.config.tokens == "normalised" else x

    def latents(self, x_BNC: Tensor) -> Tensor:
        """Inverse of ``patches``."""
        return F.pixel_shuffle(x_BNC.transpose(1, 2).unflatten(2, self.grid), self.config.patch).flatten(2).transpose(1, 2)

    def states(self, x_BSD: Tensor, visibility: Visibility, cache: list[LayerCache] | None = None) -> Tensor:
        """Hidden states (B, S, D) of embedded slots that follow those in the cache."""
        start, head_width = cache[0].used if cache else 0, self.net.config.attention.head_width or self.net.width // self.net.config.heads
        rate = 1.0 / self.config.base ** (torch.arange(0, head_width, 2, device=x_BSD.device).float() / head_width)
        angle = torch.arange(start, start + x_BSD.shape[1], device=x_BSD.device)[:, None] * rate
        table, none = torch.stack([angle.cos(), angle.sin()], -1)[None, None], x_BSD.new_zeros((1, 1, 1))
        return self.net.norm.last(self.net.turned(x_BSD, table, visibility, none, cache), none)

    def given(self, h_BND: Tensor, first: int = 0) -> Tensor:
        """What the head is given of hidden states before the image tokens ``first`` and later ones."""
        places = self.place[first : first + h_BND.shape[1]] if self.config.places else 0.0
        return self.between(h_BND + places)

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        return super().no_decay(name, parameter) or name == "condition.table.weight"

    # --- training

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss`` and its parts: nats of a byte of text, and the flow's squared error of an image token."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        token = self.patches(full_tokens_of(batch.tokens).float())
        conditions = self.condition.drop(batch.conditions, draws if self.training else None)
        prefix, seen = self.prompt(conditions)
        x = torch.cat([prefix, self.embed(token[:, :-1])], 1)
        h = self.states(x, causal(F.pad(seen, (0, self.count - 1), value=True)))
        text, image = h[:, : prefix.shape[1] - 1], h[:, prefix.shape[1] - 1 :]
        parts = {"image": self.config.weights[1] * self.head.loss(self.given(image), token, draws.fork("head")).mean()}
        if isinstance(self.condition, Words):
            ids, seen = self.condition.ids(self.condition.own(conditions))
            parts["text"] = self.config.weights[0] * self.text_loss(text, torch.where(seen[:, :-1], ids[:, 1:], -100))
        return {"loss": torch.stack(list(parts.values())).sum()} | {name: part.detach() for name, part in parts.items()}

    def prompt(self, conditions: Conditions | Condition) -> tuple[Tensor, Tensor]:
        """What stands before the image, (B, P, D), and which of it is seen, (B, P)."""
        cond = self.condition(conditions)
        every = torch.ones(cond.prefix_BPD.shape[:2], dtype=torch.bool, device=cond.prefix_BPD.device)
        return cond.prefix_BPD, every if cond.seen_BP is None else cond.seen_BP

    def text_loss(self, h_BSD: Tensor, next_BS: Tensor) -> Tensor:
        """Nats of the ids that follow, -100 where there is none to predict."""
        return F.cross_entropy(cast(nn.Linear, self.words)(h_BSD).float().flatten(0, 1), next_BS.flatten(), ignore_index=-100)

    # --- sampling

    @torch.no_grad()
    def generate(self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition, token by token."""
        prompts = self.prompt(conditions), self.prompt(self.condition.null(conditions))
        return Tokens(self.latents(self.drawn(*prompts, sampler, draws)), self.layout)

    @torch.no_grad()
    def drawn(self, own: tuple[Tensor, Tensor], null: tuple[Tensor, Tensor], sampler: Sampler, draws: SampleDraws) -> Tensor:
        """Tokens (B, N, C) after prompts (B, P, D) of which some slots are seen (B, P), guided away from the null ones."""
        rows, prefix = own[1].shape
        moments = [Moment(i, self.count, i, i + 1, self.count) for i in range(self.count)]
        guided = any(sampler.guidance.on(moment) for moment in moments)
        x, seen = (torch.cat([a, b]) if guided else a for a, b in zip(own, null))
        cache, draws = self.net.cache(len(x), prefix + self.count, self.embed.weight), draws.to(self.embed.weight.device, rows)
        h = self.states(x, causal(seen), cache)[:, -1:]
        found: list[Tensor] = []
        for moment in moments:
            given = self.given(h, moment.step)
            weight = sampler.guidance.on(moment)
            hidden = Hidden(given[:rows], given[rows:] if guided and weight else None, weight)
            token = self.head.sample(hidden, cast(FlowSampler, sampler.head or FlowSampler()), moment, draws)
            found.append(F.layer_norm(token, token.shape[-1:], eps=1e-6) if self.config.tokens == "normalised" else token)
            if len(found) < self.count:
                x = self.embed(found[-1]).repeat(2 if guided else 1, 1, 1)
                seen = F.pad(seen, (0, 1), value=True)
                h = self.states(x, Mask(seen[:, None]), cache)
        return torch.cat(found, 1)

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        self.head.check_sampler(sampler)


def causal(seen_BS: Tensor) -> Visibility:
    """Slots attend to themselves and to what is seen before them."""
    size = seen_BS.shape[1]
    itself = torch.eye(size, dtype=torch.bool, device=seen_BS.device)
    return Mask((Causal().seen(size, size, seen_BS.device) & seen_BS[:, None]) | itself)
