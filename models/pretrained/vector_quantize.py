"""Quantizers of vector-quantize-pytorch (lucidrains, MIT): settings, names and recorded numbers.

Shapes: B rows, n vectors, d channels; here they are latents (B, d, 1, n).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Fixed, Learned
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.fsq import FSQ, Clamp, Symmetric, Tanh
from tokenloom.models.parts.quantizers.gradients import Rotation, Straight
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.quantizers.lfq import BSQ, LFQ
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.vector_quantize_options import CLASSES as CLASSES
from tokenloom.models.pretrained.vector_quantize_options import OPTIONS as OPTIONS
from tokenloom.models.pretrained.vector_quantize_options import settings
from tokenloom.models.zoo.tokenizers.pq.quantizer import Grouped
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Dropout, Each, Residual, residual_fsq
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
    """``VectorQuantize``: moving averages with Laplace's smoothing; the rotation trick by default."""
    cosine, learned, weight = kw["use_cosine_sim"], bool(kw["learnable_codebook"]), kw["commitment_weight"]
    update: Learned | EMA | Fixed = Learned(weight=weight) if learned else Fixed()
    if not (learned or kw["freeze_codebook"] or kw["ema_update"] is False):
        update = EMA(decay=kw["decay"], smoothing=kw["eps"], length="unit" if cosine else "free")
    dim = kw["codebook_dim"] or kw["dim"]
    metric: Literal["l2", "cosine"] = "cosine" if cosine else "l2"
    return VQ.Config(
        codebook=Codebook.Config(codes=kw["codebook_size"], dim=dim, metric=metric, update=update, start=KMeans()),
        beta=weight,
        gradient=Straight() if kw["rotation_trick"] is False else Rotation(),
        commitment="cross_entropy" if kw["commitment_use_cross_entropy_loss"] else "distance",
    )


def _dropout(kw: Mapping[str, Any]) -> Dropout | None:
    """Stages left out in training; a single stage never is."""
    if not kw["quantize_dropout"] or kw["num_quantizers"] == 1:
        return None
    return Dropout(first=kw["quantize_dropout_cutoff_index"], multiple=kw["quantize_dropout_multiple_of"])


def _lfq(kw: Mapping[str, Any]) -> LFQ.Config:
    """One of ``LFQ``'s codebooks; what is recorded of its entropies is summed over a table of codes."""
    bits = (kw["codebook_size"].bit_length() - 1) if kw["codebook_size"] else kw["dim"]
    entropy = Entropy(weight=kw["entropy_loss_weight"], diversity=kw["diversity_gamma"], floor="least", sums="codes")
    kind = BSQ if kw["spherical"] else LFQ
    return kind.Config(bits=bits, beta=kw["commitment_loss_weight"], entropy=entropy, scale=kw["codebook_scale"])


def _residual_fsq(kw: Mapping[str, Any]) -> Residual.Config:
    levels = tuple(kw["levels"])
    ours = replace(residual_fsq(levels, kw["num_quantizers"]), dropout=_dropout(kw))
    if kw["bound_hard_clamp"]:
        return ours
    limit = kw["soft_clamp_input_value"]
    return replace(ours, stage=FSQ.Config(levels=levels, bound=Symmetric()), limit=(limit,) * len(levels) if limit else ())


def _several(part: Quantizer.Config, count: int, shared: bool = False) -> Quantizer.Config:
    """``count`` of them side by side, or the one alone."""
    return Grouped.Config(part=part, groups=count, books="shared" if shared else "separate") if count > 1 else part


def config(info: Mapping[str, Any]) -> Quantizer.Config:
    """Our config for ``info["config"]``: the class and its keyword arguments."""
    kind, kw = settings(info)
    if kind == "VectorQuantize":
        return _several(_vq(kw), kw["heads"], not kw["separate_codebook_per_head"])
    if kind == "ResidualVQ":
        books: Any = "shared" if kw["shared_codebook"] else "separate"
        return Residual.Config(stage=_vq(kw), stages=kw["num_quantizers"], gradient=Each(), books=books, dropout=_dropout(kw))
    if kind == "FSQ":
        bound = (Clamp() if kw["bound_hard_clamp"] else Symmetric()) if kw["preserve_symmetry"] else Tanh()
        return _several(FSQ.Config(levels=tuple(kw["levels"]), bound=bound), kw["num_codebooks"])
    if kind == "ResidualFSQ":
        return _residual_fsq(kw)
    if kind == "LFQ":
        return _several(_lfq(kw), kw["num_codebooks"])
    return SimVQ.Config(
        codes=kw["codebook_size"],
        dim=kw["dim"],
        weight=kw["commitment_weight"],
        beta=kw["input_to_quantize_commit_loss_weight"],
        table=kw["frozen_codebook_dim"] or 0,
        gradient=Rotation() if kw["rotation_trick"] else Straight(),
    )


