"""Flow++ (chrischute/flowplusplus, MIT): weights by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.parts.flows.convolutional import ActNorm
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import Options, inert, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.zoo.densities.flowpp.module import FlowPP
from tokenloom.models.zoo.densities.flowpp.recipe import flowpp

FAMILY = "flowpp"

Info = Mapping[str, Any]

#: Of the class; official configs hold them under ``model``, with the class's own defaults.
MODEL = Options(
    drop_prob=inert("of training alone"),
    scales=used("couplings of each scale, by channels and by a chessboard", default=((0, 4), (2, 3))),
    in_shape=used("channels, rows and columns", default=(3, 32, 32)),
    mid_channels=used("width", default=96),
    num_blocks=used("blocks of a coupling", default=10),
    num_dequant_blocks=used("of one of the dequantisation; 0: uniform noise", default=2),
    num_components=used("of a mixture", default=32),
    use_attn=used("attention in the blocks", default=True),
)
OPTIONS = Options(
    {k: inert("recorded inputs say it") for k in ("seed", "batch")},
    model=used("settings of the class"),
)


def model_of(info: Info) -> dict[str, Any]:
    """Settings of the class."""
    return MODEL.read({"config": OPTIONS.read(info)["model"]})


def config(info: Info) -> FlowPP.Config:
    """Our config for the official settings."""
    m = model_of(info)
    return flowpp(
        scales=tuple((a, b) for a, b in m["scales"]),
        width=m["mid_channels"],
        blocks=m["num_blocks"],
        components=m["num_components"],
        dequant=m["num_dequant_blocks"],
        attention="yes" if m["use_attn"] else "no",
        drop=0.0,
    )


def build(info: Info) -> FlowPP:
    """Our model for the official settings."""
    channels, rows, columns = model_of(info)["in_shape"]
    return config(info).build(signal=signals.image(rows, channels, columns))


class _Names(NameMap):
    """Activation norms have a flag each there, and one for all of them here; an official checkpoint has them set."""

    def load(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flags = [v for k, v in official.items() if k.endswith("is_initialized")]
        return super().load(official) | {"started": torch.tensor(all(bool(f) for f in flags))}

    def dump(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().dump({k: v for k, v in ours.items() if k != "started"})


def names(info: Info) -> NameMap:
    """Official names to ours: four parts of a list make one step there."""
    m, rules = model_of(info), [Ignore("bounds"), Ignore("{rest}is_initialized")]
    for scale, (by_channels, by_checkers) in enumerate(m["scales"]):
        flow = "flows." + "next." * scale
        rules += steps(f"{flow}channels.", f"channels.{scale}.", by_channels)
        rules += steps(f"{flow}checkers.", f"checkers.{scale}.", by_checkers)
    if m["num_dequant_blocks"]:
        rules += steps("dequant_flows.flows.", "noise.", config(info).dequant_flows)
        rules += [Rename("dequant_flows.aux_conv.0.{p}", "seen.0.{p}")]
        for i in (1, 2, 3):
            rules += gated(f"dequant_flows.aux_conv.{i}.", f"seen.{i}.")
    return _Names(*rules)


def normed(official: str, ours: str) -> list[Rule]:
    """A weight as size and direction."""
    return [Rename(f"{official}weight_g", f"{ours}size"), Rename(f"{official}weight_v", f"{ours}direction")]


def conv(official: str, ours: str) -> list[Rule]:
    """A convolution with a normed weight."""
    return [*normed(f"{official}conv.", f"{ours}weight."), Rename(f"{official}conv.bias", f"{ours}bias")]


def gated(official: str, ours: str) -> list[Rule]:
    """A gated convolution."""
    each = {"conv": "conv", "gate": "gate", "aux_conv": "auxiliary"}
    return [rule for theirs, mine in each.items() for rule in conv(f"{official}{theirs}.", f"{ours}{mine}.")]


def steps(official: str, ours: str, count: int) -> list[Rule]:
    """Activation norm, 1x1 convolution, coupling and flip, so many times."""
    rules: list[Rule] = []
    for i in range(count):
        norm, nn, own = f"{official}{4 * i}.", f"{official}{4 * i + 2}.nn.", f"{ours}couplings.{i}."
        block, mine = f"{nn}mid_convs.{{j}}.", f"{own}blocks.{{j}}."
        rules += [
            Rename(f"{norm}mean", f"{ours}norms.{i}.shift", torch.neg, torch.neg),
            Rename(f"{norm}inv_std", f"{ours}norms.{i}.scale"),
            Rename(f"{official}{4 * i + 1}.weight", f"{ours}mixings.{i}.matrix"),
            *conv(f"{nn}in_conv.", f"{own}enter."),
            *conv(f"{nn}out_conv.", f"{own}out."),
            *normed(f"{nn}rescale.", f"{own}rescale."),
            *gated(f"{block}conv.", f"{mine}conv."),
            Rename(f"{block}norm_1.{{p}}", f"{mine}norm.{{p}}"),
            Rename(f"{block}norm_2.{{p}}", f"{mine}last.{{p}}"),
            *normed(f"{block}attn.in_proj.", f"{mine}attention.enter.weight."),
            *normed(f"{block}attn.gate.", f"{mine}attention.gate.weight."),
            Rename(f"{block}attn.gate.bias", f"{mine}attention.gate.bias"),
        ]
    return rules


def outputs(model: FlowPP, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: likelihood and its parts, the inverse, a sample, and the start by data."""
    image, noise = inputs["image"], inputs["loss_randn_0"] if model.noise is not None else uniform(inputs)
    x, first = model.dequantized(image, noise)
    y, second = model.logits(x)
    z, third = model(y)
    loss = -model.bound(image, noise).mean()
    result = {
        "dequantized": x,
        "dequant_sldj": first,
        "logits": y,
        "logits_sldj": first + second,
        "z": z,
        "sldj": first + second + third,
        "loss": loss,
        "bits_per_dim": loss / (math.log(2) * math.prod(model.shape)),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    with torch.no_grad():
        back = model.inverse(z)
        fresh = copy.deepcopy(model)
        for module in fresh.modules():
            if isinstance(module, ActNorm):
                module.shift.zero_()
                module.scale.fill_(1.0)
        started = fresh(inputs["init_logits"], start=True)
        result |= {
            "roundtrip_logits": back,
            "roundtrip_sldj": -model(back)[1],
            "sample": model.inverse(inputs["z_sample"]).sigmoid(),
            "init_z": started[0],
            "init_sldj": started[1],
        }
    return {k: v.detach() for k, v in result.items()}


def uniform(inputs: Mapping[str, Tensor]) -> Tensor:
    """The recorded uniform noise of the loss."""
    return next(v for k, v in inputs.items() if k.startswith("loss_rand"))
