"""Tokenizers whose decoder samples: an encoder, a quantizer, and a decoder that turns noise into pixels, given the tokens.

Shapes: B rows, C H W image, Z channels of a token, N tokens, h w latent grid ((1, N) for 1-D tokens).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, LayoutError, Tokenizer, TokenLayout, Tokens
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.decoders.base import GenerativeDecoder
from tokenloom.models.parts.decoders.reader import TokenReader
from tokenloom.models.parts.nets.base import Net
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.semantic import Semantic
from tokenloom.models.tokenizers.autoencoder import checked, code_reports, grid
from tokenloom.models.tokenizers.moving_norm import MovingNorm


class FlowTokenizer(Tokenizer):
    """Any net's encoder, any quantizer, any decoder of ``models/parts/decoders``.

    Decoding is deterministic: its noise is fixed.  Where the decoder allows it, a prefix of the tokens decodes too.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.generative_decoder"):
        """Of ``net`` only the encoder is used, on pixels or on what the decoder samples (``reads: latents``).

        ``latent`` channels leave it and are mapped linearly to the quantizer's, standardised if there is a ``norm``; a ``reader`` stands
        between the codes and the decoder.  ``semantic`` aligns features of the decoder's net with a teacher's of the clean image (REPA,
        arXiv:2410.06940).
        """

        net: Net
        quantizer: Quantizer.Config
        latent: int
        decoder: GenerativeDecoder.Config
        norm: MovingNorm.Config | None = None
        reader: Added[TokenReader.Config | None] = None
        semantic: Added[Semantic.Config | None] = None
        reads: Added[Literal["pixels", "latents"]] = "pixels"

        def __post_init__(self) -> None:
            if self.latent < 1:
                raise ConfigError(f"latent={self.latent}: must be positive")

        @property
        def needs(self) -> tuple[str, ...]:
            return self.decoder.needs + (self.semantic.needs if self.semantic is not None else ())

        def build(self, *, signal: SignalSpec, **given: Any) -> FlowTokenizer:
            """The tokenizer of images of this shape.

            Raises:
                ConfigError: net, quantizer and decoder do not fit the shape or each other.
            """
            return FlowTokenizer(self, signal, given)

    def __init__(self, config: Config, signal: SignalSpec, given: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        plane, channels = signal.plane, signal.channels
        if config.reads == "latents":
            plane, channels = config.decoder.source(plane, channels, **given)
        grid = config.net.grid(plane)
        self._layout = replace(config.quantizer.layout(grid), axis=config.net.axis)
        if len(self._layout.grids) > 1:
            raise ConfigError(f"quantizer: {len(self._layout.grids)} scales; a decoder that samples takes one token a position")
        taken, back = config.quantizer.channels()
        self.encoder = config.net.encoder(plane, channels, config.latent)
        self.quant_conv = nn.Conv2d(config.latent, taken, 1)
        self.norm = config.norm.build(taken, grid) if config.norm else None
        self.quantizer = config.quantizer.build(grid)
        self.reader = config.reader.build(back, self._layout.length) if config.reader else None
        dim = config.reader.width if config.reader else back
        self.decoder = config.decoder.build(shape=signal.plane, channels=signal.channels, dim=dim, length=self._layout.length, **given)
        if self.decoder.adversarial is not None:
            self.phases = ("autoencoder", "discriminator")
        self.semantic = config.semantic.build(self.decoder, signal.channels, given.get("features")) if config.semantic else None

    @property
    def layout(self) -> TokenLayout:
        return self._layout

    def latents(self, image_BCHW: Tensor, draws: Draws | None = None) -> Tensor:
        """What the quantizer is given, (B, dim, h, w)."""
        read_BCHW = image_BCHW if self.config.reads == "pixels" else self.decoder.clean(image_BCHW)
        z_BChw = self.quant_conv(self.encoder(read_BCHW))
        return z_BChw if self.norm is None else self.norm(z_BChw, draws)

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tokens:
        data = self.quantizer.encode(self.latents(image_BCHW))
        return Tokens(data.to(self.layout.id_dtype) if self.layout.discrete else data, self.layout)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images of all tokens, or of as many of each row as ``tokens.lengths`` says.

        Raises:
            LayoutError: foreign tokens, or fewer than the decoder needs.
        """
        return self.decoder.sample(*self.conditions(tokens)).clamp(-1, 1)

    def check_prefix(self, keep: int) -> None:
        """Refuse to decode so few or so many tokens alone; raises ``ConfigError``."""
        fewest, length = self.decoder.fewest(self.layout.length), self.layout.length
        if not fewest <= keep <= length:
            raise ConfigError(f"prefix={keep}: this decoder takes the first {fewest} to {length} tokens")

    def decode_prefix(self, tokens: Tokens, keep: int) -> Tensor:
        """Images of the first ``keep`` tokens of every row."""
        lengths_B = torch.full((len(tokens.data),), keep, device=tokens.data.device)
        return self.decode(replace(tokens, data=tokens.data[:, :keep], lengths=lengths_B))

    def conditions(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The vectors (B, N, Z) of tokens, and how many of a row (B,) are there; those after them stand for nothing."""
        data, length = checked(tokens, self.layout), self.layout.length
        full_B = torch.full((len(data),), data.shape[1], device=data.device)
        keep_B = full_B if tokens.lengths is None else tokens.lengths.to(full_B)
        fewest = self.decoder.fewest(length)
        if len(data) and not fewest <= int(keep_B.min()) <= int(keep_B.max()) <= min(length, data.shape[1]):
            raise LayoutError(
                f"{int(keep_B.min())} to {int(keep_B.max())} tokens a row in {data.shape[1]} columns: "
                f"this decoder takes {fewest} to {length}, the first of them present"
            )
        missing = length - data.shape[1]
        padded = torch.cat([data, data.new_zeros(len(data), missing, *data.shape[2:])], 1) if missing > 0 else data[:, :length]
        return self._read(self.quantizer.lookup(padded).to(self.quant_conv.weight)), keep_B

    def _read(self, z_BZhw: Tensor) -> Tensor:
        """Codes as the decoder takes them, (B, N, Z)."""
        z_BNZ = z_BZhw.flatten(2).transpose(1, 2)
        return z_BNZ if self.reader is None else self.reader(z_BNZ)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        image_BCHW = batch.signal
        assert image_BCHW is not None, "a tokenizer is trained on images"
        if phase == "discriminator":
            return self._discriminator(image_BCHW, draws)
        quantized = self.quantizer(self.latents(image_BCHW, draws), draws)
        z_BNZ = self._read(quantized.z)
        if self.semantic is None:
            parts, reports = self.decoder.losses(z_BNZ, image_BCHW, draws)
        else:
            with self.semantic.listening(self.decoder) as inner:
                parts, reports = self.decoder.losses(z_BNZ, image_BCHW, draws)
            parts["semantic"] = self.semantic(inner[0], image_BCHW)
        parts = parts | quantized.losses
        loss = torch.stack(list(parts.values())).sum()
        if "usage" in quantized.stats:
            reports = reports | code_reports(quantized.stats["usage"].to(loss.detach()), self.layout)
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()} | reports

    def _discriminator(self, image_BCHW: Tensor, draws: Draws) -> dict[str, Tensor]:
        """The losses of the decoder's discriminator."""
        adversarial = self.decoder.adversarial
        assert adversarial is not None
        if not adversarial.on(draws.step):
            return adversarial.idle()
        with torch.no_grad():
            z_BNZ = self._read(self.quantizer.given(self.latents(image_BCHW), draws))
            fake_BCHW = self.decoder.judged(z_BNZ, image_BCHW, draws)
        loss = adversarial.discriminator_loss(image_BCHW, fake_BCHW, draws.step, draws)
        return {"loss": loss, "discriminator": loss.detach()}

    def phase_parameters(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        wanted, start = phase == "discriminator", "decoder.adversarial."
        return [(n, p) for n, p in super().phase_parameters(phase) if n.startswith(start) == wanted]

    def begins(self, phase: str) -> int:
        """The discriminator's phase begins when the decoder meets it."""
        adversarial = self.decoder.adversarial
        return adversarial.config.start if phase == "discriminator" and adversarial is not None else 0

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Vectors and the codebook are free of weight decay."""
        return super().no_decay(name, parameter) or "codebook" in name

    def after_step(self, draws: Draws) -> dict[str, float]:
        if self.norm is not None:
            self.norm.after_step()
        return self.quantizer.after_step(draws) | self.decoder.after_step(draws)

    def adopt(self, **roles: nn.Module) -> None:
        self.decoder.adopt(cast("Tokenizer | None", roles.get("tokenizer")))
        if self.semantic is not None:
            self.semantic.adopt(roles.get("features"))

    @torch.no_grad()
    def finish(self, batches: Iterator[Batch]) -> None:
        self.quantizer.finish(self.latents(batch.signal) for batch in batches if batch.signal is not None)

    @torch.no_grad()
    def preview(self, batch: Batch, draws: Draws) -> Tensor:
        """Up to 16 columns of an original above its images from growing shares of the tokens, as one image (C, rows, columns) in [0, 1]."""
        assert batch.signal is not None
        image_BCHW = batch.signal[:16]
        tokens, length = self.encode(image_BCHW), self.layout.length
        fewest = self.decoder.fewest(length)
        counts = sorted({max(fewest, length // share) for share in (8, 4, 2, 1)})
        rows = [image_BCHW, *(self.decode_prefix(tokens, count) for count in counts)]
        return grid(torch.cat(rows).add(1).div(2).clamp(0, 1), columns=len(image_BCHW))
