"""EAR (shaochenze/EAR, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.energy import EnergySampler, EnergyScore
from tokenloom.models.parts.orders import Masked
from tokenloom.models.pretrained.mar import (
    COMMON,
    DECODER,
    block_names,
    class_names,
    decoding_plan,
    half,
    latents,
    layout_of,
    masked_pass,
    mlp_names,
    orders,
    schedule,
)
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import Options, used
from tokenloom.models.pretrained.parity import ReplayedDraws, ReplayedSamples, calls_of, gradient_norms
from tokenloom.models.zoo.generators.ear import ear

FAMILY = "ear"

Info = Mapping[str, Any]

OPTIONS = Options(
    COMMON,
    DECODER,
    scoreloss_d=used("blocks of the head"),
    scoreloss_w=used("width of the head"),
    score_batch_mul=used("pairs of samples of a target"),
    alpha=used("exponent of distances"),
    noise_channels=used("numbers of noise"),
    train_temperature=used("weight of the distance between two samples"),
    infer_temperature=used("of the head's shifts"),
)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    made = ear(
        head_depth=c["scoreloss_d"],
        head_width=c["scoreloss_w"],
        repeats=c["score_batch_mul"],
        noise=c["noise_channels"],
        alpha=float(c["alpha"]),
        buffer=c["buffer_size"],
        steps=c["num_iter"],
        temperature=c["infer_temperature"],
        classes=c["class_num"],
        dropout=0.0,
        label_dropout=0.0,
    )
    head = replace(made.head, spread=c["train_temperature"])  # type: ignore[type-var]
    guidance = schedule(c["cfg_schedule"], c["cfg_scale"])
    return replace(made, net=half(c, "decoder"), head=head, sampler=replace(made.sampler, guidance=guidance))


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    return config(info).build(layout_of(info["config"]), info["config"]["class_num"])


def names(info: Info) -> NameMap:
    """Official names to ours; the null class is the last of ours."""
    return NameMap(
        class_names(info["config"]),
        Rename("decoder_pos_embed_learned", "feed.position"),
        Rename("mask_token", "feed.table.spare", lambda t: t[0], lambda t: t[None]),
        Rename("z_proj.{p}", "feed.table.map.{p}"),
        *block_names("decoder", "net"),
        *mlp_names("scoreloss.net.", "head.net."),
        Rename("scoreloss.net.noise_embed.{p}", "head.noise.{p}"),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: the head alone, a masked pass with its loss, guided sampling step by step, gradient norms."""
    c, head = info["config"], cast(EnergyScore, model.head)
    x0, masked, z, result = masked_pass(model, info, inputs)
    shape = (2, head.config.repeats, *masked.shape, head.config.noise)
    first, second = inputs["tf_noise_uniform"].view(shape).permute(0, 2, 3, 1, 4)
    loss = head.loss(z, x0, ReplayedDraws(first.contiguous(), second.contiguous()))[masked].mean()
    temperature = cast(EnergySampler, model.sampler.head).temperature
    samples = inputs["head_sample_1"], inputs["head_sample_2"]
    result |= {
        "head_out": head(inputs["head_z"], inputs["head_noise"] + 0.5).detach(),
        "head_out_infer_temperature": head(inputs["head_z"], inputs["head_noise"] + 0.5, temperature).detach(),
        "head_energy_score": head.score(*samples, inputs["head_target"]),
        "loss": loss.detach(),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    labels = Labels(inputs["gen_labels"])
    plan = decoding_plan(orders(inputs, "gen_order_"), cast(Masked, model.order).decoding.cut(model.layout.length))
    draws = ReplayedSamples(labels.rows, {("head", g): inputs[f"gen_noise_uniform_{g}"] for g in range(plan.groups)})
    with calls_of(head, "draw") as calls:
        steps = list(model.decode_steps(labels, model.sampler, draws, plan=plan))
    scales = []
    for g, ((hidden, sampler, moment, *_), drawn) in enumerate(calls):
        scales.append(1 + sampler.guidance.on(moment))
        both = [h.flatten(0, 1) for h in (hidden.cond_BND, hidden.null_BND) if h is not None]
        result |= {f"gen_z_{g}": torch.cat(both), f"gen_tokens_{g}": drawn.data.flatten(0, 1)}
    latent = latents(steps[-1].state[0][: labels.rows], c.get("patch_size", 1))
    return result | {"gen_latent": latent, "gen_cfg_per_iter": torch.tensor(scales)}
