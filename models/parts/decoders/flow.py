"""Rectified flow from noise to pixels, given tokens (arXiv:2209.03003; FlexTok, arXiv:2502.13967; D-AR, arXiv:2505.23660).

Shapes: B rows, N tokens, Z channels of a token, C H W image.  x_t = (1 - t) noise + t image; the velocity is image - noise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.signals import Shape
from tokenloom.models.parts.decoders.base import GenerativeDecoder, starting_noise
from tokenloom.models.parts.decoders.denoiser import Denoiser
from tokenloom.models.parts.decoders.token_dropout import TokenDropout
from tokenloom.models.parts.nets.base import Inner

NEAREST = 0.05  # to the image: times after 1 - NEAREST count as this one where they divide


class Flow(GenerativeDecoder):
    """Learns the image at a random time; decodes by Euler steps from one fixed noise."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GenerativeDecoder.Config, tag="decoder.flow"):
        """``reveal`` says which tokens condition a step; the net predicts the image, and with it the velocity (arXiv:2511.13720), or the
        velocity itself (``predict: velocity``, as FlexTok and D-AR published), whose squared error is then trained.

        The image's squared error counts ``(1 - t) ** -weighting``: 2 makes it the velocity's error, less leans on noisy times.
        ``steps`` of Euler; ``seed`` of the noise that decoding starts from; ``guidance`` weighs the tokens' velocity against that
        without tokens, 0 is off (arXiv:2207.12598).  A clock u runs evenly through training and decoding, and ``reveal`` goes by it;
        the time is t = u / (u + shift (1 - u)): a ``shift`` above 1 spends more of it on noise, where the tokens matter
        (arXiv:2403.03206, equation 23).
        """

        net: Denoiser.Config
        reveal: TokenDropout
        steps: int = 16
        seed: int = 0
        guidance: float = 0.0
        shift: float = 3.0
        weighting: float = 0.0
        predict: Added[Literal["image", "velocity"]] = "image"

        def __post_init__(self) -> None:
            if self.steps < 1 or self.shift <= 0 or self.weighting < 0:
                raise ConfigError(f"decoder.steps={self.steps}, shift={self.shift}: positive; weighting={self.weighting}: not negative")
            if self.guidance and not self.reveal.null():
                raise ConfigError(f"decoder.guidance={self.guidance}: training must also drop all tokens of some rows (reveal.none)")

    def __init__(self, config: Config, shape: Shape, channels: int, dim: int, length: int) -> None:
        super().__init__()
        config.reveal.check(length, config.steps)
        self.config, self.length = config, length
        self.net = config.net.build(shape=shape, channels=channels, dim=dim, length=length)
        self.unseen = nn.Parameter(0.02 * torch.randn(config.net.width))  # stands for every token that a step does not see
        self.register_buffer("noise", starting_noise(config.seed, channels, *shape), persistent=False)

    def fewest(self, length: int) -> int:
        return max(1, int(self.config.reveal.needed(torch.zeros(1, device="cpu"), length)))

    def losses(self, z_BNZ: Tensor, image_BCHW: Tensor, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``flow``: the trained error; ``reconstruction``: that of the predicted images, unweighted."""
        noise_BCHW = draws.normal(*image_BCHW.shape[1:]).to(image_BCHW)
        u_B, keep_B = draws.uniform(), self.config.reveal.keep(draws, self.length)
        seen_BN, t_B = self.config.reveal.seen(u_B, keep_B, self.length), self.time(u_B.to(image_BCHW))
        t = t_B[:, None, None, None]
        image_hat = self.image((1 - t) * noise_BCHW + t * image_BCHW, t_B, z_BNZ, seen_BN)
        error_B = (image_hat - image_BCHW).square().flatten(1).mean(1)
        weight_B = (1 - t_B).clamp_min(NEAREST) ** -self.config.weighting
        if self.config.predict == "velocity":  # the image that a velocity points to errs 1 - t times as much
            error_B, given_B = error_B / (1 - t_B).clamp_min(1e-6).square(), error_B
            return {"flow": error_B.mean()}, {"reconstruction": given_B.detach().mean()}
        return {"flow": (weight_B * error_B).mean()}, {"reconstruction": error_B.detach().mean()}

    def time(self, u_B: Tensor) -> Tensor:
        """The time at which the clock stands."""
        return u_B / (u_B + self.config.shift * (1 - u_B))

    def image(self, x_BCHW: Tensor, t_B: Tensor, z_BNZ: Tensor, seen_BN: Tensor) -> Tensor:
        """The image that x_t at times (B,) is on the way to, given the tokens where ``seen_BN``."""
        z_BND = self.net.embed(z_BNZ)
        found = self.net(x_BCHW, t_B, torch.where(seen_BN[..., None], z_BND, self.unseen.to(z_BND.dtype)))
        return found if self.config.predict == "image" else x_BCHW + (1 - t_B)[:, None, None, None] * found

    def inner(self, depth: int) -> Inner:
        return self.net.inner(depth)

    def velocity(self, x_BCHW: Tensor, t_B: Tensor, z_BNZ: Tensor, seen_BN: Tensor) -> Tensor:
        """Of x_t at times (B,), given the tokens where ``seen_BN``."""
        image_hat = self.image(x_BCHW, t_B, z_BNZ, seen_BN)
        return (image_hat - x_BCHW) / (1 - t_B).clamp_min(NEAREST)[:, None, None, None]

    def _guided(self, x_BCHW: Tensor, t_B: Tensor, z_BNZ: Tensor, seen_BN: Tensor) -> Tensor:
        w = self.config.guidance
        if not w:
            return self.velocity(x_BCHW, t_B, z_BNZ, seen_BN)
        both = [torch.cat([a, b]) for a, b in ((x_BCHW, x_BCHW), (t_B, t_B), (z_BNZ, z_BNZ), (seen_BN, torch.zeros_like(seen_BN)))]
        given, null = self.velocity(*both).chunk(2)
        return (1 + w) * given - w * null

    @torch.no_grad()
    def trajectory(self, z_BNZ: Tensor, keep_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """After each Euler step x_t and the image that its velocity points to; rows whose tokens have run out stand still."""
        x_BCHW = self.get_buffer("noise").to(z_BNZ).expand(len(z_BNZ), -1, -1, -1)
        guess_BCHW = torch.zeros_like(x_BCHW)
        clock = torch.arange(self.config.steps + 1, device=z_BNZ.device) / self.config.steps
        for u, t, end in zip(clock, self.time(clock).to(z_BNZ), self.time(clock[1:]).to(z_BNZ)):
            u_B = u.expand(len(x_BCHW))
            seen_BN = self.config.reveal.seen(u_B, keep_B, self.length)
            go = (keep_B >= self.config.reveal.needed(u_B, self.length))[:, None, None, None]
            v_BCHW = self._guided(x_BCHW, t.expand(len(x_BCHW)), z_BNZ, seen_BN)
            guess_BCHW = torch.where(go, x_BCHW + (1 - t) * v_BCHW, guess_BCHW)
            x_BCHW = torch.where(go, x_BCHW + (end - t) * v_BCHW, x_BCHW)
            yield x_BCHW, guess_BCHW

    def sample(self, z_BNZ: Tensor, keep_B: Tensor) -> Tensor:
        """The image that the last step points to: where the flow ends, or, for tokens that cover a part of it, its preview."""
        return deque(self.trajectory(z_BNZ, keep_B), maxlen=1)[0][1]  # no earlier step is kept
