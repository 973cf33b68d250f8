"""The diffusion head of FAR, which is told the stage (arXiv:2503.05305, section 3.3).  Shapes: … any axes, D width of the states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.heads.diffusion import Diffusion, DiffusionSampler
from tokenloom.models.sampling.sampler import Constant, Moment, Schedule


@dataclass(frozen=True, kw_only=True)
class StagedSampler(DiffusionSampler, tag="head_sampler.staged_diffusion"):
    """As ``DiffusionSampler``; the temperature is multiplied by ``warmth``, which may change from stage to stage."""

    warmth: Schedule = Constant(value=1.0)

    def at(self, moment: Moment) -> StagedSampler:
        """The settings of a stage."""
        return replace(self, temperature=self.temperature * self.warmth.on(moment))


class Staged(nn.Module):
    """A linear map of hidden states and one of the stage, added; states without a stage (…, D) have the first alone."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.hidden, self.stage = nn.Linear(hidden, width), nn.Linear(1, width)

    def forward(self, h: Tensor) -> Tensor:
        states = self.hidden.in_features
        return self.hidden(h) if h.shape[-1] == states else self.hidden(h[..., :states]) + self.stage(h[..., states:])


class StagedDiffusion(Diffusion):
    """A diffusion head whose hidden states (…, D + 1) end with the stage, ``told``."""

    settings = StagedSampler

    @dataclass(frozen=True, kw_only=True)
    class Config(Diffusion.Config, tag="head.staged_diffusion"):
        """As of ``Diffusion``."""

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        self.condition = Staged(width, config.width)  # type: ignore[assignment]


def told(h: Tensor, stage: int | Tensor) -> Tensor:
    """(…, D + 1) hidden states with the stage, its side in positions."""
    return torch.cat([h, torch.as_tensor(stage, device=h.device).to(h.dtype).expand(*h.shape[:-1], 1)], -1)