class CosineLinear(nn.Module):
    """Cosines of the input and the columns of ``weight`` (d, d'), times ``scale``."""

    def __init__(self, dim: int, taken: int, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(dim, taken)), scale

    def forward(self, x_Bnd: Tensor) -> Tensor:
        return F.normalize(x_Bnd, dim=-1) @ F.normalize(self.weight, dim=0) * self.scale


class Projected(nn.Module):
    """A quantizer between two linear maps, or between none, on vectors (B, n, d)."""

    def __init__(self, quantizer: Quantizer, dim: int, kw: Mapping[str, Any]) -> None:
        super().__init__()
        # residual FSQ bounds what enters its stages itself
        self.quantizer, self.limit = quantizer, None if isinstance(quantizer, Residual) else kw.get("soft_clamp_input_value")
        taken, bias = cast(Any, quantizer).config.channels()[0], kw.get("projection_has_bias", True)
        mapped = taken != dim if kw.get("has_projections") is None else kw["has_projections"]
        self.inward: nn.Module = nn.Linear(dim, taken, bias=bias) if mapped else nn.Identity()
        self.outward = nn.Linear(taken, dim, bias=bias) if mapped else nn.Identity()
        if mapped and kw.get("cosine_sim_project_in"):
            self.inward = CosineLinear(dim, taken, kw.get("cosine_sim_project_in_scale") or kw.get("codebook_scale", 1.0))
        if mapped and kw.get("layernorm_after_project_in"):
            self.inward = nn.Sequential(self.inward, nn.LayerNorm(taken))

    def latents(self, x_Bnd: Tensor) -> Tensor:
        """(B, d', 1, n)."""
        z_Bnd = self.inward(x_Bnd)
        if self.limit is not None:
            z_Bnd = torch.tanh(z_Bnd / self.limit) * self.limit
        return z_Bnd.transpose(1, 2)[:, :, None]

    def vectors(self, z_Bd1n: Tensor) -> Tensor:
        """(B, n, d)."""
        return self.outward(z_Bd1n[:, :, 0].transpose(1, 2))


def build(info: Mapping[str, Any]) -> Projected:
    """The quantizer with fresh weights."""
    c, (_, kw), quantizer = OPTIONS.read(info), settings(info), config(info)
    return Projected(quantizer.build((1, c["n"])), c["dim"] or kw["dim"] or quantizer.channels()[0], kw)


