"""Baseline sequential JPEG (ITU-T T.81) with the example tables of its Annex K: images, coefficients, and the bytes of the scan.

Everything but the entropy-coded scan is the same for all images of one size, so a scan is an image.  Any bytes at all can be read:
what does not parse is repaired.  Shapes: B rows, C channels (1 grey, 3 RGB, coded as YCbCr), H W image, M units of a scan (the
least that holds blocks of all components: 8x8 pixels, or 16x16 where chroma has half the resolution, 4:2:0), N blocks of 8x8 in scan
order (those of a unit one after the other, A.2.3), 64 coefficients in zigzag order.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tokenloom.models.core.config import ConfigError

Ints = NDArray[np.int64]

#: Tables K.1 and K.2, row by row.
QUANTIZATION = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99",
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 " + "99 " * 32,
)
#: Tables K.3 to K.6: how many codes there are of each length from 1 to 16, and their symbols by length.
DC = (
    ("00010501010101010100000000000000", "000102030405060708090a0b"),
    ("00030101010101010101010000000000", "000102030405060708090a0b"),
)
AC = (
    (
        "0002010303020403050504040000017d",
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435363738393a43444546474849"
        "4a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5"
        "c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
    ),
    (
        "00020102040403040705040400010277",
        "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a35363738393a434445464748"
        "494a535455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3"
        "c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa",
    ),
)
#: Row-major index of the k-th coefficient of the zigzag (figure A.6): along the diagonals, every other one upwards.
ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
#: Coefficients at the end of each diagonal: where a spectrum can be cut.
DIAGONALS = tuple(sum(min(d, 14 - d) + 1 for d in range(last + 1)) for last in range(15))
_DC_MIN, _DC_MAX, _AC_MAX = -1024, 1023, 1023
_ZRL, _EOB = 0xF0, 0x00


class Huffman:
    """One code table (Annex C): ``code`` and ``length`` of each symbol, and ``lookup`` of the next 16 bits."""

    def __init__(self, counts: str, symbols: str) -> None:
        self.counts, self.symbols = bytes.fromhex(counts), bytes.fromhex(symbols)
        self.code, self.length = np.zeros(256, np.int64), np.zeros(256, np.int64)
        #: (symbol, length) by the next 16 bits; (0, 0) where no code fits
        self.lookup = [(0, 0)] * (1 << 16)
        code, index = 0, 0
        for length, count in enumerate(self.counts, 1):
            for symbol in self.symbols[index : index + count]:
                self.code[symbol], self.length[symbol] = code, length
                first, last = code << (16 - length), (code + 1) << (16 - length)
                self.lookup[first:last] = [(symbol, length)] * (last - first)
                code += 1
            index, code = index + count, code << 1


@cache
def huffman(kind: str, table: int) -> Huffman:
    """The table of ``dc`` or ``ac`` coefficients, 0 for luminance and 1 for chrominance."""
    return Huffman(*(DC if kind == "dc" else AC)[table])


def quantization(quality: int) -> Ints:
    """Steps in zigzag order, (2, 64): luminance and chrominance; ``quality`` scales the tables as IJG's library does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = np.array([[int(v) for v in table.split()] for table in QUANTIZATION], np.int64)
    return np.clip((base * scale + 50) // 100, 1, 255)[:, ZIGZAG]


def categories(value_N: Ints) -> Ints:
    """Number of bits of the magnitudes (table F.1)."""
    return np.ceil(np.log2(np.abs(value_N) + 1)).astype(np.int64)


class Jpeg:
    """The codec of images of one size and quality."""

    def __init__(self, quality: int, channels: int, height: int, width: int, chroma: Literal["4:4:4", "4:2:0"] = "4:4:4") -> None:
        if not 1 <= quality <= 100:
            raise ConfigError(f"quality={quality}: from 1 to 100")
        if channels not in (1, 3):
            raise ConfigError(f"channels={channels}: JPEG codes grey (1) or RGB (3) images")
        self.channels, self.height, self.width = channels, height, width
        #: Blocks a side of a unit, of each component: luminance has two where chroma has half its resolution.
        self.factors = (2, 1, 1) if channels == 3 and chroma == "4:2:0" else (1,) * channels
        self.side = 8 * self.factors[0]  # pixels of a unit
        self.rows, self.columns = -(-height // self.side), -(-width // self.side)
        self.steps = quantization(quality)
        unit = np.repeat(np.arange(channels), [factor**2 for factor in self.factors])
        #: Component of each block of the scan, and which of the two tables it uses, (N,).
        self.component_N = np.tile(unit, self.rows * self.columns)
        self.table_N = np.minimum(self.component_N, 1)

    @property
    def blocks(self) -> int:
        """Blocks N of an image."""
        return len(self.table_N)

    # --- pixels and coefficients --------------------------------------------------------------------------------

    def coefficients(self, image_BCHW: Tensor) -> Ints:
        """Quantized coefficients (B, N, 64) of images in [-1, 1]."""
        x = ((image_BCHW.detach().cpu().double().clamp(-1, 1) + 1) * 127.5).round()
        if self.channels == 3:
            x = torch.einsum("dc,bchw->bdhw", _FORWARD, x) + torch.tensor([0.0, 128, 128], dtype=x.dtype)[:, None, None]
        x = F.pad(x.round() - 128, (0, self.side * self.columns - self.width, 0, self.side * self.rows - self.height), mode="replicate")
        blocks = torch.cat([self._blocks(x, component) for component in range(self.channels)], 2).flatten(1, 2)
        found = (_DCT @ blocks @ _DCT.T).flatten(2)[..., ZIGZAG]
        steps_N64 = torch.from_numpy(self.steps[self.table_N])
        return legal((found / steps_N64).round().long().numpy())

    def _blocks(self, x_BCHW: Tensor, component: int) -> Tensor:
        """The blocks (B, M, factor^2, 8, 8) of a component of whole units."""
        plane, factor = x_BCHW[:, component : component + 1], self.factors[component]
        if factor < self.factors[0]:  # the mean of each four pixels
            plane = F.avg_pool2d(plane, 2).round()
        tiles = plane[:, 0].unflatten(2, (self.columns, factor, 8)).unflatten(1, (self.rows, factor, 8))
        return tiles.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)

    def image(self, coefficient_BN64: Ints) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], float32, on 256 levels."""
        found = torch.from_numpy(coefficient_BN64 * self.steps[self.table_N]).double()
        blocks = torch.empty_like(found)
        blocks[..., ZIGZAG] = found
        units = (_DCT.T @ blocks.unflatten(2, (8, 8)) @ _DCT).unflatten(1, (self.rows * self.columns, -1))
        parts = units.split([factor**2 for factor in self.factors], 2)
        x = torch.cat([self._plane(part, component) for component, part in enumerate(parts)], 1)[..., : self.height, : self.width]
        if self.channels == 3:
            x = torch.einsum("dc,bchw->bdhw", _BACK, x - torch.tensor([0.0, 128, 128], dtype=x.dtype)[:, None, None])
        return (x.round().clamp(0, 255) / 127.5 - 1).float()

    def _plane(self, block_BMF88: Tensor, component: int) -> Tensor:
        """The pixels (B, 1, H', W') in [0, 255] of a component's blocks; chroma is widened linearly, as IJG's library does."""
        factor = self.factors[component]
        tiles = block_BMF88.unflatten(2, (factor, factor)).unflatten(1, (self.rows, self.columns))
        plane = tiles.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 6).flatten(1, 3)[:, None]
        plane = (plane + 128).round().clamp(0, 255)
        if factor == self.factors[0]:
            return plane
        return F.interpolate(plane, scale_factor=2, mode="bilinear", align_corners=False)

    # --- coefficients and bytes ---------------------------------------------------------------------------------

    def write(self, coefficient_N64: Ints) -> bytes:
        """The entropy-coded scan (F.1.2) of coefficients that are ``legal``."""
        n, chroma = np.arange(len(coefficient_N64)), self.table_N
        tables = {kind: [huffman(kind, t) for t in (0, 1)] for kind in ("dc", "ac")}
        code = {kind: np.stack([t.code for t in pair]) for kind, pair in tables.items()}
        length = {kind: np.stack([t.length for t in pair]) for kind, pair in tables.items()}
        parts: list[tuple[Ints, Ints, Ints]] = []  # sort key, bits, number of bits

        def add(kind: str, block: Ints, key: Ints, symbol: Ints, size: Ints, value: Ints) -> None:
            extra = np.where(value < 0, value + (1 << size) - 1, value)
            parts.append(
                (block * 256 + key, (code[kind][chroma[block], symbol] << size) | extra, length[kind][chroma[block], symbol] + size)
            )

        difference = np.zeros_like(n)  # to the block before of the same component (F.1.1.5.1)
        for component in range(self.channels):
            own = self.component_N == component
            difference[own] = np.diff(coefficient_N64[own, 0], prepend=0)
        add("dc", n, np.zeros_like(n), categories(difference), categories(difference), difference)
        block, place = np.nonzero(coefficient_N64[:, 1:])
        place = place + 1
        value = coefficient_N64[block, place]
        before = np.where(np.diff(block, prepend=-1) > 0, 0, np.concatenate([[0], place[:-1]]) if len(place) else place)
        run, size = place - before - 1, categories(value)
        add("ac", block, 2 * place + 1, (run % 16) << 4 | size, size, value)
        skipped = np.repeat(np.arange(len(run)), run // 16)
        nothing = np.zeros_like(skipped)
        add("ac", block[skipped], 2 * place[skipped], nothing + _ZRL, nothing, nothing)
        ended = n[coefficient_N64[:, 63] == 0]
        nothing = np.zeros_like(ended)
        add("ac", ended, nothing + 255, nothing + _EOB, nothing, nothing)

        key, bits, count = (np.concatenate(column) for column in zip(*parts))
        order = np.argsort(key, kind="stable")
        bits, count = bits[order], count[order]
        left = np.repeat(np.cumsum(count), count) - 1 - np.arange(count.sum())
        stream = (np.repeat(bits, count) >> left) & 1
        stream = np.concatenate([stream, np.ones(-len(stream) % 8, np.int64)])
        return np.packbits(stream.astype(np.uint8)).tobytes().replace(b"\xff", b"\xff\x00")

    def read(self, data: bytes) -> Ints:
        """The coefficients (N, 64) of any bytes (F.2.2).

        Exact for what ``write`` gave.  Otherwise: a marker ends the data, a code that does not exist ends the scan, what is missing
        is zero (blocks without data are flat, with the mean of the block before), bytes left over are ignored.
        """
        found = np.zeros((self.blocks, 64), np.int64)
        data = data[: _marker(data)].replace(b"\xff\x00", b"\xff")
        total = 8 * len(data)
        padded = np.frombuffer(data + bytes(8), np.uint8).astype(np.int64)
        window = (padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]).tolist()
        at, alive, mean = 0, True, [0] * self.channels

        def take(bits: int) -> int:
            return (window[at >> 3] >> (32 - bits - (at & 7))) & ((1 << bits) - 1)

        def signed(size: int) -> int:
            value = take(size)
            return value if size == 0 or value >> (size - 1) else value - (1 << size) + 1

        for block, (component, table) in enumerate(zip(self.component_N.tolist(), self.table_N.tolist())):
            place = 0
            while alive and place < 64:
                symbol, bits = huffman("dc" if place == 0 else "ac", table).lookup[take(16)]
                size = symbol & 15
                if bits == 0 or at + bits + size > total:
                    alive = False
                    break
                at += bits
                value = signed(size)
                at += size
                if place == 0:
                    mean[component] += value
                    place = 1
                elif symbol == _EOB:
                    break
                else:
                    place += symbol >> 4
                    if place < 64:
                        found[block, place] = value
                    place += 1
            found[block, 0] = mean[component] = min(max(mean[component], _DC_MIN), _DC_MAX)
        return found

    def fitted(self, coefficient_N64: Ints, length: int) -> bytes:
        """The scan with as many diagonals of the spectrum as fit into ``length`` bytes (the mean alone, if nothing does)."""
        for kept in reversed(DIAGONALS):
            scan = self.write(np.where(np.arange(64) < kept, coefficient_N64, 0))
            if len(scan) <= length:
                break
        return scan

    def file(self, scan: bytes) -> bytes:
        """The complete JFIF file around a scan."""
        tables = range(2 if self.channels == 3 else 1)

        def segment(marker: int, body: bytes) -> bytes:
            return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body

        sizes = self.height.to_bytes(2, "big") + self.width.to_bytes(2, "big")
        frame = b"".join(bytes([c + 1, 0x11 * factor, min(c, 1)]) for c, factor in enumerate(self.factors))
        selected = b"".join(bytes([c + 1, 0x11 * min(c, 1)]) for c in range(self.channels))
        parts = [b"\xff\xd8", segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0")]
        parts += [segment(0xDB, bytes([t]) + bytes(self.steps[t].tolist())) for t in tables]
        parts += [segment(0xC0, b"\x08" + sizes + bytes([self.channels]) + frame)]
        for t in tables:
            for number, table in ((0, huffman("dc", t)), (0x10, huffman("ac", t))):
                parts.append(segment(0xC4, bytes([number | t]) + table.counts + table.symbols))
        return b"".join([*parts, segment(0xDA, bytes([self.channels]) + selected + b"\0\x3f\0"), scan, b"\xff\xd9"])


def legal(coefficient: Ints) -> Ints:
    """Coefficients (…, 64) clipped to what the tables can code; those of images of 8 bits always are."""
    low, high = np.full(64, -_AC_MAX), np.full(64, _AC_MAX)
    low[0], high[0] = _DC_MIN, _DC_MAX
    return np.clip(coefficient, low, high)


def _marker(data: bytes) -> int:
    """Where the first marker stands: FF followed by anything but 00; the length if there is none."""
    at = data.find(b"\xff")
    while at >= 0 and data[at + 1 : at + 2] == b"\0":
        at = data.find(b"\xff", at + 2)
    return len(data) if at < 0 else at


def _cosines() -> Tensor:
    """The orthonormal 8-point DCT-II (A.3.3)."""
    n = torch.arange(8, dtype=torch.float64, device="cpu")
    k = n[:, None]
    table = torch.cos((2 * n + 1) * k * torch.pi / 16) / 2
    table[0] /= 2**0.5
    return table


# On the CPU, wherever tensors are made by default at the time of the import: methods are found while models are built without memory.
_DCT = _cosines()
_FORWARD, _BACK = (
    torch.tensor(table, dtype=torch.float64, device="cpu")
    for table in (
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
        [[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]],
    )
)
