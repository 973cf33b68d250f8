"""The tokenizer of JPEG's bytes.  Shapes: B rows, L tokens, C channels, N blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Tokenizer, TokenLayout, Tokens
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.tokenizers.autoencoder import checked
from tokenloom.models.zoo.tokenizers.jpeg.codec import Ints, Jpeg

END = 256


class JpegTokenizer(Tokenizer):
    """Images (B, C, H, W) to ``length`` bytes and back, by a codec without parameters."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.jpeg"):
        """``quality`` from 1 to 100, tokens an image at most.

        ``chroma``: colour at full resolution (4:4:4), or at half of it (4:2:0), a quarter of the blocks; grey has none.
        After the end symbol rows are filled with it, or (``padding: none``) ragged.
        """

        quality: int
        length: int
        padding: Added[Literal["end", "none"]] = "end"
        chroma: Added[Literal["4:4:4", "4:2:0"]] = "4:4:4"

        @property
        def axis_labels(self) -> dict[str, str]:
            return {"net": "JPEG", "quantizer": "bytes of the file"}

    def __init__(self, config: Config, signal: SignalSpec) -> None:
        super().__init__()
        self.config, self.codec = config, Jpeg(config.quality, signal.channels, *signal.plane, config.chroma)
        if config.length < 6 * self.codec.blocks:  # at most 24 bits a block's mean, and every byte may need another one
            raise ConfigError(
                f"length={config.length}: the means of {self.codec.blocks} blocks alone may need {6 * self.codec.blocks} bytes; "
                "give more, or smaller images"
            )
        self._layout = TokenLayout(grids=((1, config.length),), vocabulary=END + 1, axis="sequence")

    @property
    def layout(self) -> TokenLayout:
        return self._layout

    def encode(self, image_BCHW: Tensor) -> Tokens:
        ids_BL = np.full((len(image_BCHW), self.config.length), END)
        length_B = torch.full((len(image_BCHW),), self.config.length)
        for row, coefficients in enumerate(self.codec.coefficients(image_BCHW)):
            scan = self.codec.fitted(coefficients, self.config.length)
            ids_BL[row, : len(scan)] = list(scan)
            length_B[row] = min(len(scan) + 1, self.config.length)  # the end symbol is a token
        ids = torch.from_numpy(ids_BL).to(self.layout.id_dtype).to(image_BCHW.device)
        return Tokens(ids, self.layout, length_B.to(ids.device) if self.config.padding == "none" else None)

    def coefficients(self, tokens: Tokens) -> Ints:
        """What the bytes of each row up to its end symbol say, repaired where they do not parse: (B, N, 64)."""
        rows = [row[: row.index(END)] if END in row else row for row in checked(tokens, self.layout).tolist()]
        return np.stack([self.codec.read(bytes(row)) for row in rows])

    def files(self, tokens: Tokens) -> list[bytes]:
        """Each row as a complete JPEG file, whatever its ids."""
        return [self.codec.file(self.codec.write(found)) for found in self.coefficients(tokens)]

    def decode(self, tokens: Tokens) -> Tensor:
        return self.codec.image(self.coefficients(tokens)).to(tokens.data.device)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        assert batch.signal is not None, "a tokenizer is measured on images"
        error = (self.decode(self.encode(batch.signal)) - batch.signal).square().mean()
        return {"loss": error, "reconstruction": error, "mse": error}
