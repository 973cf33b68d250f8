"""Random numbers without state: each one is a hash of where it is used, made on the device for the rows at hand.

Training (``Draws``): a hash of (seed, step, stream, call, row of the global batch, place in the row), so that one or N workers,
and any micro-batch, use the same numbers, and a run resumes from its step alone.  Sampling (``SampleDraws``): a hash of
(the sample's seed, stream, step, place), so that a sample depends neither on its batch nor on the number of workers.

Keys have 64 bits, held as two int32 tensors; arithmetic wraps around at 32 bits.
Shapes: B rows, N places of a row.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of ints and strings (SHA-256, so streams never overlap by accident)."""
    digest = hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass
class Draws:
    """The random numbers of one training step for the rows ``start:stop`` of a global batch of ``total`` rows.

    Successive calls number one stream; a model must draw in the same order on every rank, which is
    why no call may depend on the data.  ``step`` counts optimizer steps from 0, ``steps`` is the whole run.
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
        low, high = _words_of(seed_of(self.seed, self.step, self.stream))
        # Tensors, not numbers: a compiled graph then serves all steps.
        words = torch.tensor([low, high], dtype=torch.int32, device="cpu")
        self._host_key = words[0], words[1]
        self._key = words[0].to(self.device, non_blocking=True), words[1].to(self.device, non_blocking=True)
        self._calls = 0

    @classmethod
    def whole(cls, seed: int, step: int, rows: int, steps: int = 1, device: torch.device | str = "cpu", stream: str = "") -> Draws:
        """Draws of an unsplit batch, as in tests and validation."""
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
        """Uniform [0, 1) numbers, one block of ``shape`` a row: (rows, *shape), float32 of 24 bits."""
        return _uniform(self._rows_of(shape))

    def bernoulli(self, rate: float, *shape: int) -> Tensor:
        """Booleans, true with probability ``rate``, one block of ``shape`` a row: (rows, *shape)."""
        low, high = self._next()
        # One round a value instead of two, as dropout wants one for each activation: place and row are mixed apart before.
        place_N = _mixed(_places(math.prod(shape), self.device) + low)
        row_B = _mixed(_mixed(self._row_B() ^ low) + high)
        bits_BN = _mixed(place_N ^ row_B[:, None])
        return ((bits_BN & _LOW) < int(rate * (_LOW + 1))).view(self.rows, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers: (rows, *shape), float32, within 5.3."""
        return _normal(self._rows_of(shape))

    def permutation(self, length: int) -> Tensor:
        """An independent permutation of ``range(length)`` a row: (rows, length), int64."""
        return self._rows_of((length,)).argsort(dim=1, stable=True)

    def shared_uniform(self, *shape: int) -> Tensor:
        """Uniform numbers shared by the whole global batch (one mask ratio, replacement codes): ``shape``."""
        return _uniform(self._shared(shape))

    def host_uniform(self, *shape: int) -> Tensor:
        """The numbers of ``shared_uniform`` on the processor, for what decides shapes: made there, so that nothing waits for the device."""
        self._calls += 1
        return _uniform(_shared(*self._host_key, self._calls, shape))

    def shared_permutation(self, length: int) -> Tensor:
        """One permutation shared by the whole global batch: (length,)."""
        return self._shared((length,)).argsort(stable=True)

    def _next(self) -> tuple[Tensor, Tensor]:
        self._calls += 1
        low, high = self._key
        return _absorbed(low, high, self._calls)

    def _row_B(self) -> Tensor:
        return torch.arange(self.start, self.stop, dtype=torch.int32, device=self.device)

    def _rows_of(self, shape: tuple[int, ...]) -> Tensor:
        return _blocks(*_absorbed(*self._next(), self._row_B()), shape)

    def _shared(self, shape: tuple[int, ...]) -> Tensor:
        self._calls += 1
        return _shared(*self._key, self._calls, shape)


