"""Tokenizers that first learn the codes of a base tokenizer, then its pixels (TiTok, arXiv:2406.07550, section 3.3).

Shapes: B rows, C channels, H W image, h w grid of the base, L = h w, K codes of the base, N tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Quantized, Tokenizer
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.nets.queries import ProxyPixels, Queries
from tokenloom.models.parts.nets.vit import patch_grid
from tokenloom.models.tokenizers.autoencoder import Autoencoder, code_reports


class TwoStage(Autoencoder):
    """Stage 1 trains encoder, quantizer and code decoder to name the base's codes (cross-entropy).  Stage 2 leaves encoder and quantizer
    as they are and trains code decoder, code vectors and the base's pixel decoder on pixels.  The base itself is needed in stage 1 only.
    """

    config: Config

    @dataclass(frozen=True, kw_only=True)
    class Config(Autoencoder.Config, tag="model.two_stage"):
        """``stage2`` is the share of the steps that belong to the second stage.

        ``base`` names the base's config for weights that are only used; None trains on the base that is given.
        """

        stage2: float = 0.5
        base: Autoencoder.Config | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.stage2 < 1:
                raise ConfigError(f"stage2={self.stage2}: a share of the steps, at least 0 and less than 1")
            if not isinstance(self.net, Queries):
                raise ConfigError(f"net={type(self.net).__name__}: two stages need the net Queries")

        @property
        def needs(self) -> tuple[str, ...]:
            return ("tokenizer",) if self.base is None else ()

        def build(self, *, signal: SignalSpec, **given: Any) -> TwoStage:
            """The tokenizer of images, on the base whose config is ``tokenizer``.

            Raises:
                ConfigError: no base, or its tokens are not one code at each of the net's patches.
            """
            base = given.pop("tokenizer", None) if self.base is None else self.base
            if base is None:
                raise ConfigError("tokenizer: this tokenizer learns the codes of a base tokenizer and was given none")
            return TwoStage(self, signal, base.build(signal=signal, **given))

    def __init__(self, config: Config, signal: SignalSpec, base: Tokenizer) -> None:
        net, layout = cast(Queries, config.net), base.layout
        if not isinstance(base, Autoencoder) or not layout.discrete or layout.codebooks > 1 or layout.axis != "grid":
            raise ConfigError(f"tokenizer: {type(base).__name__} has no grid of codes with a decoder; use one code a position")
        grid = patch_grid(signal.plane, net.patch)
        if layout.grids != (grid,):
            raise ConfigError(f"net.patch={net.patch}: the patches stand on {grid}, the base's tokens on {layout.grids}")
        codes = net.code_decoder(signal.plane, config.decoder_latent or config.latent, layout.vocabulary)
        super().__init__(config, signal, ProxyPixels(codes, code_vectors(base), base.post_quant_conv, base.decoder))
        # The base is neither trained nor saved with this tokenizer, and using one needs no base.
        self._base: list[Autoencoder] = []

    @property
    def proxy(self) -> ProxyPixels:
        """The decoder: code logits, code vectors, pixels."""
        return cast(ProxyPixels, self.decoder)

    def adopt(self, **roles: nn.Module) -> None:
        """Start the pixel half of the decoder as the trained base's, and keep the base to name codes."""
        tokenizer = roles.get("tokenizer")
        assert isinstance(tokenizer, Autoencoder), "the base of a two-stage tokenizer is an autoencoder"
        self._base = [copy.deepcopy(tokenizer).eval().requires_grad_(False)]
        with torch.no_grad():
            self.proxy.codebook.copy_(code_vectors(tokenizer))
        self.proxy.before.load_state_dict(tokenizer.post_quant_conv.state_dict())
        self.proxy.pixels.load_state_dict(tokenizer.decoder.state_dict())

    def names_codes(self, progress: float) -> bool:
        """Whether the first stage is on at this share of the run."""
        return progress < 1 - self.config.stage2

    def frozen_parameters(self, progress: float) -> tuple[str, ...]:
        if self.names_codes(progress):
            return ("decoder.codebook", "decoder.before.", "decoder.pixels.", "adversarial.")
        return ("encoder.", "quant_conv.", "quantizer.")

    def forward(self, image_BCHW: Tensor, draws: Draws | None = None) -> tuple[Tensor, Quantized]:
        """Unclamped reconstruction and what the quantizer says; the gradient ends at the tokens."""
        with torch.no_grad():
            quantized = self.quantizer(self.latents(image_BCHW))
        quantized.losses = {}
        return self.pixels(quantized.z), quantized

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        if not self.names_codes(draws.progress):
            return super().losses(batch, phase, draws)
        if phase == "discriminator":
            assert self.adversarial is not None
            return self.adversarial.idle()
        image_BCHW = batch.signal
        assert image_BCHW is not None, "a tokenizer is trained on images"
        quantized = self.quantizer(self.latents(image_BCHW), draws)
        logits_BKhw = self.proxy.codes(self.post_quant_conv(quantized.z)).float()
        target_BL = self.base_codes(image_BCHW)
        parts = {"proxy": F.cross_entropy(logits_BKhw.flatten(2), target_BL)} | quantized.losses
        loss = torch.stack(list(parts.values())).sum()
        reports = {"proxy_accuracy": (logits_BKhw.detach().flatten(2).argmax(1) == target_BL).float().mean()}
        if "usage" in quantized.stats:
            reports |= code_reports(quantized.stats["usage"].to(loss.detach()), self.layout)
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()} | reports

    def base_codes(self, image_BCHW: Tensor) -> Tensor:
        """The base's ids (B, L) of images."""
        if not self._base:
            raise ConfigError("tokenizer: the first stage learns the codes of a trained base tokenizer; `adopt` it before training")
        base = self._base[0].to(image_BCHW)
        return base.encode(image_BCHW).ids

    def after_step(self, draws: Draws) -> dict[str, float]:
        if self.names_codes(draws.progress):
            return super().after_step(draws)
        return self.adversarial.after_step() if self.adversarial is not None else {}


@torch.no_grad()
def code_vectors(tokenizer: Autoencoder) -> Tensor:
    """The vector of each code as the decoder's input before ``post_quant_conv``, (K, C)."""
    codes, length = tokenizer.layout.vocabulary, tokenizer.layout.length
    rows = -(-codes // length)
    ids_BL = torch.arange(rows * length).clamp_max(codes - 1).view(rows, length)
    device = next(tokenizer.parameters()).device
    return tokenizer.quantizer.lookup(ids_BL.to(device)).flatten(2).transpose(1, 2).flatten(0, 1)[:codes]
