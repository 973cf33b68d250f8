"""Latent-consistency decoder: from noise to the latents of a frozen base autoencoder in one or two steps (Layton, arXiv:2503.08377).

Shapes: B rows, N tokens, Z channels of a token, c channels of the base's latents on its grid of h x w, C H W image.
A noisy latent is x + sigma noise, sigma between SMALLEST and ``largest``; the base's latents have about unit variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.signals import Shape
from tokenloom.models.parts.adversarial.loss import Adversarial
from tokenloom.models.parts.decoders.base import GenerativeDecoder, starting_noise
from tokenloom.models.parts.decoders.denoiser import Denoiser
from tokenloom.models.parts.losses import Perceptual, Pixels
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.tokenizers.on_latents import OnLatents, base_of

SMALLEST = 0.002  # noise below this is none
RHO = 7.0  # bends the grid of noise levels towards the small ones (arXiv:2206.00364, equation 5)


class Consistency(OnLatents):
    """f(x, sigma, tokens) gives the clean latent from any point of a noise's path; the base's decoder, frozen, gives the pixels."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GenerativeDecoder.Config, tag="decoder.consistency", label="latent consistency"):
        """Weights of three terms, and how the noise levels lie.

        ``consistency``: neighbours on one path agree (arXiv:2303.01469, definition 1); ``direct``: the first step's latent is the clean
        one; ``pixels``: the image made of it is the original, also by ``perceptual`` and ``adversarial`` losses.  ``levels`` of noise
        grow from the first number to the second over training; decoding starts at ``largest`` and, with two ``steps``, goes on at
        ``middle``; ``seed`` is that of its noise.
        """

        net: Denoiser.Config
        consistency: float = 1.0
        direct: float = 1.0
        pixels: Pixels = Pixels(norm="l2", weight=4.0)
        levels: tuple[int, int] = (10, 40)
        largest: float = 20.0
        middle: float = 0.8
        steps: int = 2
        seed: int = 0
        perceptual: Added[Perceptual.Config | None] = None
        adversarial: Added[Adversarial.Config | None] = None

        def __post_init__(self) -> None:
            if min(self.consistency, self.direct) < 0:
                raise ConfigError(f"decoder.consistency={self.consistency}, direct={self.direct}: must not be negative")
            if not 2 <= self.levels[0] <= self.levels[1]:
                raise ConfigError(f"decoder.levels={list(self.levels)}: at least 2, and not falling")
            if not SMALLEST < self.middle < self.largest or self.steps not in (1, 2):
                raise ConfigError(
                    f"decoder.middle={self.middle}, largest={self.largest}, steps={self.steps}: {SMALLEST} < middle < largest, 1 or 2 steps"
                )

        @property
        def needs(self) -> tuple[str, ...]:
            return ("tokenizer",)

        def build(
            self, *, shape: Shape, channels: int, dim: int, length: int, tokenizer: configs.Config | None = None, **given: Any
        ) -> Consistency:
            return Consistency(self, base_of(tokenizer, shape, channels), dim, length, channels)

    def __init__(self, config: Config, base: Autoencoder, dim: int, length: int, channels: int) -> None:
        super().__init__(base)
        self.config = config
        self.net = config.net.build(shape=self.shape[1:], channels=self.shape[0], dim=dim, length=length)
        if config.adversarial is not None:
            self.adversarial = config.adversarial.build(channels, self.net.out.weight.shape)
        self._perceptual: list[Perceptual] = []  # neither trained nor saved
        self.register_buffer("noise", starting_noise(config.seed, 2, *self.shape)[0], persistent=False)

    def forward(self, x_Bchw: Tensor, sigma_B: Tensor, z_BNZ: Tensor) -> Tensor:
        """The clean latent: c_skip x + c_out net, which is x itself at the smallest noise (arXiv:2303.01469, appendix C)."""
        s = sigma_B[:, None, None, None]
        skip = 1 / ((s - SMALLEST).square() + 1)
        out = (s - SMALLEST) / (s.square() + 1).sqrt()
        return skip * x_Bchw + out * self.net(x_Bchw / (s.square() + 1).sqrt(), sigma_B.log() / 4, self.net.embed(z_BNZ))

    def sigmas(self, place_B: Tensor, levels: int) -> Tensor:
        """Noise levels (B,) at these places on the grid of ``levels``: 0 is the smallest, ``levels - 1`` the largest."""
        low, high = SMALLEST ** (1 / RHO), self.config.largest ** (1 / RHO)
        return (low + place_B / (levels - 1) * (high - low)) ** RHO

    def level_count(self, progress: float) -> int:
        """Levels at this share of the training run: doubled at even intervals from the first number to the last."""
        first, last = self.config.levels
        doublings = math.log2(last / first)
        return min(last, round(first * 2 ** math.floor(progress * (doublings + 1))))

    def losses(self, z_BNZ: Tensor, image_BCHW: Tensor, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        config, levels = self.config, self.level_count(draws.progress)
        x_Bchw = self.clean(image_BCHW)
        noise_Bchw, first_Bchw = draws.normal(2, *self.shape).to(x_Bchw).unbind(1)
        place_B = (draws.uniform().to(x_Bchw) * (levels - 1)).floor()
        low_B, high_B = self.sigmas(place_B, levels), self.sigmas(place_B + 1, levels)
        # one pass for both: the upper one of two neighbours, and the first step of decoding from fresh noise
        top_B = torch.full_like(high_B, config.largest)
        noisy = torch.cat([x_Bchw + high_B[:, None, None, None] * noise_Bchw, x_Bchw + config.largest * first_Bchw])
        high_Bchw, first_hat = self(noisy, torch.cat([high_B, top_B]), z_BNZ.repeat(2, 1, 1)).chunk(2)
        with torch.no_grad():
            low_Bchw = self(x_Bchw + low_B[:, None, None, None] * noise_Bchw, low_B, z_BNZ)
        image_hat = self.pixels(first_hat)
        parts = {
            "reconstruction": config.pixels(image_hat, image_BCHW),
            "direct": config.direct * (first_hat - x_Bchw).square().mean(),
            "consistency": config.consistency * pseudo_huber(high_Bchw - low_Bchw),
        }
        parts |= self._seen(image_hat, image_BCHW, parts["reconstruction"], draws)
        return parts, {"mse": (image_hat.detach().clamp(-1, 1) - image_BCHW).square().mean()}

    def _seen(self, image_hat: Tensor, image_BCHW: Tensor, fidelity: Tensor, draws: Draws) -> dict[str, Tensor]:
        """The perceptual and the adversarial loss of the images of the first step."""
        parts: dict[str, Tensor] = {}
        if (perceptual := self.config.perceptual) is not None:
            if not self._perceptual:
                self._perceptual.append(perceptual.build().to(image_BCHW))
            parts["perceptual"] = perceptual.weight * self._perceptual[0](image_hat, image_BCHW)
            fidelity = fidelity + parts["perceptual"]
        if self.adversarial is not None:
            given = (draws.step, draws.rows, draws.total, draws)
            parts["adversarial"] = self.adversarial.generator_loss(image_hat, fidelity, self.net.out.weight, *given)
        return parts

    def judged(self, z_BNZ: Tensor, image_BCHW: Tensor, draws: Draws) -> Tensor:
        noise_Bchw = draws.normal(*self.shape).to(z_BNZ)
        largest = self.config.largest
        return self.pixels(self(largest * noise_Bchw + self.clean(image_BCHW), z_BNZ.new_full((len(z_BNZ),), largest), z_BNZ))

    def after_step(self, draws: Draws) -> dict[str, float]:
        return {} if self.adversarial is None else self.adversarial.after_step()

    @torch.no_grad()
    def sample(self, z_BNZ: Tensor, keep_B: Tensor) -> Tensor:
        noise, rows = self.get_buffer("noise").to(z_BNZ), len(z_BNZ)
        x_Bchw = z_BNZ.new_zeros(rows, *self.shape)
        for noise_chw, sigma in zip(noise, (self.config.largest, self.config.middle)[: self.config.steps]):
            x_Bchw = self(x_Bchw + sigma * noise_chw, z_BNZ.new_full((rows,), sigma), z_BNZ)
        return self.pixels(x_Bchw)


def pseudo_huber(difference: Tensor, c: float = 0.03) -> Tensor:
    """Mean of sqrt(d^2 + c^2) - c with d a row's root mean square (arXiv:2310.14189, equation 9, per value)."""
    return ((difference.square().flatten(1).mean(1) + c * c).sqrt() - c).mean()
