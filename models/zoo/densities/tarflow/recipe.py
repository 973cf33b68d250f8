"""TarFlow: normalizing flows are capable generative models (Zhai et al. 2024, arXiv:2412.06329).

New: a stack of autoregressive affine flows over image patches, each a causal transformer, in alternating directions; trained on noisy
images by exact likelihood, sampled with guidance and then denoised by the model's own score.
Differs: the prior's variance stays one (released: it follows volume-preserving flows alone); labels are dropped by the step's draws.
Run: tokenloom run smoke_tarflow
Expect: ImageNet 64 2.99 bits a dimension unconditional (patch 2, 8 flows of 8 layers, width 768), FID 2.66 conditional with guidance.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.flows.autoregressive import AutoregressiveFlow, FlowGuidance
from tokenloom.models.zoo.densities.tarflow.module import TarFlow


@register(
    "tarflow",
    kind="density",
    paper="2412.06329",
    tiny={"width": 32, "depth": 1, "head_width": 16, "flows": 2, "patch": 4, "classes": 3, "guidance": 0.5},
)
def tarflow(
    width: int = 768,
    depth: int = 8,
    head_width: int = 64,
    flows: int = 8,
    patch: int = 4,
    classes: int = 0,
    dropout: float = 0.1,
    noise: float = 0.05,
    guidance: float = 0.0,
) -> TarFlow.Config:
    """``flows`` of ``depth`` layers each; ``noise`` of training (0: uniform, for likelihoods)."""
    return TarFlow.Config(
        flow=AutoregressiveFlow.Config(width=width, depth=depth, head_width=head_width),
        flows=flows,
        patch=patch,
        classes=classes,
        dropout=dropout,
        noise=noise,
        sampler=FlowGuidance(weight=guidance),
    )
