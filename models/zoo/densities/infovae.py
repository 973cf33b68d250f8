"""InfoVAE: information maximizing variational autoencoders (Zhao, Song and Ermon 2017, arXiv:1706.02262).

New: the bound's divergence of each posterior from the prior weighs less, or nothing, and the divergence of all posteriors together from the
prior more, here their maximum mean discrepancy; latents then keep information however flexible the decoder is.
Differs: pixels of 256 values under a discretised logistic, MLPs and one layer of latents, as iwae has them; all latents are those of the
rows that a worker has at hand.
Run: tokenloom run smoke_infovae
Expect: no size or number is given that this could be held to; mechanism laws (tests/densities/test_vae_objectives.py) carry the proof.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.densities.vae.module import Information, ObjectiveVAE


@register("infovae", kind="density", paper="1706.02262", tiny={"latent": 8, "width": 32, "judged": 5, "alpha": 1.0, "weight": 10.0})
def infovae(
    latent: int = 50, width: int = 200, depth: int = 2, alpha: float = 0.0, weight: float = 1000.0, judged: int = 100
) -> ObjectiveVAE.Config:
    """``alpha`` 1 leaves the discrepancy alone (MMD-VAE); ``judged`` latents of a row where a likelihood is measured."""
    return ObjectiveVAE.Config(
        latent=latent, width=width, depth=depth, samples=1, judged=judged, trained=Information(alpha=alpha, weight=weight)
    )
