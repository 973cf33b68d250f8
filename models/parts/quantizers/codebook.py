"""A table of code vectors: nearest neighbours, training by loss or by moving averages, revival of dead codes.

Shapes: B rows, P positions, N = B P, K codes, C channels, G groups of positions (the scales of a multi-scale quantizer).

Everything that a step observes is summed locally and reduced once in ``after_step``, so any number of workers and
micro-batches ends with the same codebook: counts and sums are all-reduced, and a dead code is replaced by an encoder
vector of the *global* batch, chosen by a draw that all ranks share and contributed by the rank that owns the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.collectives import all_reduce_sum
from tokenloom.models.parts.quantizers.kmeans import KMeans, lloyd, sample

_CHUNK = 1 << 25  # entries of a distance matrix held at once


@dataclass(frozen=True, kw_only=True)
class Learned(configs.Config, tag="codebook.learned", label="codebook loss"):
    """The codebook is a parameter, trained by the codebook loss of this weight (VQ-VAE, arXiv:1711.00937, equation 3)."""

    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EMA(configs.Config, tag="codebook.ema", label="moving averages"):
    """The codebook follows moving averages of the vectors assigned to it (arXiv:1711.00937, appendix A.1).

    ``smoothing`` is Laplace's: so much is added to each count, the total kept.  Codes are the averages, or these at ``unit`` length.
    """

    decay: float = 0.97
    smoothing: float = 0.0
    length: Literal["free", "unit"] = "free"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.smoothing < 0:
            raise ConfigError(f"update.decay={self.decay}, smoothing={self.smoothing}: decay in [0, 1), smoothing not negative")


@dataclass(frozen=True, kw_only=True)
class Fixed(configs.Config, tag="codebook.fixed", label="fixed codes"):
    """The codebook stays as it is, e.g. while the nets around a trained one are tuned."""


@dataclass(frozen=True, kw_only=True)
class Revival(configs.Config, tag="codebook.revival"):
    """A code used less than ``threshold`` times its fair share becomes an encoder vector of the present batch.

    A revived code is left alone for ``patience`` optimizer steps; nothing is revived after the share ``until`` of the run.
    The group of positions is drawn first, so small scales get as many new codes as large ones.
    """

    threshold: float = 0.05
    patience: int = 20
    until: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.patience < 1 or not 0 < self.until <= 1:
            raise ConfigError(
                f"revival.threshold={self.threshold}, patience={self.patience}, until={self.until}: "
                "threshold in (0, 1), patience at least 1, until in (0, 1]"
            )


class Codebook(nn.Module):
    """K vectors of C channels; ``weight`` is a parameter (``Learned``) or a buffer (``EMA``, ``Fixed``)."""

    weight: Tensor
    count: Tensor
    sums: Tensor
    usage: Tensor
    born: Tensor
    started: Tensor
    _weights: Tensor
    _counts: Tensor
    _sums: Tensor
    _candidates: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="codebook"):
        """``metric`` is that of the search; ``decay`` that of the usage statistics, per step; without ``start`` codes are random."""

        codes: int
        dim: int
        metric: Literal["l2", "cosine"] = "l2"
        update: Learned | EMA | Fixed = Learned()
        start: KMeans | None = None
        revival: Revival | None = None
        decay: float = 0.95

        def __post_init__(self) -> None:
            if self.codes < 2:
                raise ConfigError(f"codebook.codes={self.codes}: a codebook needs at least 2 codes")
            if self.dim < 1:
                raise ConfigError(f"codebook.dim={self.dim}: must be at least 1")
            if self.metric == "cosine" and self.dim < 2:
                raise ConfigError(f"codebook.dim={self.dim}: the cosine metric needs at least 2 channels")
            if not 0 <= self.decay < 1:
                raise ConfigError(f"codebook.decay={self.decay}: must be in [0, 1)")

    def __init__(self, config: Config, groups: tuple[str, ...] = ("",), weights: tuple[float, ...] = (1.0,)) -> None:
        super().__init__()
        self.config, self.groups = config, groups
        k, c, g = config.codes, config.dim, len(groups)
        weight = torch.empty(k, c).uniform_(-1 / k, 1 / k)
        if config.metric == "cosine":
            weight = F.normalize(torch.randn(k, c), dim=-1)
        if isinstance(config.update, Learned):
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        if isinstance(config.update, EMA):
            self.register_buffer("count", torch.zeros(k))
            self.register_buffer("sums", torch.zeros(k, c))
        # Statistics that shape later steps are saved; those that are only reported are not.
        self.register_buffer("usage", torch.zeros(g, k), persistent=config.revival is not None)
        if config.revival is not None:
            self.register_buffer("born", torch.full((k,), -config.revival.patience, dtype=torch.int64))
            self.register_buffer("_candidates", torch.zeros(k, c), persistent=False)
        if config.start is not None:
            self.register_buffer("started", torch.tensor(False))
        self._ready = False
        self._sample: Tensor | None = None
        self.register_buffer("_weights", torch.tensor(weights)[:, None], persistent=False)
        self.register_buffer("_counts", torch.zeros(g, k), persistent=False)
        self.register_buffer("_sums", torch.zeros(k, c), persistent=False)

    @property
    def averaged(self) -> tuple[str, ...]:
        """Buffers that stand in for weights."""
        return ("weight",) if isinstance(self.config.update, EMA) else ()

    @property
    def ready(self) -> bool:
        """False until codes that start from data have done so; the same on all ranks."""
        if not self._ready:  # what has started stays so, and the device is not read again
            self._ready = self.config.start is None or bool(self.started)
        return self._ready

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self._ready = False

    def placed(self, z: Tensor) -> Tensor:
        """Vectors (…, C) where the metric compares them: on the unit sphere for the cosine metric."""
        return F.normalize(z, dim=-1) if self.config.metric == "cosine" else z

    @torch.no_grad()
    def nearest(self, z_NC: Tensor) -> Tensor:
        """Ids (N,) of the nearest codes; the lowest id among equals."""
        table = self.weight.to(z_NC.dtype)
        if self.config.metric == "cosine":
            z_NC, table = F.normalize(z_NC, dim=-1), F.normalize(table, dim=-1)
        return nearest(z_NC, table)

    @torch.no_grad()
    def observe(self, groups: list[tuple[Tensor, Tensor]], draws: Draws, first: int = 0) -> None:
        """Add one micro-batch to the step's statistics: vectors (B, P, C) and their ids (B, P) of each group from the ``first`` given."""
        self._counts[first : first + len(groups)] += counts([ids for _, ids in groups], self.config.codes).to(self._counts)
        if isinstance(self.config.update, EMA):
            for g, (z_BPC, ids_BP) in enumerate(groups, first):
                self._sums.index_add_(0, ids_BP.flatten(), z_BPC.flatten(0, 1).to(self._sums) * self._weights[g])
        if not self.ready and first == 0:  # later groups, if they come apart, wait for codes that have started
            assert self.config.start is not None
            taken = sample([z for z, _ in groups], self.config.start.samples * self.config.codes, draws)
            self._sample = taken if self._sample is None else self._sample + taken
        if self.config.revival is not None:
            group_K, row_K, u_K = self._choices(draws)
            for g, (z_BPC, _) in enumerate(groups, first):
                # A vector is gathered for every code and kept where its row is at hand: no shape depends on the draws.
                mine_K = (group_K == g) & (row_K >= draws.start) & (row_K < draws.stop)
                position_K = (u_K * z_BPC.shape[1]).long().clamp_max(z_BPC.shape[1] - 1)
                index = torch.stack([(row_K - draws.start).clamp(0, z_BPC.shape[0] - 1), position_K, mine_K.long()])
                index = index.to(z_BPC.device, non_blocking=True)
                taken_KC = z_BPC[index[0], index[1]].to(self._candidates)
                self._candidates += torch.where(index[2].bool()[:, None], taken_KC, 0)

    def _choices(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """For each code the group, global row and relative position of the vector that would replace it, on the host."""
        u_K3 = draws.fork("revival").host_uniform(self.config.codes, 3)
        group_K = (u_K3[:, 0] * len(self.groups)).long().clamp_max(len(self.groups) - 1)
        row_K = (u_K3[:, 1] * draws.total).long().clamp_max(draws.total - 1)
        return group_K, row_K, u_K3[:, 2]

    @torch.no_grad()
    def after_step(self, draws: Draws) -> dict[str, float]:
        """Update the codebook from what the step observed on all ranks; returns use and perplexity per group."""
        flat = torch.cat([self._counts.flatten(), self._sums.flatten()])
        flat = all_reduce_sum(flat if isinstance(self.config.update, EMA) else flat[: self._counts.numel()])
        counts_GK = flat[: self._counts.numel()].view_as(self._counts)
        self.usage.lerp_(counts_GK, 1 - self.config.decay)
        if isinstance(self.config.update, EMA):
            self._follow((counts_GK * self._weights).sum(0), flat[self._counts.numel() :].view_as(self._sums), self.config.update)
        if self._sample is not None:
            self._start(all_reduce_sum(self._sample), counts_GK.sum(1), draws.step)
        revived = self._revive(draws) if self.config.revival is not None else 0
        self._counts.zero_()
        self._sums.zero_()
        found = metrics(self.usage, self.groups, self.config.decay, self._weights)
        return found | ({"revived": float(revived)} if self.config.revival is not None else {})

    def _start(self, sample_NC: Tensor, vectors_G: Tensor, step: int) -> None:
        """k-means (Lloyd) on a sample that is the same on all ranks; the statistics start from what chose each centre."""
        assert self.config.start is not None
        sample_NC = sample_NC.to(self.weight)
        count_K, sum_KC = lloyd(sample_NC, self.weight, self.nearest, self._scaled, self.config.start.iterations)
        scale = (vectors_G * self._weights[:, 0]).sum() / len(sample_NC)
        self.usage.copy_(count_K * scale / self._weights.sum())
        if isinstance(self.config.update, EMA):
            self.count.copy_(count_K * scale)
            self.sums.copy_(sum_KC * scale)
        if self.config.revival is not None:
            self.born.fill_(step)
        self.started.fill_(True)
        self._sample = None

    def _scaled(self, code_KC: Tensor) -> Tensor:
        unit = isinstance(self.config.update, EMA) and self.config.update.length == "unit"
        return F.normalize(code_KC, dim=-1) if unit else code_KC

    def _follow(self, count_K: Tensor, sum_KC: Tensor, update: EMA) -> None:
        self.count.lerp_(count_K, 1 - update.decay)
        self.sums.lerp_(sum_KC, 1 - update.decay)
        # A ratio of two averages of the same decay needs no bias correction; codes never used stay where they are.
        used = self.count > 1e-6
        count = self.count
        if update.smoothing:
            total = count.sum()
            count = (count + update.smoothing) / (total + len(count) * update.smoothing) * total
        self.weight.copy_(torch.where(used[:, None], self._scaled(self.sums / count.clamp_min(1e-6)[:, None]), self.weight))

    def _revive(self, draws: Draws) -> int:
        revival = self.config.revival
        assert revival is not None
        usage_K = (self.usage * self._weights).sum(0)
        fair = usage_K.sum() / self.config.codes
        dead = (usage_K < revival.threshold * fair) & (draws.step - self.born >= revival.patience)
        revived = int(dead.sum()) if draws.progress < revival.until and fair > 0 else 0
        if revived:  # equal on all ranks, so is the number of collectives
            vectors = all_reduce_sum(self._candidates)
            self.weight[dead] = vectors[dead]
            self.born[dead] = draws.step
            if isinstance(self.config.update, EMA):
                # a light weight: the first vectors that choose the code move it freely
                self.count[dead] = revival.threshold * fair
                self.sums[dead] = vectors[dead] * self.count[dead][:, None]
        self._candidates.zero_()
        return revived


@torch.no_grad()
def nearest(z_NC: Tensor, table_KC: Tensor) -> Tensor:
    """Ids (N,) of the nearest rows of a table; the lowest id among equals."""
    table_KC = table_KC.to(z_NC.dtype)
    square_K = table_KC.square().sum(1)
    rows = max(1, _CHUNK // len(table_KC))
    # |z - e|^2 without |z|^2, which is the same for all codes
    return torch.cat([torch.addmm(square_K, z, table_KC.T, alpha=-2).argmin(1) for z in z_NC.split(rows)])


def metrics(usage_GK: Tensor, groups: tuple[str, ...], decay: float, weight_G1: Tensor | None = None) -> dict[str, float]:
    """Share of codes hit within the statistics' memory, and perplexity, per group and (for several) over all.

    Args:
        usage_GK: moving averages of counts, with this ``decay``.
        weight_G1: how much a count of each group counts over all (default: alike).
    """
    memory = (1 - decay) * decay ** (3 / (1 - decay))  # one hit, three memories ago
    rows, hit = usage_GK, usage_GK >= memory
    if len(groups) > 1:
        rows = torch.cat([rows, (rows if weight_G1 is None else rows * weight_G1).sum(0, keepdim=True)])
        hit = torch.cat([hit, hit.any(0, keepdim=True)])
    use = hit.to(rows).mean(1)
    names = [f"_{g}" for g in groups] + [""] if len(groups) > 1 else [""]
    values = torch.stack([use, perplexity(rows)]).tolist()
    return {f"{metric}{n}": values[m][i] for i, n in enumerate(names) for m, metric in enumerate(("use", "perplexity"))}


def counts(groups: Sequence[Tensor], codes: int) -> Tensor:
    """How often each code occurs in each group's ids: (G, K) int64."""
    found = torch.zeros((len(groups), codes), dtype=torch.int64, device=groups[0].device)
    for row, ids in zip(found, groups):  # unlike bincount it need not know the largest id, which would have to be read from a GPU
        row.index_add_(0, ids.flatten(), row.new_ones(ids.numel()))
    return found


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of each row's distribution: (..., K) counts to (...), between 1 and K; 0 for a row without counts."""
    p = counts / counts.sum(-1, keepdim=True).clamp_min(1e-12)
    found = torch.exp(-(p * p.clamp_min(1e-30).log()).sum(-1))
    return torch.where(counts.sum(-1) > 0, found, torch.zeros_like(found))


def exact(z: Tensor) -> Tensor:
    """Half-precision activations as float32: distances and averages need the bits; float32 and float64 stay."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
