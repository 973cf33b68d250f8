"""TarFlow (apple/ml-tarflow, Apple sample code licence): official weights by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.parts.flows.autoregressive import FlowGuidance
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename
from tokenloom.models.pretrained.options import RECORDED, Options, inert, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.zoo.densities.tarflow.module import TarFlow
from tokenloom.models.zoo.densities.tarflow.recipe import tarflow

FAMILY = "tarflow"

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    {k: inert("of training alone") for k in ("proj_out_gain", "noise_std", "noise_type", "drop_label")},
    in_channels=used("channels of an image"),
    img_size=used("side of an image"),
    patch_size=used("side of a patch"),
    channels=used("width, in heads of 64"),
    num_blocks=used("flows"),
    layers_per_block=used("blocks of a flow"),
    nvp=used("affine flows, or shifts alone"),
    num_classes=used("classes; 0: none"),
    guidance=used("weight of guidance"),
    guide_what=used("what is guided: log-scales a, shifts b", "", "a", "b", "ab"),
    attn_temp=used("temperature of attention without a class"),
    annealed_guidance=used("guidance that grows along the patches"),
)


def config(info: Info) -> TarFlow.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    made = tarflow(
        width=c["channels"],
        depth=c["layers_per_block"],
        flows=c["num_blocks"],
        patch=c["patch_size"],
        classes=c["num_classes"],
    )
    guidance = FlowGuidance(
        weight=c["guidance"] if c["guide_what"] else 0.0,
        what=c["guide_what"] or "ab",
        annealed=c["annealed_guidance"],
        temperature=c["attn_temp"],
    )
    return replace(made, flow=replace(made.flow, scales=c["nvp"]), sampler=guidance)


def build(info: Info) -> TarFlow:
    """Our model for the official settings."""
    c = info["config"]
    return config(info).build(signal=signals.image(c["img_size"], c["in_channels"]))


def names(info: Info) -> NameMap:
    """Official names to ours."""
    block, layer = "blocks.{i}.", "blocks.{i}.attn_blocks.{j}."
    return NameMap(
        Rename("var", "variance"),
        Rename(f"{block}proj_in.{{p}}", "flows.{i}.enter.{p}"),
        Rename(f"{block}proj_out.{{p}}", "flows.{i}.out.{p}"),
        Rename(f"{block}pos_embed", "flows.{i}.position"),
        Rename(f"{block}class_embed", "flows.{i}.classes"),
        Rename(f"{layer}attention.norm.{{p}}", "flows.{i}.net.norm.branches.{j}.0.{p}"),
        Rename(f"{layer}mlp.norm.{{p}}", "flows.{i}.net.norm.branches.{j}.1.{p}"),
        Rename(f"{layer}attention.qkv.{{p}}", "flows.{i}.net.attention.{j}.qkv.{p}"),
        Rename(f"{layer}attention.proj.{{p}}", "flows.{i}.net.attention.{j}.proj.{p}"),
        Rename(f"{layer}mlp.main.0.{{p}}", "flows.{i}.net.mlp.{j}.up.{p}"),
        Rename(f"{layer}mlp.main.2.{{p}}", "flows.{i}.net.mlp.{j}.out.{p}"),
        Ignore(f"{block}attn_mask"),
    )


def outputs(model: TarFlow, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: latents, log-determinants and loss, the prior's variance, the inverse with and without guidance."""
    x, y, z = inputs["x"], inputs.get("y"), inputs["z"]
    count = math.prod(model.shape)
    found, each, log_determinant = model(x, y)
    loss = model.nll(x, y).mean()
    result = {
        "z": found,
        "block_outputs": torch.stack(each, 1),
        "logdets": log_determinant / count,
        "loss": loss,
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    with torch.no_grad():
        without, _, log_determinant = model(x, None)
        labels = inputs.get("gen_y")
        prior = z * model.get_buffer("variance").sqrt()
        plain = model.inverse(prior, labels)
        moved = copy.deepcopy(model)
        moved.follow(found)
        known = None if y is None else y.clamp_min(0)
        result |= {
            "z_uncond": without,
            "logdets_uncond": log_determinant / count,
            "var_after_update": moved.get_buffer("variance"),
            "roundtrip_image": model.inverse(model(x, known)[0], known)[-1],
            "reverse_sequence": torch.stack([model.image(z), *plain[1:]], 1),
            "reverse_guided": model.inverse(prior, labels, model.config.sampler)[-1],
            "reverse_uncond": model.inverse(prior, None)[-1],
        }
    return {k: v.detach() for k, v in result.items()}
