"""The tokenizer that most are: encoder, quantizer, decoder, and the losses that train them.

Shapes: B rows, C channels, H W image, L tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, LayoutError, Quantized, Tokenizer, TokenLayout, Tokens
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.adversarial.loss import Adversarial
from tokenloom.models.parts.losses import LogitLaplace, Perceptual, Pixels
from tokenloom.models.parts.nets.base import Net, PixelDecoder
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import perplexity
from tokenloom.models.parts.quantizers.multiscale import MultiScale
from tokenloom.models.parts.semantic import Semantic
from tokenloom.models.tokenizers.factorised import Factorised


class Autoencoder(Tokenizer):
    """VQGAN (arXiv:2012.09841) with any net of ``models/parts/nets`` and any quantizer of ``models/parts/quantizers``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.autoencoder"):
        """``latent`` channels leave the encoder; a convolution of size ``quant_kernel`` maps them to the codes' and back (0: none).

        ``decoder_latent`` channels enter the decoder; 0: as many as leave the encoder.  ``factorised``: attention in place of the
        convolutions (UniTok).
        """

        net: Net
        quantizer: Quantizer.Config
        latent: int
        decoder_latent: int = 0
        quant_kernel: int = 1
        pixels: Pixels = Pixels()
        perceptual: Perceptual.Config | None = None
        adversarial: Adversarial.Config | None = None
        semantic: Semantic.Config | None = None
        logit_laplace: Added[LogitLaplace | None] = None
        factorised: Added[Factorised.Config | None] = None

        @property
        def needs(self) -> tuple[str, ...]:
            return self.semantic.needs if self.semantic is not None else ()

        def __post_init__(self) -> None:
            if self.latent < 1 or self.decoder_latent < 0 or self.quant_kernel < 0 or (self.quant_kernel and self.quant_kernel % 2 == 0):
                raise ConfigError(f"latent={self.latent}, quant_kernel={self.quant_kernel}: latent positive, kernel odd or 0")
            sides = (self.latent, self.decoder_latent or self.latent)
            if self.quant_kernel == 0 and self.factorised is None and self.quantizer.channels() != sides:
                raise ConfigError(f"latent={sides}: without a quant_kernel it must be the quantizer's {self.quantizer.channels()}")

    def __init__(self, config: Config, signal: SignalSpec, decoder: PixelDecoder | None = None, features: Any = None) -> None:
        """``decoder`` stands in for the net's own; ``features`` describes the classifier of the data."""
        super().__init__()
        self.config = config
        shape, channels = signal.plane, signal.channels
        grid = config.net.grid(shape)
        self._layout = replace(config.quantizer.layout(grid), axis=config.net.axis)
        (taken, given), inner = config.quantizer.channels(), config.decoder_latent or config.latent
        self.encoder_channels = channels
        self.encoder = config.net.encoder(shape, channels, config.latent)
        self.decoder = decoder if decoder is not None else config.net.decoder(shape, channels, inner)
        self.quantizer = config.quantizer.build(grid)
        self.quant_conv, self.post_quant_conv = (_between(config, a, b) for a, b in ((config.latent, taken), (given, inner)))
        self.adversarial = config.adversarial.build(channels, self.decoder.last.shape) if config.adversarial else None
        self.semantic = config.semantic.build(self.decoder, channels, features) if config.semantic else None
        # The perceptual network is neither trained nor saved with the tokenizer, and using one needs no such file.
        self._perceptual: list[Perceptual] = []
        if self.adversarial is not None:
            self.phases = ("autoencoder", "discriminator")

    @property
    def layout(self) -> TokenLayout:
        return self._layout

    def latents(self, image_BCHW: Tensor) -> Tensor:
        """What the quantizer is given, (B, dim, h, w)."""
        return self.quant_conv(self.encoder(image_BCHW))

    def pixels(self, z_BChw: Tensor) -> Tensor:
        """Images of quantized latents, unclamped."""
        return self.decoder(self.post_quant_conv(z_BChw))

    def forward(self, image_BCHW: Tensor, draws: Draws | None = None) -> tuple[Tensor, Quantized]:
        """Unclamped reconstruction and what the quantizer says."""
        quantized = self.quantizer(self.latents(image_BCHW), draws)
        return self.pixels(quantized.z), quantized

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tokens:
        data = self.quantizer.encode(self.latents(image_BCHW))
        return Tokens(data.to(self.layout.id_dtype) if self.layout.discrete else data, self.layout)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        return self.pixels(self._latents(tokens).to(self.decoder.last)).clamp(-1, 1)

    def _latents(self, tokens: Tokens) -> Tensor:
        """What tokens stand for; of a multi-scale quantizer they may be those of some scales alone."""
        grids = tokens.layout.grids
        if isinstance(self.quantizer, MultiScale) and len(grids) < len(self.layout.grids):
            return self.quantizer.of_some(checked(tokens, replace(self.layout, grids=grids)), grids)
        return self.quantizer.lookup(checked(tokens, self.layout))

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        image_BCHW = batch.signal
        assert image_BCHW is not None, "a tokenizer is trained on images"
        if phase == "discriminator":
            assert self.adversarial is not None
            if not self.adversarial.on(draws.step):
                return self.adversarial.idle()
            with torch.no_grad():
                fake_BCHW = self.pixels(self.quantizer.given(self.latents(image_BCHW), draws))
            loss = self.adversarial.discriminator_loss(image_BCHW, fake_BCHW, draws.step, draws)
            return {"loss": loss, "discriminator": loss.detach()}
        inner: list[Tensor] = []
        if self.semantic is None:  # apart, since a context that may be none does not compile
            image_hat, quantized = self(image_BCHW, draws)
        else:
            with self.semantic.listening(self.decoder) as inner:
                image_hat, quantized = self(image_BCHW, draws)
        parts = {"reconstruction": self.config.pixels(image_hat, image_BCHW)}
        if self.config.logit_laplace is not None:
            parts["logit_laplace"] = self.config.logit_laplace(image_hat, image_BCHW)
        if self.config.perceptual is not None:
            parts["perceptual"] = self.config.perceptual.weight * self._perceive(image_hat, image_BCHW)
        if self.adversarial is not None:
            fidelity = torch.stack(list(parts.values())).sum()
            parts["adversarial"] = self.adversarial.generator_loss(
                image_hat, fidelity, self.decoder.last, draws.step, draws.rows, draws.total, draws
            )
        if self.semantic is not None:
            parts["semantic"] = self.semantic(inner[0], image_BCHW)
        for name, z_BChw in quantized.views.items():
            view_BChw = self.pixels(z_BChw)
            target_BChw = F.interpolate(image_BCHW, size=view_BChw.shape[2:], mode="area")
            parts[f"reconstruction_{name}"] = self.config.pixels(view_BChw, target_BChw)
        parts |= self.quantizer.weighed(quantized.losses, image_BCHW[0].numel())
        loss = torch.stack(list(parts.values())).sum()
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()} | self._reports(image_hat, image_BCHW, quantized)

    def _perceive(self, image_hat: Tensor, image_BCHW: Tensor) -> Tensor:
        if not self._perceptual:
            assert self.config.perceptual is not None
            self._perceptual.append(self.config.perceptual.build().to(image_BCHW))
        return self._perceptual[0](image_hat, image_BCHW)

    @torch.no_grad()
    def _reports(self, image_hat: Tensor, image_BCHW: Tensor, quantized: Quantized) -> dict[str, Tensor]:
        """Parts to log: pixel error of the clamped image, and per scale the batch's use and perplexity of the codebook."""
        reports = {"mse": (image_hat.clamp(-1, 1) - image_BCHW).square().mean()}
        if "usage" not in quantized.stats:  # continuous latents
            return reports
        return reports | code_reports(quantized.stats["usage"].to(reports["mse"]), self.layout)

    def phase_parameters(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        wanted = phase == "discriminator"
        return [(n, p) for n, p in super().phase_parameters(phase) if n.startswith("adversarial.") == wanted]

    def begins(self, phase: str) -> int:
        """The discriminator's phase begins when the generator meets it."""
        adversarial = self.config.adversarial
        return adversarial.start if phase == "discriminator" and adversarial is not None else 0

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Vectors and the codebook are free of weight decay."""
        return super().no_decay(name, parameter) or "codebook" in name

    def adopt(self, **roles: nn.Module) -> None:
        if self.semantic is not None:
            self.semantic.adopt(roles.get("features"))

    def after_step(self, draws: Draws) -> dict[str, float]:
        metrics = self.quantizer.after_step(draws)
        return metrics | (self.adversarial.after_step() if self.adversarial is not None else {})

    @torch.no_grad()
    def finish(self, batches: Iterator[Batch]) -> None:
        self.quantizer.finish(self.latents(batch.signal) for batch in batches if batch.signal is not None)

    def on(self, grid: tuple[int, int], quantizer: Quantizer.Config | None = None) -> Autoencoder:
        """This tokenizer for latents of another grid, e.g. of wider images than it was trained on; the nets are shared, not copied.

        Args:
            grid: rows and columns of those latents.
            quantizer: the same quantizer with other sizes (``scales``), if they do not fit the grid.

        Raises:
            ConfigError: the quantizer does not fit the grid.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.config = replace(self.config, quantizer=quantizer or self.config.quantizer)
        other._layout = replace(other.config.quantizer.layout(grid), axis=self.config.net.axis, tokenizer=self._layout.tokenizer)
        other.quantizer = other.config.quantizer.build(grid).to(self.decoder.last)
        other.quantizer.load_state_dict(self.quantizer.state_dict())
        return other.train(self.training)

    def sized(self, shape: tuple[int, int]) -> Autoencoder:
        if type(self) is not Autoencoder:
            return super().sized(shape)  # type: ignore[return-value]
        net = self.config.net
        grid, channels = net.grid(shape), self.encoder_channels
        if net.axis != "grid":
            raise LayoutError("this tokenizer has learned a sequence of tokens for images of its own size")
        encoder = net.encoder(shape, channels, self.config.latent)
        decoder = net.decoder(shape, channels, self.config.decoder_latent or self.config.latent)
        for half, own in ((encoder, self.encoder), (decoder, self.decoder)):
            mine, shapes = own.state_dict(), {name: tensor.shape for name, tensor in half.state_dict().items()}
            if bound := [name for name in mine if shapes.get(name) != mine[name].shape]:
                raise LayoutError(f"this tokenizer is bound to the size of images that it was trained on: it has learned {bound[0]} for it")
            half.load_state_dict(mine, assign=True)
        other, device = self.on(grid, self.config.quantizer.at(grid)), self.decoder.last.device
        other.encoder, other.decoder = encoder.to(device), decoder.to(device)
        return other.train(self.training)

    @torch.no_grad()
    def preview(self, batch: Batch, draws: Draws) -> Tensor:
        """Up to 32 originals, each beside its reconstruction, as one image (C, H, W) in [0, 1]: eight pairs a row."""
        assert batch.signal is not None
        image_BCHW = batch.signal[:32]
        pairs = torch.stack([image_BCHW, self.decode(self.encode(image_BCHW))], 1).flatten(0, 1)
        return grid(pairs.add(1).div(2).clamp(0, 1), columns=min(16, len(pairs)))


def _between(config: Autoencoder.Config, channels_in: int, channels_out: int) -> nn.Module:
    """The map between a net and the quantizer."""
    if config.factorised is not None:
        return config.factorised.build(channels_in, channels_out)
    k = config.quant_kernel
    return nn.Conv2d(channels_in, channels_out, k, padding=k // 2) if k else nn.Identity()


def checked(tokens: Tokens, layout: TokenLayout) -> Tensor:
    """The ids or latents of tokens, after a look at their layout and range.

    Raises:
        LayoutError: foreign tokens, or ids outside of the vocabulary.
    """
    layout.check(tokens.layout)
    if not layout.discrete:
        return tokens.data.float()
    ids = tokens.ids
    for q, size in enumerate(layout.vocabularies or (layout.vocabulary,)):
        part = ids[..., q] if layout.vocabularies else ids
        if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < size:
            which = f"codebook {q}" if layout.vocabularies else "the codebook"
            raise LayoutError(f"ids from {int(part.min())} to {int(part.max())}, {which} has {size} codes")
    return ids


def code_reports(usage_GK: Tensor, layout: TokenLayout) -> dict[str, Tensor]:
    """A batch's use and perplexity of the codebook, per scale or codebook, from the counts of the codes."""
    reports = {}
    for name, counts in zip(group_names(layout), usage_GK):
        reports[f"batch_use{name}"] = (counts > 0).to(counts).mean()
        reports[f"batch_perplexity{name}"] = perplexity(counts)
    return reports


def group_names(layout: TokenLayout) -> list[str]:
    """Suffixes of metrics by scale or by codebook, as the rows of ``usage``; one empty name where there is one group."""
    if len(layout.grids) > 1:
        return [f"_{h}x{w}" for h, w in layout.grids]
    return [f"_book{q}" for q in range(layout.codebooks)] if layout.codebooks > 1 else [""]


def grid(image_BCHW: Tensor, columns: int) -> Tensor:
    """Images side by side in rows of ``columns``, missing ones black: (C, rows H, columns W)."""
    b, c, h, w = image_BCHW.shape
    rows = -(-b // columns)
    padded = torch.cat([image_BCHW, image_BCHW.new_zeros(rows * columns - b, c, h, w)])
    return padded.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)
