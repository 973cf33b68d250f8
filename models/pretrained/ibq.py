"""The quantizer of IBQ (TencentARC/SEED-Voken, Apache-2.0, arXiv:2412.02692): settings, names and recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.zoo.tokenizers.ibq.quantizer import IBQ

FAMILY = "ibq"
WEIGHT = 0.05  # of the entropy loss, as released
OPTIONS = Options(
    n_e=used("codes"),
    e_dim=used("channels of a code"),
    beta=used("weight of the term that moves codes", default=0.25),
    entropy_temperature=used("divides the logits", default=0.01),
    sample_minimization_weight=used("of each vector's entropy", default=1.0),
    batch_maximization_weight=used("of the mean's", default=1.0),
    use_entropy_loss=only(True, why="its numbers are recorded"),
    l2_normalize=only(False, why="released without"),
    remap=only(None, why="a table of codes in use, which no release has"),
    unknown_index=inert("without `remap`"),
    cosine_similarity=inert("upstream stores it and never reads it"),
    hw=used("side of the recorded latents"),
    seed=inert("weights are recorded"),
    kind=inert("of the recording"),
)


def config(info: Mapping[str, Any]) -> IBQ.Config:
    """Our config for ``info["config"]``."""
    c = OPTIONS.read(info)
    sample, batch = c["sample_minimization_weight"], c["batch_maximization_weight"]
    entropy = Entropy(weight=WEIGHT, confidence=sample, diversity=batch, temperature=c["entropy_temperature"])
    return IBQ.Config(codes=c["n_e"], dim=c["e_dim"], beta=c["beta"], entropy=entropy)


def build(info: Mapping[str, Any]) -> IBQ:
    """The quantizer with fresh weights."""
    return cast(IBQ, config(info).build((OPTIONS.read(info)["hw"],) * 2))


def names(info: Mapping[str, Any]) -> NameMap:
    """Official names to ours."""
    return NameMap(Rename("embedding.weight", "codebook"))


def outputs(model: IBQ, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records: ids, codes, losses, gradients."""
    z = inputs["z"].clone().requires_grad_()
    quantized = model(z)
    entropy = model.config.entropy
    assert entropy is not None
    each, mean = entropy.of_logits(z.permute(0, 2, 3, 1).flatten(0, 2) @ model.codebook.T)
    plain = quantized.losses["commitment"] + quantized.losses["codebook"]
    loss = plain + quantized.losses["entropy"]
    found = {
        "quant": quantized.z,
        "ids": quantized.ids,
        "quant_loss": plain,
        "quant_loss_no_entropy": plain,
        "sample_entropy": each,
        "avg_entropy": mean,
        "entropy_loss": quantized.losses["entropy"] / WEIGHT,
        "loss": loss,
        "z_grad": torch.autograd.grad(loss, z, retain_graph=True)[0],
        "codebook_entry": model.lookup(quantized.ids),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    return {k: v.detach() for k, v in found.items()}
