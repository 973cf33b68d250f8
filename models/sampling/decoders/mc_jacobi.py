"""Speculative Jacobi decoding whose drafts stay the same from call to call as often as they can (MC-SJD, arXiv:2510.24211).

Shapes: B rows, W drafted tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenloom.models.sampling.chain import ChainSession
from tokenloom.models.sampling.decoders.jacobi import Drafts, Jacobi
from tokenloom.models.sampling.rejection import acceptable, draw_from, residual


@dataclass(frozen=True, kw_only=True)
class CoupledJacobi(Jacobi, tag="decoder.mc_jacobi"):
    """As ``jacobi``; a draft is drawn anew only where it has become less likely, by a maximal coupling of its two distributions.

    A token x of the last call, drawn from p, stays with probability min(1, q(x) / p(x)) where q is its distribution now, else one is
    drawn from max(0, q - p).  So it is distributed as q, given all drafts before it, and samples stay exact; later entries see the same
    context again more often, so that their distributions move less.
    """

    paper: ClassVar = "2510.24211"

    def drafted(self, session: ChainSession, now: Drafts, step: int) -> Tensor:
        stays_BW = acceptable(now.draft_BWV, now.before_BWV, now.token_BW, session.draws.uniform("couple", step, self.window))
        rest_BWV = torch.where(now.drawn_BW.unsqueeze(-1), residual(now.draft_BWV, now.before_BWV), now.draft_BWV)
        new_BW = draw_from(rest_BWV, session.draws.uniform("draft", step, self.window))
        return torch.where(now.drawn_BW & stays_BW, now.token_BW, new_BW)
