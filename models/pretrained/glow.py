"""Glow (rosinality/glow-pytorch, MIT): weights by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.parts.flows.convolutional import ActNorm, Chain
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import RECORDED, Options, inert, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.zoo.densities.glow.module import Glow
from tokenloom.models.zoo.densities.glow.recipe import glow

FAMILY = "glow"

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    in_channel=used("channels of an image"),
    n_flow=used("steps of a scale"),
    n_block=used("scales"),
    affine=used("affine couplings, or additive ones"),
    conv_lu=used("1x1 convolutions by triangular factors, or by a full matrix"),
    filter_size=used("width of couplings"),
    img_size=used("side of an image"),
    n_bits=used("bits of a value"),
    temp=used("scale of sampled latents"),
    batch=inert("recorded inputs say it"),
)


def config(info: Info) -> Glow.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    return glow(
        scales=c["n_block"],
        steps=c["n_flow"],
        width=c["filter_size"],
        coupling="affine" if c["affine"] else "additive",
        mixing="factors" if c["conv_lu"] else "full",
        bits=c["n_bits"],
        temperature=c["temp"],
    )


def build(info: Info) -> Glow:
    """Our model for the official settings."""
    return config(info).build(signal=signals.image(info["config"]["img_size"], info["config"]["in_channel"]))


class _Names(NameMap):
    """Activation norms have a flag each there, and one for all of them here; an official checkpoint has them set."""

    def load(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flags = [v for k, v in official.items() if k.endswith("actnorm.initialized")]
        return super().load(official) | {"started": torch.tensor(all(bool(f) for f in flags))}

    def dump(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().dump({k: v for k, v in ours.items() if k != "started"})


def names(info: Info) -> NameMap:
    """Official names to ours: three parts a step."""
    c, rules = info["config"], []
    for k in range(c["n_block"]):
        rules += [
            Rename(f"blocks.{k}.prior.conv.{{p}}", f"priors.{k}.conv.{{p}}"),
            Rename(f"blocks.{k}.prior.scale", f"priors.{k}.scale"),
        ]
        for j in range(c["n_flow"]):
            rules += _step(f"blocks.{k}.flows.{j}.", f"flows.{k}.parts.", 3 * j)
    return _Names(*rules)


def _step(official: str, ours: str, at: int) -> list[Rule]:
    mixing = f"{ours}{at + 1}."
    return [
        Rename(f"{official}actnorm.loc", f"{ours}{at}.shift"),
        Rename(f"{official}actnorm.scale", f"{ours}{at}.scale"),
        Ignore(f"{official}actnorm.initialized"),
        Rename(f"{official}invconv.w_l", f"{mixing}lower"),
        Rename(f"{official}invconv.w_u", f"{mixing}upper"),
        Rename(f"{official}invconv.w_s", f"{mixing}log_diagonal"),
        Rename(f"{official}invconv.w_p", f"{mixing}order"),
        Rename(f"{official}invconv.s_sign", f"{mixing}sign"),
        Rename(f"{official}invconv.weight", f"{mixing}matrix", lambda t: t[:, :, 0, 0], lambda t: t[:, :, None, None]),
        *(Ignore(f"{official}invconv.{name}") for name in ("l_eye", "l_mask", "u_mask")),
        *(Rename(f"{official}coupling.net.{i}.{{p}}", f"{ours}{at + 2}.net.{i}.{{p}}") for i in (0, 2)),
        Rename(f"{official}coupling.net.4.{{p}}", f"{ours}{at + 2}.net.4.{{p}}"),
    ]


def outputs(model: Glow, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: likelihood and its parts, both ways, sampling, and the start by data."""
    c = info["config"]
    x = model.binned(255 * inputs["image"], inputs["dequant_uniform"])
    latents, prior, log_determinant = model(x)
    count = math.log(2) * math.prod(model.shape)
    loss = model.bits_per_dimension(prior + log_determinant).mean() + c["n_bits"]
    shared = c["affine"] is False  # additive couplings: one number for all rows
    with torch.no_grad():
        fresh = copy.deepcopy(model)
        for module in fresh.modules():
            if isinstance(module, ActNorm):
                module.shift.zero_()
                module.scale.fill_(1.0)
        fresh.start(x)
        _, fresh_prior, fresh_log = fresh(x)
        noise = [inputs[f"eps_{k}"] for k in range(c["n_block"])]
        result = {
            "x": x,
            "log_p": prior,
            "logdet": log_determinant[0] if shared else log_determinant,
            "loss": loss,
            "loss_log_p": (prior / count).mean(),
            "loss_logdet": (log_determinant / count).mean(),
            "roundtrip": model.inverse(latents),
            "sample": model.inverse(noise, "noise"),
            "init_log_p": fresh_prior,
            "init_logdet": fresh_log[0] if shared else fresh_log,
        }
    result |= {f"z_{k}": z for k, z in enumerate(latents)}
    for k, flow in enumerate(fresh.flows):
        for j in range(c["n_flow"]):
            norm = cast(ActNorm, cast(Chain, flow).parts[3 * j])
            result[f"init_actnorm_{k}_{j}"] = torch.stack([norm.shift.flatten(), norm.scale.flatten()])
    result["loss_grad_norms"] = gradient_norms(model, names(info), loss, info["grad_norm_keys"])
    return {k: v.detach() for k, v in result.items()}
