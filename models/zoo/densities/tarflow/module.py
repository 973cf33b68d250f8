"""A stack of autoregressive flows over the patches of an image.

Shapes: B rows, C channels, H W image, T patches, P numbers of a patch, N = C H W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, Density
from tokenloom.models.core.requests import labels_of
from tokenloom.models.core.signals import SignalSpec, text
from tokenloom.models.parts.flows.autoregressive import AutoregressiveFlow, FlowGuidance

#: Values of a pixel: -1 + 2 v / 255 for v from 0 to 255.
LEVELS = 256
STEP = 2 / (LEVELS - 1)


def _growing(schedule: str) -> dict[str, Any]:
    """Guidance along the patches: the same, or growing in a line."""
    if schedule not in ("constant", "linear"):
        raise ConfigError(f"sample.guidance_schedule={schedule!r}: TarFlow's guidance is constant, or linear along the patches")
    return {"sampler.annealed": schedule == "linear"}


class TarFlow(Density):
    """``p(x) = N(f(x); 0, var) |det f'(x)|``, f being flows in alternating directions (arXiv:2412.06329)."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"
    options = {"guidance": lambda weight: {"sampler.weight": float(weight)}, "guidance_schedule": lambda name: _growing(name)}

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.tarflow"):
        """``flows`` of one ``flow`` each, over patches of ``patch`` pixels; ``classes`` (0: none), of which a share ``dropout`` is
        withheld in training.  Training adds normal ``noise`` (0: uniform noise of one level), which sampling takes away again."""

        flow: AutoregressiveFlow.Config
        flows: int = 8
        patch: int = 4
        classes: int = 0
        dropout: float = 0.1
        noise: float = 0.0
        sampler: FlowGuidance = FlowGuidance()

        def __post_init__(self) -> None:
            if min(self.flows, self.patch) < 1 or self.classes < 0 or not 0 <= self.dropout < 1 or not 0 <= self.noise < math.inf:
                raise ConfigError(
                    f"flows={self.flows}, patch={self.patch}, classes={self.classes}, dropout={self.dropout}, noise={self.noise}: flows "
                    "and patch must be positive, classes and noise not negative, dropout in [0, 1)"
                )

        @property
        def axis_labels(self) -> dict[str, str]:
            return {"net": "transformer", "head": "affine flow", "objective": "NLL", "condition": "class" if self.classes else "none"}

        def build(self, *, signal: SignalSpec, **given: Any) -> TarFlow:
            """The density of images of this shape.

            Raises:
                ConfigError: the patch does not divide it.
            """
            if signal.plane[0] % self.patch or signal.plane[1] % self.patch:
                raise ConfigError(f"patch={self.patch}: does not divide the size {text(signal.shape)}")
            return TarFlow(self, (signal.channels, *signal.shape))

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.grid = shape[1] // config.patch, shape[2] // config.patch
        length, channels = self.grid[0] * self.grid[1], shape[0] * config.patch**2
        self.flows = nn.ModuleList(config.flow.build(length, channels, config.classes, i % 2 == 1) for i in range(config.flows))
        self.register_buffer("variance", torch.ones(length, channels))

    @property
    def conditional(self) -> bool:
        """Whether it has classes."""
        return self.config.classes > 0

    def patches(self, x_BCHW: Tensor) -> Tensor:
        """(B, T, P), channel first in a patch."""
        return F.pixel_unshuffle(x_BCHW, self.config.patch).flatten(2).transpose(1, 2)

    def image(self, x_BTP: Tensor) -> Tensor:
        """Inverse of ``patches``."""
        return F.pixel_shuffle(x_BTP.transpose(1, 2).unflatten(2, self.grid), self.config.patch)

    def forward(self, x_BCHW: Tensor, label_B: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor]:
        """z (B, T, P), the output of each flow, and the log-determinant (B,)."""
        x, outputs, total = self.patches(x_BCHW), [], x_BCHW.new_zeros(len(x_BCHW))
        for flow in self.flows:
            x, log_determinant = flow(x, label_B)
            outputs.append(x)
            total = total + log_determinant
        return x, outputs, total

    def inverse(self, z_BTP: Tensor, label_B: Tensor | None, guidance: FlowGuidance | None = None) -> list[Tensor]:
        """z (of the prior's variance) as images (B, C, H, W) and then after each flow from the last to the first: the last is x."""
        x, found = z_BTP, [self.image(z_BTP)]
        for flow in reversed(self.flows):
            x = cast(AutoregressiveFlow, flow).inverse(x, label_B, guidance)
            found.append(self.image(x))
        return found

    def nll(self, x_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        """(B,) negative log-density of real-valued images, a value, without the constant log(2 pi) / 2 (equation 7)."""
        z, _, log_determinant = self(x_BCHW, label_B)
        return 0.5 * z.square().mean((1, 2)) - log_determinant / math.prod(self.shape)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: see ``nll``, of images with noise."""
        x, label = self.signal_of(batch), self._labels(batch.conditions)
        if label is not None:
            label = torch.where(draws.uniform() < self.config.dropout, -1, label)
        noise = self.config.noise * draws.normal(*self.shape) if self.config.noise else STEP * (draws.uniform(*self.shape) - 0.5)
        loss = self.nll(x + noise.to(x), label).mean()
        bits = (loss.detach() + 0.5 * math.log(2 * math.pi) - math.log(STEP)) / math.log(2)
        return {"loss": loss, "bits_per_dimension": bits}

    def log_prob(self, batch: Batch, draws: Draws) -> Tensor:
        """(B,) nats: a bound by uniform noise of one level (arXiv:1511.01844, section 3.1)."""
        x = self.signal_of(batch) + STEP * (draws.uniform(*self.shape) - 0.5)
        z, _, log_determinant = self(x, self._labels(batch.conditions))
        variance = self.get_buffer("variance")
        prior = -0.5 * (z.square() / variance + variance.log() + math.log(2 * math.pi)).sum((1, 2))
        return prior + log_determinant + math.prod(self.shape) * math.log(STEP)

    def sample(self, conditions: Conditions | None, draws: SampleDraws) -> Tensor:
        """One image (B, C, H, W) on the data's levels for each of the draws' samples."""
        label = self._labels(conditions) if conditions is not None else None
        variance = self.get_buffer("variance")
        with torch.no_grad():
            z = draws.normal("latent", 0, *variance.shape).to(variance) * variance.sqrt()
            x = self.inverse(z, label, self.config.sampler)[-1]
        x = self.denoised(x, label).clamp(-1, 1) if self.config.noise else x.clamp(-1, 1)
        return ((x + 1) / STEP).round() * STEP - 1

    def denoised(self, x_BCHW: Tensor, label_B: Tensor | None) -> Tensor:
        """Tweedie's mean ``x + noise^2 d log p / dx`` (equation 9)."""
        with torch.enable_grad():
            x = x_BCHW.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.nll(x, label_B).sum() * math.prod(self.shape), x)
        return (x - self.config.noise**2 * gradient).detach()

    @torch.no_grad()
    def follow(self, z_BTP: Tensor, rate: float = 0.1) -> None:
        """Move the prior's variance towards that of these latents."""
        self.get_buffer("variance").lerp_(z_BTP.square().mean(0), rate)

    def _labels(self, conditions: Conditions | None) -> Tensor | None:
        return labels_of(conditions) if self.config.classes else None