class SampleDraws:
    """The random numbers of B samples, each from its own seed: (B,) int64 on the device of the samples.

    A number is a function of (seed, stream, step, place): ``stream`` names its use ("head", "order", …), ``step`` the decoding step
    (one for all rows or (B,)), and the place is its index in ``shape``.  Calling it twice gives the same numbers twice.
    """

    def __init__(self, seed_B: Tensor) -> None:
        if seed_B.ndim != 1 or seed_B.dtype != torch.int64:
            raise ValueError(f"seeds of shape {tuple(seed_B.shape)} and type {seed_B.dtype}: give one int64 a sample")
        self.seed_B = seed_B

    @classmethod
    def of(cls, seed: int, start: int, stop: int, device: torch.device | str = "cpu") -> SampleDraws:
        """Samples ``start`` to ``stop - 1`` of a request with this seed."""
        index_B = torch.arange(start, stop, dtype=torch.int32, device=device)
        return cls(_joined(*_absorbed(*_words_of(seed_of(seed, "sample")), index_B)))

    @classmethod
    def each(cls, seeds: list[int], device: torch.device | str = "cpu") -> SampleDraws:
        """One sample for each request: the first sample of each of these seeds."""
        parts = [cls.of(seed, 0, 1).seed_B for seed in seeds]
        return cls((torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)).to(device))

    @property
    def rows(self) -> int:
        """Number of samples B."""
        return len(self.seed_B)

    @property
    def device(self) -> torch.device:
        """Where the numbers are made."""
        return self.seed_B.device

    def to(self, device: torch.device | str, rows: int | None = None) -> SampleDraws:
        """The same numbers on another device.

        Raises:
            ValueError: these are not as many samples as ``rows``, where they are counted.
        """
        if rows is not None and rows != self.rows:
            raise ValueError(f"{self.rows} seeds for {rows} samples: give one seed a sample")
        return SampleDraws(self.seed_B.to(device))

    def part(self, start: int, stop: int) -> SampleDraws:
        """Samples ``start:stop``."""
        return SampleDraws(self.seed_B[start:stop])

    def select(self, rows: Tensor) -> SampleDraws:
        """The samples of these indices, or where a (B,) mask is true."""
        return SampleDraws(self.seed_B[rows])

    def repeat(self, times: int) -> SampleDraws:
        """All samples ``times`` over, one whole batch after another: the copies draw the same."""
        return SampleDraws(self.seed_B.repeat(times))

    def children(self, stream: str, count: int) -> SampleDraws:
        """``count`` parts of each sample, side by side, with seeds of their own: (B count)."""
        return SampleDraws(torch.stack([self.fork(f"{stream}.{i}").seed_B for i in range(count)], dim=1).flatten())

    def fork(self, stream: str) -> SampleDraws:
        """Seeds of their own for a part that names its streams as it likes."""
        return SampleDraws(_joined(*self._keys(stream, 0)))

    def ahead(self, stream: str, sizes: Sequence[int]) -> SampleDraws:
        """The same numbers; those that ``uniform(stream, step, sizes[step])`` gives are made now, for all steps at once.

        Draws of another class (recorded numbers) are left as they are.
        """
        return _Ahead(self.seed_B, stream, sizes) if type(self) is SampleDraws else self

    def uniform(self, stream: str, step: int | Tensor, *shape: int) -> Tensor:
        """Uniform [0, 1) numbers (B, *shape), float32 of 24 bits."""
        return _uniform(_blocks(*self._keys(stream, step), shape))

    def normal(self, stream: str, step: int | Tensor, *shape: int) -> Tensor:
        """Standard normal numbers (B, *shape), float32, within 5.3."""
        return _normal(_blocks(*self._keys(stream, step), shape))

    def permutation(self, stream: str, step: int | Tensor, length: int) -> Tensor:
        """An independent permutation of ``range(length)`` for each sample: (B, length), int64."""
        return _blocks(*self._keys(stream, step), (length,)).argsort(dim=1, stable=True)

    def _keys(self, stream: str, step: int | Tensor) -> tuple[Tensor, Tensor]:
        # int64 to int32 keeps the low bits.
        low, high = self.seed_B.to(torch.int32), (self.seed_B >> 32).to(torch.int32)
        for word in _stream_words(stream):
            low, high = _absorbed(low, high, word)
        return _absorbed(low, high, step.to(self.device, torch.int32) if isinstance(step, Tensor) else step)


