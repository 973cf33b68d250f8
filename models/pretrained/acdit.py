"""ACDiT (thunlp/ACDiT, MIT): official weights by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.protocols import Conditions, Labels
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.similarity import Normed, Scaled
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import Options, inert, used
from tokenloom.models.pretrained.parity import ReplayedSamples, calls_of, gradient_norms, paired, reorder
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.sampling.solvers import times_of
from tokenloom.models.zoo.generators.acdit.module import ACDiT, SolverSampler
from tokenloom.models.zoo.generators.acdit.net import skip_causal
from tokenloom.models.zoo.generators.acdit.recipe import acdit

FAMILY = ("acdit", "acdit_deep")

Info = Mapping[str, Any]

#: Of the class; official configs hold them under ``model``, with the class's own defaults.
MODEL = Options(
    {k: inert("not used by the class") for k in ("patch_size", "in_channels", "learn_sigma", "num_frames", "spatial_2d")},
    latent_size=used("channels of a token", default=16),
    block_size=used("tokens of a block", default=256),
    hidden_size=used("width", default=1152),
    depth=used("blocks of the net", default=28),
    num_heads=used("its heads, each 64 wide", default=16),
    mlp_ratio=used("hidden width of the MLPs", default=4.0),
    class_dropout_prob=used("share of dropped labels; 0: there is no null class", default=0.1),
    num_classes=used("classes", default=101),
    no_qk_norm=used("queries and keys as they are", default=False),
    ar_len=used("number of blocks", default=4),
    temporal_len=used("frames; 1: an image", default=1),
    spatial_len=used("tokens of a frame, a square", default=1024),
    nd_split=used("shares of a head's channels for the axes, joined by _", default=None),
    square_block=used("blocks are squares of an image, else runs", default=True),
)
OPTIONS = Options(
    {k: inert("recorded inputs say it") for k in ("seed", "batch", "gen_batch")},
    model=used("settings of the class"),
    cfg=used("scale of guidance; up to 1: none"),
    steps=used("of the solver, for each block"),
    scheduler=used("solver: DPM-Solver++ or DDIM, which clips what it predicts", "dpm", "ddim"),
)


def model_of(info: Info) -> dict[str, Any]:
    """Settings of the class.

    Raises:
        ConfigError: an unknown one, or those with which the class itself fails.
    """
    m = MODEL.read({"config": OPTIONS.read(info)["model"]})
    if m["hidden_size"] != 64 * m["num_heads"]:
        raise ConfigError(f"config.model.hidden_size={m['hidden_size']}: the class has heads of 64, so num_heads must be a 64th of it")
    if m["spatial_len"] * m["temporal_len"] != m["block_size"] * m["ar_len"]:
        raise ConfigError(f"config.model.spatial_len={m['spatial_len']}: times temporal_len it must be block_size times ar_len")
    if m["square_block"] and m["temporal_len"] > 1:
        raise ConfigError("config.model.square_block=True: the class has positions of one frame then; with frames give False")
    return m


def config(info: Info) -> ACDiT.Config:
    """Our config for the official settings."""
    c, m = OPTIONS.read(info), model_of(info)
    made = acdit(depth=m["depth"], width=m["hidden_size"], heads=m["num_heads"], blocks=m["ar_len"])
    similarity = Scaled() if m["no_qk_norm"] else Normed(kind="rms")
    own = SolverSampler(steps=c["steps"], solver=c["scheduler"], clip=1.0 if c["scheduler"] == "ddim" else 0.0)
    rate = m["class_dropout_prob"]
    return replace(
        made,
        net=replace(made.net, mlp=GELU.Config(ratio=m["mlp_ratio"]), attention=replace(made.net.attention, similarity=similarity)),
        shape="squares" if m["square_block"] else "runs",
        split=tuple(int(x) for x in m["nd_split"].split("_")) if m["nd_split"] else None,
        condition=ClassCondition.Config(classes=m["num_classes"], dropout=rate, null="row" if rate > 0 else "zero"),
        sampler=Sampler(guidance=Constant(value=max(0.0, c["cfg"] - 1)), head=own),
    )


def build(info: Info) -> ACDiT:
    """Our model for the official settings."""
    m = model_of(info)
    side = math.isqrt(m["spatial_len"])
    if side * side != m["spatial_len"]:
        raise ConfigError(f"config.model.spatial_len={m['spatial_len']}: no square; the class has square frames alone")
    layout = TokenLayout(grids=((side, side),), channels=m["latent_size"], frames=m["temporal_len"])
    return config(info).build(layout, m["num_classes"])


def names(info: Info) -> NameMap:
    """Official names to ours; channels of queries and keys that are turned together are neighbours here."""
    heads, block = model_of(info)["num_heads"], "blocks.{i}."
    # shift, scale, gate of attention, then of the MLP; ours are both gates, both scales, both shifts
    order, last = reorder(2, 5, 1, 4, 0, 3), reorder(1, 0)
    return NameMap(
        Rename("t_embedder.mlp.{i}.{p}", "net.time.net.{i}.{p}"),
        Rename("y_embedder.embedding_table.weight", "condition.table.weight"),
        Rename("x_embedder.weight", "net.enter.weight"),
        Rename(f"{block}norm1.weight", "net.net.norm.branches.{i}.0.weight"),
        Rename(f"{block}norm2.weight", "net.net.norm.branches.{i}.1.weight"),
        Rename(f"{block}attn.qkv.{{p}}", "net.net.attention.{i}.qkv.{p}", *paired(2 * heads, of=3 * heads)),
        Rename(f"{block}attn.q_norm.weight", "net.net.attention.{i}.similarity.q.weight", *paired(1)),
        Rename(f"{block}attn.k_norm.weight", "net.net.attention.{i}.similarity.k.weight", *paired(1)),
        Rename(f"{block}attn.proj.{{p}}", "net.net.attention.{i}.proj.{p}"),
        Rename(f"{block}mlp.fc1.{{p}}", "net.net.mlp.{i}.up.{p}"),
        Rename(f"{block}mlp.fc2.{{p}}", "net.net.mlp.{i}.out.{p}"),
        Rename(f"{block}adaLN_modulation.1.{{p}}", "net.net.norm.maps.{i}.{p}", *order),
        Rename("final_layer.norm_final.weight", "net.net.norm.before.weight"),
        Rename("final_layer.linear.{p}", "net.out.{p}"),
        Rename("final_layer.adaLN_modulation.1.{p}", "net.net.norm.final.{p}", *last),
    )


def outputs(model: ACDiT, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: masks, positions, the training pass, one time for all blocks, and sampling."""
    m, blocks, size = model_of(info), model.config.blocks, model.net.size
    rate, null = m["class_dropout_prob"], m["num_classes"]
    seen = skip_causal(blocks, size, torch.device("cpu"))
    clean, noise, t = inputs["latent"].flatten(1, 2), inputs["noise"].flatten(1, 2), inputs["t"]
    noisy = model.process.noised(clean, noise, t.repeat_interleave(size, 1))
    labels = inputs["labels"]
    if "loss_rand_0" in inputs:
        labels = torch.where(inputs["loss_rand_0"] < rate, null, labels)
    vector = model.condition(Labels(labels)).vector_BD
    predicted = model.net(clean, noisy, t, vector)
    loss = (predicted - noise).square().mean()
    near, far = (model.net.rotations[..., i : i + 2] for i in (0, 2))
    layout = model.layout
    axes = layout.positions[:, (0, 2, 3) if layout.frames > 1 else (2, 3)].T[:, model.get_buffer("sequence")]
    sizes = (*((layout.frames,) if layout.frames > 1 else ()), *layout.grids[0])
    result = {
        "noised": noisy.view_as(inputs["noise"]),
        "mask": seen,
        "position_ids": axes,
        "rope_cos": torch.cat([near[..., 0], far[..., 0]], 1),
        "rope_sin": torch.cat([near[..., 1], far[..., 1]], 1),
        "rope_bases": torch.tensor([(int(8 * n / math.pi) // 100 + 1) * 100 for n in sizes]),
        "model_output": predicted.detach(),
        "loss": loss.detach(),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    for block in range(1, min(3, blocks)):
        rows = torch.cat([torch.arange((block - 1) * size, block * size), (blocks + block) * size + torch.arange(size)])
        columns = torch.cat([torch.arange(block * size), (blocks + block) * size + torch.arange(size)])
        result[f"mask_inference_{block}"] = seen[rows][:, columns]
    with torch.no_grad():
        if rate > 0:
            none = model.condition(Labels(torch.full_like(labels, null))).vector_BD
            result["model_output_shared_t"] = model.net(clean, noisy, t[:, :1].expand(-1, blocks), none)
        return result | sampled(model, info, inputs)


def sampled(model: ACDiT, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sampling from the recorded noise, and what the net predicted in the calls of which the fixture has the outputs."""
    own, labels = cast(SolverSampler, model.sampler.head), Labels(inputs["gen_labels"])
    draws = ReplayedSamples(labels.rows, {("head", i): noise for i, noise in enumerate(inputs["gen_randn_0"])})
    with calls_of(model.net, "denoise") as calls:
        token = model.ordered(model.generate(Conditions.of(labels), model.sampler, draws).data)
    found = {f"gen_pred_{i}": result for i, (_, result) in enumerate(calls)}
    kept = [0, 1, own.steps, own.steps + 1, len(calls) - 1]
    return {
        "gen_timesteps": torch.tensor(times_of(own.solver, own.steps)),
        "gen_latent": token.unflatten(1, (model.config.blocks, -1)),
    } | {name: found[name] for name in {f"gen_pred_{i}" for i in kept if i < len(calls)}}
