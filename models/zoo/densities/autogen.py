"""AutoGen: improving latent variable descriptiveness with AutoGen (Mansbridge et al. 2018, arXiv:1806.04480).

New: the data's likelihood and that of perfect reconstructions are bounded together, which is the usual bound whose reconstruction counts
1 + m times.
Differs: images in place of sentences, under a discretised logistic, with MLPs as iwae has them.
Run: tokenloom run smoke_autogen
Expect: no size or number is given that this could be held to; mechanism laws (tests/densities/test_vae_objectives.py) carry the proof.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.densities.vae.module import ObjectiveVAE, Reconstructions


@register("autogen", kind="density", paper="1806.04480", tiny={"latent": 8, "width": 32, "judged": 5})
def autogen(latent: int = 50, width: int = 200, depth: int = 2, more: float = 1.0, judged: int = 100) -> ObjectiveVAE.Config:
    """``more`` perfect reconstructions m; ``judged`` latents of a row where a likelihood is measured."""
    return ObjectiveVAE.Config(latent=latent, width=width, depth=depth, samples=1, judged=judged, trained=Reconstructions(more=more))