class _Ahead(SampleDraws):
    """Draws with a table of one stream's uniform numbers: some forty small kernels a sample instead of as many a step."""

    def __init__(self, seed_B: Tensor, stream: str, sizes: Sequence[int]) -> None:
        super().__init__(seed_B)
        at_N = torch.tensor([(step, place) for step, size in enumerate(sizes) for place in range(size)], dtype=torch.int32)
        step_N, place_N = at_N.view(-1, 2).to(self.device).unbind(1)
        low_BN, high_BN = SampleDraws(seed_B[:, None].expand(-1, len(step_N)).flatten())._keys(stream, step_N.repeat(len(seed_B)))
        words_BN = _mixed(_mixed(place_N.repeat(len(seed_B)) + low_BN) ^ high_BN).view(len(seed_B), -1)
        self._stream, self._made = stream, _uniform(words_BN).split(list(sizes), dim=1)

    def uniform(self, stream: str, step: int | Tensor, *shape: int) -> Tensor:
        if stream == self._stream and isinstance(step, int) and step < len(self._made) and shape == self._made[step].shape[1:]:
            return self._made[step]
        return super().uniform(stream, step, *shape)


_LOW = (1 << 31) - 1


def _signed(word: int) -> int:
    """The int32 of these 32 bits."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >> 31 else word


_GOLDEN = _signed(0x9E3779B9)


def _words_of(seed: int) -> tuple[int, int]:
    """Low and high 32 bits of a seed, as int32."""
    return _signed(seed), _signed(seed >> 32)


@cache
def _stream_words(stream: str) -> tuple[int, int]:
    return _words_of(seed_of("stream", stream))


def _mixed(x: Tensor) -> Tensor:
    """Integers of 32 bits, each turned into another one that looks random (lowbias32 of Wellons' hash prospector)."""
    # In place from the second line on: dropout mixes one number an activation, and memory sets the pace.
    x = x ^ (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= _signed(0x846CA68B)
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def _absorbed(low: Tensor | int, high: Tensor | int, word: Tensor | int) -> tuple[Tensor, Tensor]:
    """The 64-bit key that follows from a key and one more word: for each word a permutation of all keys, and the other way round."""
    # 0 is the one fixed point of the mixer: the constant keeps small seeds, rows and steps away from it.
    start = _sum(low, word)
    low = _mixed(start + _GOLDEN)
    high = _mixed(low ^ high)
    return _mixed(low + high), high


def _sum(low: Tensor | int, word: Tensor | int) -> Tensor:
    if isinstance(low, int):
        assert isinstance(word, Tensor)
        return word + low
    return low + (_signed(word) if isinstance(word, int) else word)


def _joined(low: Tensor, high: Tensor) -> Tensor:
    """The 64-bit seed of two int32 words."""
    return (high.long() << 32) | (low.long() & 0xFFFFFFFF)


def _places(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


def _blocks(low_B: Tensor, high_B: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Random int32 words (B, *shape): two keyed rounds over the places."""
    place_N = _places(math.prod(shape), low_B.device)
    return _mixed(_mixed(place_N + low_B[:, None]) ^ high_B[:, None]).view(len(low_B), *shape)


def _shared(low: Tensor, high: Tensor, calls: int, shape: tuple[int, ...]) -> Tensor:
    """Random int32 words (*shape) of the row that no batch has."""
    low, high = _absorbed(*_absorbed(low, high, calls), -1)
    return _blocks(low[None], high[None], shape)[0]


def _uniform(words: Tensor) -> Tensor:
    """The upper 24 bits as a number in [0, 1), exact in float32."""
    return (words >> 8 & 0xFFFFFF).float() * 2**-24


def _normal(words: Tensor) -> Tensor:
    """The inverse normal distribution function at the middle of one of 2^23 equal intervals: never infinite, at most 5.3."""
    # 2u - 1 for u = (k + 1/2) / 2^23 is exact in float32.
    return math.sqrt(2) * torch.erfinv((2 * (words >> 9 & 0x7FFFFF) + 1).float() * 2**-23 - 1)


def permutations(length: int, draws: SampleDraws | None, stream: str = "order") -> Tensor:
    """(B, length) one for each sample, from its own seed.

    Raises:
        ValueError: a random order was given no draws.
    """
    if draws is None:
        raise ValueError("a random order needs draws")
    return draws.permutation(stream, 0, length)