def _codebook(official: str, ours: list[str], kw: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Codebooks with their averages; there one tensor has a leading axis of heads, whose tables are ``ours``."""

    def table(theirs: str, mine: str) -> Rule:
        return Rule(
            (f"{official}_codebook.{theirs}",),
            tuple(f"{o}codebook.{mine}" for o in ours),
            lambda t: list(t[0].unbind(0)),
            lambda t: [torch.stack(t)],
        )

    started = Rule(
        (f"{official}_codebook.initted",),
        tuple(f"{o}codebook.started" for o in ours),
        lambda t: t * len(ours),
        lambda t: t[:1],
    )
    averages = (table("cluster_size", "count"), table("embed_avg", "sums"))
    if not isinstance(_vq(kw).codebook.update, EMA):
        averages = (Ignore(f"{official}_codebook.cluster_size"), Ignore(f"{official}_codebook.embed_avg"))
    return (table("embed", "weight"), *averages, started)


def _shared(rules: Sequence[Rule], stages: int) -> tuple[Rule, ...]:
    """The same for each stage of a shared codebook: official files repeat it."""

    def repeated(rule: Rule) -> Rule:
        (name,) = rule.official
        names = tuple(f"layers.{i}.{name}" for i in range(stages))
        return Rule(names, rule.ours, lambda t: rule.load(t[:1]), lambda t: rule.dump(t) * stages)

    return tuple(repeated(rule) for rule in rules)


_MAPS = (Rename("project_in.{p}", "inward.{p}"), Rename("project_out.{p}", "outward.{p}"))


def names(info: Mapping[str, Any]) -> NameMap:
    """Official names to ours."""
    kind, kw = settings(info)
    if kind == "VectorQuantize":
        heads = kw["heads"]
        parts = range(heads if kw["separate_codebook_per_head"] else 1)
        ours = [f"quantizer.parts.{i}." for i in parts] if heads > 1 else ["quantizer."]
        return NameMap(*_MAPS, *_codebook("", ours, kw))
    if kind == "ResidualVQ":
        if kw["shared_codebook"]:
            return NameMap(*_MAPS, *_shared(_codebook("", ["quantizer.stages.0."], kw), kw["num_quantizers"]))
        return NameMap(*_MAPS, *_codebook("layers.{i}.", ["quantizer.stages.{i}."], kw))
    if kind == "SimVQ":
        return NameMap(Rename("frozen_codebook", "quantizer.table"), Rename("code_transform.weight", "quantizer.codebook.weight"))
    return NameMap(*_MAPS, Ignore("mask"))


def _ids(info: Mapping[str, Any], ids: Tensor) -> Tensor:
    """Ids as they count them: LFQ takes the first channel as the highest bit, and keeps an axis of a single codebook if asked to."""
    kind, kw = settings(info)
    if kind == "LFQ":
        bits = _lfq(kw).bits
        ids = torch.stack([(ids >> i & 1) << (bits - 1 - i) for i in range(bits)]).sum(0)
    return ids[..., None] if kw.get("keep_num_codebooks_dim") and ids.ndim == 2 else ids


def _binary(quantizer: Quantizer, z: Tensor) -> dict[str, Tensor]:
    """Entropies and commitment of one or several binary codebooks, means over them."""
    parts = [cast(LFQ, p) for p in quantizer.parts] if isinstance(quantizer, Grouped) else [cast(LFQ, quantizer)]
    found = []
    for part, piece in zip(parts, z.chunk(len(parts), 1)):
        entropy = part.config.entropy
        assert entropy is not None
        commitment = part(piece).losses["commitment"] / (part.config.beta or 1.0)
        found.append((*entropy.of_bits(part.enter(piece).flatten(0, 2), part.scale), commitment))
    return {name: torch.stack(values).mean() for name, values in zip(("per_sample_entropy", "batch_entropy", "commitment"), zip(*found))}


def outputs(model: Projected, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records: codes and ids, losses, gradients, and the state after a step of training."""
    kind, kw = settings(info)
    model = copy.deepcopy(model)
    quantizer = model.quantizer
    with torch.no_grad():
        quantized = quantizer(model.latents(inputs["x"]))
        found = {
            "quantized": model.vectors(quantized.z),
            "indices": _ids(info, quantized.ids),
            "decoded_from_indices": model.vectors(quantizer.lookup(quantized.ids)),
        }
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = inputs["x"].clone().requires_grad_()
    draws = Draws.whole(0, 0, len(x))
    if (seed := OPTIONS.read(info)["rand_quantize_dropout_fixed_seed"]) is not None:
        kept = _kept(kw, seed)
        quantizer.kept = lambda draws: kept  # type: ignore[assignment]
    z = model.latents(x)
    trained = quantizer(z, draws)
    y = model.vectors(trained.z)
    found |= {"train_quantized": y, "train_indices": _ids(info, trained.ids)}
    each = cast(Residual, quantizer).run(z) if kind == "ResidualVQ" else [trained]
    loss = torch.stack([sum(q.losses.values(), y.new_zeros(())) for q in each])
    # A codebook that is a parameter has one distance there, with both gradients, and two equal ones here.
    recorded = torch.stack([q.losses["commitment"] for q in each]) if kw.get("learnable_codebook") else loss
    if kind == "ResidualVQ":
        found["losses"] = recorded
    elif trained.losses:
        found["loss"] = recorded[0]
    if kind == "LFQ":
        found |= _binary(quantizer, z)
    weight = torch.linspace(-1, 1, y.numel()).view_as(y)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    x_grad, *gradients = torch.autograd.grad((y * weight).sum() + loss.sum(), [x, *parameters.values()])
    found["x_grad"] = x_grad
    quantizer.after_step(draws)
    changed = {k: v for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    rules = names(info)
    if parameters:
        found |= {f"param_grad/{k}": v for k, v in rules.dump(dict(zip(parameters, gradients))).items()}
    if changed:
        found |= {f"state_after_train_step/{k}": v for k, v in rules.dump(changed).items()}
    return {k: v.detach() for k, v in found.items()}


def _kept(kw: Mapping[str, Any], seed: int) -> int:
    """How many stages code in training, by upstream's draw."""
    stages, dropout = kw["num_quantizers"], _dropout(kw)
    return stages if dropout is None else dropout.completed(Random(seed).randrange(dropout.first, stages), stages)
