"""ARFlow: autoregressive flow with hybrid linear attention (Hui et al. 2025, arXiv:2501.16085).

New: a flow sees a causally ordered sequence of images of one class, noisier ones first; attention inside an image and a gated linear
recurrence between images make the sequence affordable, and sampling carries the state of its own noisier steps.
Differs: the other images of a sequence are drawn among the rows of the class that a worker has at hand; guidance mixes all channels where
the released sampler mixes the first three.
Run: tokenloom run smoke_arflow
Expect: ImageNet 128 FID 4.34 (XL/2, guidance 1.5) after 400,000 steps.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.flows.matching import FlowSampler
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.arflow.module import ARFlow
from tokenloom.models.zoo.published.arflow import ARFLOW


@register(
    "arflow",
    kind="generator",
    paper="2501.16085",
    tiny={"depth": 2, "width": 32, "heads": 2, "images": 4, "steps": 4},
    codec="kl",
    sizes=ARFLOW,
)
def arflow(
    depth: int = 28,
    width: int = 1152,
    heads: int = 18,
    ratio: float = 4.0,
    patch: int = 1,
    images: int = 5,
    outputs: Literal["once", "twice"] = "once",
    steps: int = 250,
    guidance: float = 0.5,
    classes: int | None = None,
    label_dropout: float = 0.1,
) -> ARFlow.Config:
    """ARFlow-XL by default: sequences of so many ``images``, ``steps`` of the stochastic flow."""
    return ARFlow.Config(
        width=width,
        depth=depth,
        heads=heads,
        ratio=ratio,
        patch=patch,
        images=images,
        outputs=outputs,
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=guidance), head=FlowSampler(steps=steps, solver="sde")),
    )
