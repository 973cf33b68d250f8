"""Quantizers of vector-quantize-pytorch (lucidrains, MIT): settings, names and recorded numbers.

Shapes: B rows, n vectors, d channels; here they are latents (B, d, 1, n).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.fsq import FSQ
from tokenloom.models.parts.quantizers.gradients import Rotation, Straight
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.quantizers.lfq import LFQ
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename, Rule
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Each, Residual, residual_fsq
from tokenloom.models.zoo.tokenizers.simvq.quantizer import SimVQ

FAMILY = (
    "vqpt_vq",
    "vqpt_vq_cosine",
    "vqpt_vq_ste",
    "vqpt_residual_vq",
    "vqpt_fsq",
    "vqpt_lfq",
    "vqpt_sim_vq",
    "vqpt_residual_fsq",
)


def _vq(kw: Mapping[str, Any]) -> VQ.Config:
    """``VectorQuantize``: moving averages with Laplace's smoothing; the rotation trick unless told otherwise."""
    cosine = bool(kw.get("use_cosine_sim"))
    update = EMA(decay=kw.get("decay", 0.8), smoothing=1e-5, length="unit" if cosine else "free")
    return VQ.Config(
        codebook=Codebook.Config(
            codes=kw["codebook_size"], dim=kw["dim"], metric="cosine" if cosine else "l2", update=update, start=KMeans()
        ),
        beta=kw.get("commitment_weight", 1.0),
        gradient=Rotation() if kw.get("rotation_trick", True) else Straight(),
    )


def config(info: Mapping[str, Any]) -> Quantizer.Config:
    """Our config for ``info["config"]``: the class and its keyword arguments."""
    kind, kw = info["config"]["cls"], info["config"]["kw"]
    if kind == "VectorQuantize":
        return _vq(kw)
    if kind == "ResidualVQ":
        return Residual.Config(stage=_vq(kw), stages=kw["num_quantizers"], gradient=Each())
    if kind == "FSQ":
        return FSQ.Config(levels=tuple(kw["levels"]))
    if kind == "ResidualFSQ":
        return residual_fsq(tuple(kw["levels"]), kw["num_quantizers"])
    if kind == "LFQ":
        entropy = Entropy(weight=kw["entropy_loss_weight"], diversity=kw["diversity_gamma"], floor="least")
        return LFQ.Config(bits=kw["dim"], beta=kw["commitment_loss_weight"], entropy=entropy)
    if kind == "SimVQ":
        return SimVQ.Config(codes=kw["codebook_size"], dim=kw["dim"], gradient=Rotation() if kw.get("rotation_trick") else Straight())
    raise ValueError(f"unknown class {kind!r}")


class Projected(nn.Module):
    """A quantizer between two linear maps, or between none, on vectors (B, n, d)."""

    def __init__(self, quantizer: Quantizer, dim: int) -> None:
        super().__init__()
        self.quantizer = quantizer
        taken = cast(Any, quantizer).config.channels()[0]
        self.inward = nn.Linear(dim, taken) if taken != dim else nn.Identity()
        self.outward = nn.Linear(taken, dim) if taken != dim else nn.Identity()

    def latents(self, x_Bnd: Tensor) -> Tensor:
        """(B, d', 1, n)."""
        return self.inward(x_Bnd).transpose(1, 2)[:, :, None]

    def vectors(self, z_Bd1n: Tensor) -> Tensor:
        """(B, n, d)."""
        return self.outward(z_Bd1n[:, :, 0].transpose(1, 2))


def build(info: Mapping[str, Any]) -> Projected:
    """The quantizer with fresh weights."""
    c = info["config"]
    quantizer = config(info)
    return Projected(quantizer.build((1, c["n"])), c.get("dim") or c["kw"].get("dim") or quantizer.channels()[0])


def _codebook(official: str, ours: str) -> tuple[Rule, ...]:
    """A codebook with its averages; there it has a leading axis of heads, which is 1."""
    pairs = (("embed", "weight"), ("cluster_size", "count"), ("embed_avg", "sums"))
    tables = tuple(
        Rename(f"{official}_codebook.{theirs}", f"{ours}codebook.{mine}", lambda t: t.squeeze(0), lambda t: t.unsqueeze(0))
        for theirs, mine in pairs
    )
    return (*tables, Rename(f"{official}_codebook.initted", f"{ours}codebook.started"))


def names(info: Mapping[str, Any]) -> NameMap:
    """Official names to ours."""
    kind = info["config"]["cls"]
    if kind == "VectorQuantize":
        return NameMap(*_codebook("", "quantizer."))
    if kind == "ResidualVQ":
        return NameMap(*_codebook("layers.{i}.", "quantizer.stages.{i}."))
    if kind == "SimVQ":
        return NameMap(Rename("frozen_codebook", "quantizer.table"), Rename("code_transform.weight", "quantizer.codebook.weight"))
    if kind == "ResidualFSQ":
        return NameMap(Rename("project_in.{p}", "inward.{p}"), Rename("project_out.{p}", "outward.{p}"))
    return NameMap(Ignore("mask"))


def _ids(kind: str, ids: Tensor, dim: int) -> Tensor:
    """Ids as they count them: LFQ takes the first channel as the highest bit."""
    if kind != "LFQ":
        return ids
    return torch.stack([(ids >> i & 1) << (dim - 1 - i) for i in range(dim)]).sum(0)


def outputs(model: Projected, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records: codes and ids, losses, gradients, and the state after a step of training."""
    kind, dim = info["config"]["cls"], inputs["x"].shape[-1]
    model = copy.deepcopy(model)
    quantizer = model.quantizer
    with torch.no_grad():
        quantized = quantizer(model.latents(inputs["x"]))
        found = {
            "quantized": model.vectors(quantized.z),
            "indices": _ids(kind, quantized.ids, dim),
            "decoded_from_indices": model.vectors(quantizer.lookup(quantized.ids)),
        }
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = inputs["x"].clone().requires_grad_()
    draws = Draws.whole(0, 0, len(x))
    z = model.latents(x)
    trained = quantizer(z, draws)
    y = model.vectors(trained.z)
    found |= {"train_quantized": y, "train_indices": _ids(kind, trained.ids, dim)}
    losses = [q.losses["commitment"] for q in cast(Residual, quantizer).run(z)] if kind == "ResidualVQ" else list(trained.losses.values())
    loss = torch.stack(losses).sum() if losses else y.new_zeros(())
    if kind == "ResidualVQ":
        found["losses"] = torch.stack(losses)
    elif losses:
        found["loss"] = loss
    if kind == "LFQ":
        entropy, vectors = cast(LFQ, quantizer).config.entropy, z[:, :, 0].transpose(1, 2).flatten(0, 1)
        assert entropy is not None
        found["per_sample_entropy"], found["batch_entropy"] = entropy.of_bits(vectors, 1.0)
        found["commitment"] = trained.losses["commitment"] / cast(LFQ, quantizer).config.beta
    weight = torch.linspace(-1, 1, y.numel()).view_as(y)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    x_grad, *gradients = torch.autograd.grad((y * weight).sum() + loss, [x, *parameters.values()])
    found["x_grad"] = x_grad
    quantizer.after_step(draws)
    changed = {k: v for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    rules = names(info)
    if parameters:
        found |= {f"param_grad/{k}": v for k, v in rules.dump(dict(zip(parameters, gradients))).items()}
    if changed:
        found |= {f"state_after_train_step/{k}": v for k, v in rules.dump(changed).items()}
    return {k: v.detach() for k, v in found.items()}
