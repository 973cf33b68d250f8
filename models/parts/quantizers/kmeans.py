"""The start of a codebook: k-means on vectors of the first step's global batch, the same on all ranks.

Shapes: B rows, P positions, C channels, N vectors of the sample, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws


@dataclass(frozen=True, kw_only=True)
class KMeans(configs.Config, tag="init.kmeans"):
    """``iterations`` of Lloyd's algorithm on at most ``samples`` vectors a code."""

    iterations: int = 10
    samples: int = 32

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.samples < 1:
            raise ConfigError(f"start.iterations={self.iterations}, samples={self.samples}: must be at least 1")


def sample(groups: list[Tensor], wanted: int, draws: Draws) -> Tensor:
    """This rank's part of about ``wanted`` vectors of the global batch, zeros elsewhere: (N, C).

    ``groups`` are vectors (B, P, C), sampled alike; within a group the order is random and none is taken twice.
    The sum over ranks and micro-batches is the sample.
    """
    draws, parts = draws.fork("start"), []
    for z_BPC in groups:
        positions = z_BPC.shape[1]
        index = draws.shared_permutation(draws.total * positions)[: -(-wanted // len(groups))]
        row = index // positions - draws.start
        mine = (row >= 0) & (row < draws.rows)
        part = z_BPC.new_zeros(len(index), z_BPC.shape[2])
        part[mine] = z_BPC[row[mine], index[mine] % positions]
        parts.append(part)
    return torch.cat(parts)


def lloyd(
    sample_NC: Tensor, code_KC: Tensor, nearest: Callable[[Tensor], Tensor], scaled: Callable[[Tensor], Tensor], iterations: int
) -> tuple[Tensor, Tensor]:
    """Move ``code_KC`` (in place) to the centres of the sample; with fewer vectors than codes the others stay where they are.

    Args:
        sample_NC: in random order, group by group.
        code_KC: the table that ``nearest`` searches.
        nearest: vectors (N, C) to ids (N,).
        scaled: centres (K, C) to codes.
        iterations: at least 1.

    Returns:
        Counts (K,) and sums (K, C) of the vectors that chose each code in the last iteration.
    """
    n, k = len(sample_NC), len(code_KC)
    first = min(k, n)
    code_KC[:first] = scaled(sample_NC[torch.arange(first, device=sample_NC.device) * n // first])
    count_K, sum_KC = code_KC.new_zeros(k), torch.zeros_like(code_KC)
    for _ in range(iterations):
        ids_N = nearest(sample_NC)
        count_K = torch.bincount(ids_N, minlength=k).to(code_KC)
        sum_KC = torch.zeros_like(code_KC).index_add_(0, ids_N, sample_NC)
        code_KC.copy_(torch.where(count_K[:, None] > 0, scaled(sum_KC / count_K.clamp_min(1)[:, None]), code_KC))
    return count_K, sum_KC
