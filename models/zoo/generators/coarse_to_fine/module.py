"""Generation from coarse labels to codes: similar codes share a label, labels are predicted one by one, then all codes at once.

Shapes: B rows, L positions, V codes, K coarse labels, C channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, Tokenizer, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator, tokens_of
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import nowhere, prefix_groups, span
from tokenloom.models.parts.feeds.embedding import Ids
from tokenloom.models.parts.heads.categorical import Categorical, pick, single
from tokenloom.models.parts.heads.hidden import guide
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Everything
from tokenloom.models.sampling.sampler import Moment, Sampler


class CoarseToFine(protocols.Generator):
    """``p(x) = prod_i p(k_i | earlier k) prod_i p(x_i | all k)``, k_i being the label of code x_i (arXiv:2503.16194).

    Labels are clusters of the tokenizer's code vectors, found by k-means when the tokenizer is given; a code has mass under its own
    label alone, so this is a likelihood of the codes.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.coarse_to_fine"):
        """``coarse`` predicts the labels, of which there are ``labels``; ``fine`` is the net that attends to them all."""

        coarse: GroupGenerator.Config
        fine: Transformer.Config
        labels: int
        iterations: int = 50

        @property
        def axis_labels(self) -> dict[str, str]:
            coarse = self.coarse.axis_labels
            return coarse | {
                "order": f"{coarse['order']}, then all at once",
                "feed": f"{coarse['feed']} (labels), all labels",
                "net": f"{coarse['net']}, twice",
            }

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> CoarseToFine:
            """The generator for these tokens.

            Raises:
                ConfigError, LayoutError: more labels than codes, or a part that does not fit the tokens.
            """
            if not 1 < self.labels <= single(layout):
                raise ConfigError(f"labels={self.labels}: must be from 2 to the tokenizer's {layout.vocabulary} codes")
            return CoarseToFine(self, layout, classes)

    label_V: Tensor

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.sampler = config.coarse.sampler
        self.labels_layout = replace(layout, vocabulary=config.labels)
        self.coarse = config.coarse.build(self.labels_layout, classes)
        width = config.fine.width
        self.condition = config.coarse.condition.build(classes, width)
        self.table = Ids(self.labels_layout, width)
        self.position = nn.Parameter(torch.empty(1, layout.length, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.fine = config.fine.build(layout)
        self.head = Categorical(Categorical.Config(), layout, width)
        # Until a tokenizer is given, runs of codes share a label.
        self.register_buffer("label_V", torch.arange(layout.vocabulary) * config.labels // layout.vocabulary)

    def adopt(self, **roles: nn.Module) -> None:
        """Cluster the tokenizer's code vectors; the same vectors give the same labels."""
        if "tokenizer" in roles:
            self.label_V.copy_(clusters(vectors_of(cast(Tokenizer, roles["tokenizer"])), self.config.labels, self.config.iterations))

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: nats a token, the sum of those of its label (``coarse``) and of the code given all labels (``fine``)."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        labels = self._labels(batch.tokens)
        coarse = self.coarse.losses(replace(batch, tokens=labels), phase, draws.fork("coarse"))["loss"]
        fine = self._nll(labels, batch.tokens, batch.conditions, draws.fork("fine") if self.training else None).mean()
        return {"loss": coarse + fine, "coarse": coarse.detach(), "fine": fine.detach()}

    def log_prob(self, batch: Batch) -> Tensor:
        """Log-likelihood of the codes in nats (B,)."""
        assert batch.tokens is not None
        labels = self._labels(batch.tokens)
        fine = self._nll(labels, batch.tokens, batch.conditions, None).sum(1)
        return self.coarse.log_prob(replace(batch, tokens=labels)) - fine

    def check_sampler(self, sampler: Sampler) -> None:
        """Labels are decoded as the sampler says."""
        self.coarse.check_sampler(sampler)

    @torch.no_grad()
    def generate(self, conditions: Conditions, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition: labels as the coarse model decodes them, then one pass for all codes."""
        labels = self.coarse.generate(conditions, sampler, draws.fork("coarse"))
        length = self.layout.length
        draws = draws.to(labels.data.device)
        last = Moment(1, 2, 0, length, length)  # the last step, for schedules
        weight = sampler.guidance.on(last)
        null = self._logits(labels.ids, self.condition.null(conditions), None) if weight else None
        logits = guide(self._logits(labels.ids, conditions, None), null, weight)
        return Tokens(pick(self._own(logits, labels.ids), sampler, last, draws), self.layout)

    def _labels(self, tokens: Tokens) -> Tokens:
        return Tokens(self.label_V[tokens_of(tokens)], self.labels_layout)

    def _nll(self, labels: Tokens, tokens: Tokens, conditions: Conditions, draws: Draws | None) -> Tensor:
        logits = self._own(self._logits(labels.ids, self.condition.drop(conditions, draws), draws), labels.ids)
        return -logits.log_softmax(-1).gather(-1, tokens.ids.unsqueeze(-1)).squeeze(-1)

    def _own(self, logits_BLV: Tensor, label_BL: Tensor) -> Tensor:
        """Logits of the codes of each position's label alone."""
        return logits_BLV.masked_fill(self.label_V != label_BL.unsqueeze(-1), -torch.inf)

    def _logits(self, label_BL: Tensor, conditions: Conditions, draws: Draws | None) -> Tensor:
        """(B, L, V) logits given all labels, which see each other and the condition."""
        cond: Conditioned = self.condition(conditions)
        prefix = prefix_groups(cond.prefix_BPD)
        here = span(0, self.layout.length, label_BL.device)
        x = torch.cat([cond.prefix_BPD, self.table(label_BL) + self.position], dim=1)
        place = torch.cat([nowhere(prefix), here], dim=1)
        slots = Slots(x, torch.zeros_like(place), place, prefix.shape[1] + here, visibility=Everything())
        return self.head.logits(self.fine(slots, Everything(), cond, draws=draws)[:, prefix.shape[1] :])


@torch.no_grad()
def vectors_of(tokenizer: Tokenizer) -> Tensor:
    """(V, C) vector of each code of a tokenizer whose tokens stand for one latent each.

    Raises:
        ConfigError: a tokenizer of another kind.
    """
    layout, quantizer = tokenizer.layout, cast(Any, getattr(tokenizer, "quantizer", None))
    rows = -(-layout.vocabulary // layout.length)
    ids = torch.arange(rows * layout.length).clamp_max(layout.vocabulary - 1).view(rows, -1)
    z = None if quantizer is None else quantizer.lookup(ids.to(next(tokenizer.parameters()).device))
    if z is None or z.shape[2] * z.shape[3] != layout.length:
        raise ConfigError(f"coarse labels need a tokenizer with one latent a token, such as the recipe vq, not {type(tokenizer).__name__}")
    return z.flatten(2).transpose(1, 2).flatten(0, 1)[: layout.vocabulary]


@torch.no_grad()
def clusters(vector_VC: Tensor, count: int, iterations: int) -> Tensor:
    """(V,) clusters by k-means, none of them empty; deterministic.

    The centres start at vectors each of which is the farthest from those before it.
    """
    z = vector_VC.double().cpu()
    chosen = [int((z - z.mean(0)).square().sum(1).argmin())]
    near = (z - z[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(near.argmax()))
        near = torch.minimum(near, (z - z[chosen[-1]]).square().sum(1))
    centre = z[chosen].clone()

    def nearest(vector: Tensor) -> Tensor:
        return torch.cdist(vector, centre).argmin(1)

    for _ in range(iterations):
        label = nearest(z)
        total = torch.zeros_like(centre).index_add_(0, label, z)
        size = torch.bincount(label, minlength=count).to(z)[:, None]
        centre = torch.where(size > 0, total / size.clamp_min(1), centre)
    label = nearest(z)
    for empty in range(count):
        if not bool((label == empty).any()):  # it takes the vector that stands farthest from its centre in the largest cluster
            largest = torch.bincount(label, minlength=count).argmax()
            distance = (z - centre[label]).square().sum(1).masked_fill(label != largest, -1)
            label[distance.argmax()] = empty
    return label.to(vector_VC.device)
