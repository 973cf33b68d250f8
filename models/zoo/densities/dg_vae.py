"""DG-VAE: improving variational autoencoders with density gap-based regularization (Zhang et al. 2022, arXiv:2211.00321).

New: in place of each posterior's divergence from the prior, the gap between the density of all posteriors together and that of the prior,
at latents of the batch: neither may posteriors collapse nor the prior have holes.
Differs: images in place of sentences, under a discretised logistic, with MLPs as iwae has them; all posteriors are those of the rows that
a worker has at hand.
Run: tokenloom run smoke_dg_vae
Expect: no size or number is given that this could be held to; mechanism laws (tests/densities/test_vae_objectives.py) carry the proof.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.densities.vae.module import DensityGap, ObjectiveVAE


@register("dg_vae", kind="density", paper="2211.00321", tiny={"latent": 8, "width": 32, "judged": 5})
def dg_vae(
    latent: int = 50, width: int = 200, depth: int = 2, of: Literal["latents", "numbers"] = "numbers", judged: int = 100
) -> ObjectiveVAE.Config:
    """Gaps ``of`` each number of a latent or of whole latents; ``judged`` latents of a row where a likelihood is measured."""
    return ObjectiveVAE.Config(latent=latent, width=width, depth=depth, samples=1, judged=judged, trained=DensityGap(of=of))
