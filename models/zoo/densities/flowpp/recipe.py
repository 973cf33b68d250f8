"""Flow++: flow-based models with variational dequantization and architecture design (Ho et al. 2019, arXiv:1902.00275).

New: a flow that sees the image draws the noise that makes its values continuous; couplings go through the distribution function of a
mixture of logistics; gated convolutions and attention condition them.
Differs: activation norms are a channel's, as in the port whose weights load; attention weights are not dropped; a logit is computed as a
difference of logarithms, so that tails invert.
Run: tokenloom run smoke_flowpp
Expect: CIFAR-10 3.08, ImageNet 32 3.86 and ImageNet 64 3.69 bits a dimension.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.densities.flowpp.module import FlowPP
from tokenloom.models.zoo.published.flowpp import FLOWPP


@register(
    "flowpp",
    kind="density",
    paper="1902.00275",
    tiny={"scales": [[0, 1], [1, 0]], "width": 8, "blocks": 1, "components": 4, "dequant": 1, "noise": [1, 2, 4], "drop": 0.0},
    sizes=FLOWPP,
)
def flowpp(
    scales: tuple[tuple[int, int], ...] = ((0, 4), (2, 3)),
    width: int = 96,
    blocks: int = 10,
    components: int = 32,
    dequant: int = 2,
    attention: Literal["yes", "no"] = "yes",
    drop: float = 0.2,
    noise: tuple[int, int, int] = (4, 32, 32),
) -> FlowPP.Config:
    """The CIFAR-10 model by default: of each scale the couplings by channels and by a chessboard; ``dequant`` blocks in each of the
    ``noise``'s flows, of so many components, with so many channels of what they see."""
    return FlowPP.Config(
        scales=scales,
        width=width,
        blocks=blocks,
        components=components,
        dequant=dequant,
        dequant_flows=noise[0],
        dequant_components=noise[1],
        dequant_channels=noise[2],
        attention=attention,
        drop=drop,
    )
