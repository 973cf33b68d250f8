"""Random draws without state: a function of (seed, step), the same for any number of workers.

Draws are made for the whole global batch on the CPU and sliced to the rows at hand, so one or N workers, and any
micro-batch, see the same numbers, and a run resumes from its step alone.  ``coins``, of which dropout wants one a value,
are a hash of the place instead: made where they are wanted, for the rows at hand, and the same there.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of ints and strings (SHA-256, so streams never overlap by accident)."""
    digest = hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass
class Draws:
    """The draws of one training step for the rows ``start:stop`` of a global batch of ``total`` rows.

    Successive calls advance one stream; a model must draw in the same order on every rank, which is
    why no draw may depend on the data.  ``step`` counts optimizer steps from 0, ``steps`` is the whole run.
    """

    seed: int
    step: int
    steps: int
    start: int
    stop: int
    total: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stream: str = ""

    def __post_init__(self) -> None:
        seed = seed_of(self.seed, self.step, self.stream)
        self._generator = torch.Generator().manual_seed(seed)
        self._key = torch.tensor(seed & _LOW, dtype=torch.int32, device=self.device)
        self._tosses = 0

    @classmethod
    def whole(cls, seed: int, step: int, rows: int, steps: int = 1, device: torch.device | str = "cpu", stream: str = "") -> Draws:
        """Draws of an unsplit batch, as in tests, validation and sampling."""
        return cls(seed, step, steps, 0, rows, rows, torch.device(device), stream)

    @property
    def rows(self) -> int:
        """Rows at hand."""
        return self.stop - self.start

    @property
    def progress(self) -> float:
        """Share of the training run that is done, in [0, 1)."""
        return self.step / max(1, self.steps)

    def fork(self, stream: str) -> Draws:
        """An independent stream of the same step, e.g. one per phase or part."""
        return Draws(self.seed, self.step, self.steps, self.start, self.stop, self.total, self.device, f"{self.stream}/{stream}")

    def uniform(self, *shape: int) -> Tensor:
        """Uniform [0, 1) numbers, one block of ``shape`` a row: (rows, *shape), float32."""
        whole = torch.rand((self.total, *shape), generator=self._generator)
        return whole[self.start : self.stop].to(self.device)

    def coins(self, rate: float, *shape: int) -> Tensor:
        """Booleans, true with probability ``rate``, one block of ``shape`` a row: (rows, *shape)."""
        self._tosses += 1
        key = _mixed(self._key + self._tosses)
        place_N = _mixed(torch.arange(math.prod(shape), dtype=torch.int32, device=self.device) + key)
        row_B = _mixed(torch.arange(self.start, self.stop, dtype=torch.int32, device=self.device) ^ _mixed(key + 1))
        bits_BN = _mixed(place_N ^ row_B[:, None])
        return ((bits_BN & _LOW) < int(rate * (_LOW + 1))).view(self.rows, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers: (rows, *shape), float32."""
        whole = torch.randn((self.total, *shape), generator=self._generator)
        return whole[self.start : self.stop].to(self.device)

    def permutation(self, length: int) -> Tensor:
        """An independent permutation of ``range(length)`` a row: (rows, length), int64."""
        return self.uniform(length).argsort(dim=1)

    def shared_uniform(self, *shape: int) -> Tensor:
        """Uniform numbers shared by the whole global batch (one mask ratio, replacement codes): ``shape``."""
        return torch.rand(shape, generator=self._generator).to(self.device)

    def shared_permutation(self, length: int) -> Tensor:
        """One permutation shared by the whole global batch: (length,)."""
        return torch.randperm(length, generator=self._generator).to(self.device)


_LOW = (1 << 31) - 1


def _mixed(x: Tensor) -> Tensor:
    """Integers of 32 bits, each turned into another one that looks random (lowbias32 of Wellons' hash prospector)."""
    x = x ^ (x >> 16 & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15 & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ (x >> 16 & 0xFFFF)
