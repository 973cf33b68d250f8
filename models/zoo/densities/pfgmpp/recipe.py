"""PFGM++: unlocking the potential of physics-inspired generative models (Xu et al. 2023, arXiv:2302.04265).

New: data are charges in a space of D further dimensions, whose field leads noise to them; D sets how heavy the noise's tails are, from
Poisson flow (D = 1) to diffusion (D without end), with the levels, weights and solver of diffusions.
Differs: noise is drawn as a ratio of normal vectors, which is the same distribution, without the released clip of its radius; likelihoods
by the flow's divergence, which the paper does not report.
Run: tokenloom run smoke_pfgmpp
Expect: CIFAR-10 FID 1.91 (D = 2048) unconditional, 1.74 conditional, by 35 evaluations.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.densities.pfgmpp.module import PFGMPP, FieldSampler
from tokenloom.models.zoo.densities.pfgmpp.unet import UNet
from tokenloom.models.zoo.published import pfgmpp as published


@register(
    "pfgmpp",
    kind="density",
    paper="2302.04265",
    tiny={"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [8], "dropout": 0.0, "dims": 32, "classes": 3, "steps": 4},
    sizes=published.PFGMPP,
)
def pfgmpp(
    dims: int = 128,
    width: int = 128,
    multipliers: tuple[int, ...] = (2, 2, 2),
    blocks: int = 4,
    attention: tuple[int, ...] = (16,),
    dropout: float = 0.13,
    times: Literal["positional", "fourier"] = "positional",
    times_multiple: int = 1,
    encoder: Literal["standard", "skip", "residual"] = "standard",
    taps: tuple[int, ...] = (1, 1),
    augment: int = 0,
    classes: int = 0,
    steps: int = 18,
) -> PFGMPP.Config:
    """The CIFAR-10 model by default; ``dims`` 0 is a diffusion."""
    net = UNet.Config(
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        dropout=dropout,
        times=times,
        times_multiple=times_multiple,
        encoder=encoder,
        taps=taps,
        augment=augment,
    )
    return PFGMPP.Config(net=net, dims=dims, classes=classes, sampler=FieldSampler(steps=steps))
