"""Attention as a recurrent net (Aaren, arXiv:2405.13956): softmax over all prefixes by one scan, decoding in constant memory.

Shapes: B rows, H heads, S slots, E head width, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.recurrent.branching import pick
from tokenloom.models.parts.nets.sequence import Mixer, State
from tokenloom.models.parts.scan import Leaves, associative_scan, wide


class ScanAttention(Mixer):
    """Each head asks one learned question of every prefix: the query is a parameter, so attention is a recurrence."""

    trees = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Mixer.Config, tag="mixer.scan_attention", label="attention by scan"):
        """Number of heads."""

        heads: int

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        if config.heads < 1 or width % config.heads:
            raise ConfigError(f"mixer.heads={config.heads}: must divide net.width={width}")
        self.heads, self.head_width = config.heads, width // config.heads
        self.query = nn.Parameter(torch.empty(width))
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Queries of the size of a normalised input, so that scores are not all alike."""
        self.query.normal_()

    def state(self, rows: int, like: Tensor) -> State:
        """``highest`` score (B, H, 1), ``below`` (B, H, 1) and ``above`` (B, H, E) the fraction line, of nothing yet."""
        zero = wide(like.new_zeros((rows, self.heads, self.head_width)))
        return State({"highest": torch.full_like(zero[..., :1], -math.inf), "below": torch.zeros_like(zero[..., :1]), "above": zero})

    def forward(self, x_BSD: Tensor, state: State | None = None) -> Tensor:
        rows, slots, width = x_BSD.shape
        key, value = self.kv(x_BSD).view(rows, slots, 2, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        query = self.query.view(self.heads, 1, self.head_width)
        score_BHS1 = (wide(key) * query).sum(-1, keepdim=True) / math.sqrt(self.head_width)
        if state is None:
            y = prefix_attention(score_BHS1, wide(value))
        elif state.branches is not None:
            earlier = [pick(state.earlier(name), state.branches.origin_BS) for name in ("highest", "below", "above")]
            y, (highest, below, above) = along(score_BHS1, wide(value), (earlier[0], earlier[1], earlier[2]), state.branches.reach_BSS)
            state.advance(highest=highest, below=below, above=above)
        else:
            last = state.tensors
            y, states = stream(score_BHS1, wide(value), (last["highest"], last["below"], last["above"]))
            highest, below, above = (torch.stack(part, dim=1) for part in zip(*states))
            state.advance(highest=highest, below=below, above=above)
        return self.out(y.to(x_BSD.dtype).transpose(1, 2).reshape(rows, slots, width))


def prefix_attention(score_BHS1: Tensor, value_BHSE: Tensor) -> Tensor:
    """``softmax(s_1 … s_t) · (v_1 … v_t)`` for every t (section 3), by an associative scan over (maximum, denominator, numerator)."""
    _, below, above = associative_scan(merge, (score_BHS1, torch.ones_like(score_BHS1), value_BHSE), dim=2)
    return above / below


def stream(score_BHS1: Tensor, value_BHSE: Tensor, state: Leaves) -> tuple[Tensor, list[Leaves]]:
    """The same, going on from a state slot after slot: outputs and the state after each of them."""
    outputs: list[Tensor] = []
    states: list[Leaves] = []
    now = state
    for score, value in zip(score_BHS1.unbind(2), value_BHSE.unbind(2)):
        now = merge(now, (score, torch.ones_like(score), value))
        outputs.append(now[2] / now[1])
        states.append(now)
    return torch.stack(outputs, dim=2), states


def along(score_BHS1: Tensor, value_BHSE: Tensor, start: Leaves, reach_BSS: Tensor) -> tuple[Tensor, Leaves]:
    """The same on a tree: outputs (B, H, S, E), and states (B, S, H, …), of slots that go on from the states ``start`` (B, S, H, …) of
    their uppermost new ancestors."""
    score = score_BHS1.transpose(2, 3).masked_fill(~reach_BSS[:, None], -math.inf)  # (B, H, to, from)
    first = tuple(each.transpose(1, 2) for each in start)
    highest = torch.maximum(score.amax(-1, keepdim=True), first[0])
    weight, old = (score - highest).exp(), (first[0] - highest).exp()
    below, above = weight.sum(-1, keepdim=True) + old * first[1], weight @ value_BHSE + old * first[2]
    return above / below, tuple(each.transpose(1, 2) for each in (highest, below, above))


def merge(earlier: Leaves, later: Leaves) -> tuple[Tensor, Tensor, Tensor]:
    """(maximum, denominator, numerator) of two adjacent runs of slots; exponents are never positive."""
    highest = torch.maximum(earlier[0], later[0])
    a, b = (earlier[0] - highest).exp(), (later[0] - highest).exp()
    return highest, a * earlier[1] + b * later[1], a * earlier[2] + b * later[2]
