"""ARFlow (TheFllood/ARFlow, MIT): official weights by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.protocols import Labels
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.flows.matching import FlowSampler
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import TRAINING, Options, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms, reorder
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.arflow.module import ARFlow
from tokenloom.models.zoo.generators.arflow.net import hybrid
from tokenloom.models.zoo.generators.arflow.recipe import arflow

FAMILY = "arflow"

Info = Mapping[str, Any]

#: Channels that the released sampler guides.
GUIDED = 3

#: Of the class; official configs hold them under ``model``, with the class's own defaults.
MODEL = Options(
    {k: TRAINING[k] for k in ("drop_rate", "attn_drop_rate", "drop_path_rate")},
    input_size=used("side of the latents", default=32),
    patch_size=used("side of a patch", default=2),
    in_channels=used("channels of a latent", default=4),
    hidden_size=used("width", default=1152),
    depth=used("blocks", default=28),
    num_heads=used("heads", default=16),
    mlp_ratio=used("hidden width of the MLPs", default=4.0),
    class_dropout_prob=used("share of dropped labels; 0: there is no null class", default=0.1),
    num_classes=used("classes", default=1000),
    learn_sigma=used("as many outputs again, which nothing reads", default=True),
)
TRANSPORT = Options(
    {k: inert("of other paths and predictions") for k in ("loss_weight", "train_eps", "sample_eps")},
    path_type=only("Linear", why="other paths are not built"),
    prediction=only("velocity", why="other predictions are not built"),
)
SDE = Options(
    sampling_method=only("Euler", why="the class's Heun step does not run"),
    diffusion_form=only("sigma", why="other diffusions are not built"),
    diffusion_norm=only(1.0, 1, why="other diffusions are not built"),
    last_step=used("the last step: with the score, or the velocity alone", "Mean", "Euler", default="Mean"),
    last_step_size=used("its length", default=0.04),
    num_steps=used("runs of the net", default=250),
)
OPTIONS = Options(
    {k: inert("recorded inputs say it") for k in ("seed", "batch", "gen_batch", "frames")},
    model=used("settings of the class"),
    transport=used("settings of the flow"),
    sde=used("settings of its sampler"),
    cfg=used("scale of guidance"),
)


def model_of(info: Info) -> dict[str, Any]:
    """Settings of the class."""
    c = OPTIONS.read(info)
    TRANSPORT.read({"config": c["transport"]})
    return MODEL.read({"config": c["model"]})


def config(info: Info) -> ARFlow.Config:
    """Our config for the official settings."""
    c, m = OPTIONS.read(info), model_of(info)
    s, rate = SDE.read({"config": c["sde"]}), m["class_dropout_prob"]
    made = arflow(
        depth=m["depth"],
        width=m["hidden_size"],
        heads=m["num_heads"],
        ratio=m["mlp_ratio"],
        patch=m["patch_size"],
        outputs="twice" if m["learn_sigma"] else "once",
    )
    own = FlowSampler(
        steps=s["num_steps"], solver="sde", last=s["last_step_size"], final="drift" if s["last_step"] == "Mean" else "velocity"
    )
    return replace(
        made,
        guided=min(GUIDED, m["in_channels"]),
        condition=ClassCondition.Config(classes=m["num_classes"], dropout=rate, null="row" if rate > 0 else "zero"),
        sampler=Sampler(guidance=Constant(value=c["cfg"] - 1), head=own),
    )


def build(info: Info) -> ARFlow:
    """Our model for the official settings."""
    m = model_of(info)
    return config(info).build(TokenLayout(grids=((m["input_size"],) * 2,), channels=m["in_channels"]), m["num_classes"])


def names(info: Info) -> NameMap:
    """Official names to ours."""
    block = "blocks.{i}."
    maps = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "g_proj": "g", "gt_proj": "gate", "out_proj": "out"}
    m = model_of(info)
    shape = (m["in_channels"], m["patch_size"], m["patch_size"])
    return NameMap(
        Rename("pos_embed", "position"),
        Rename("x_embedder.proj.weight", "enter.weight", lambda t: t.flatten(1), lambda t: t.unflatten(1, shape)),
        Rename("x_embedder.proj.bias", "enter.bias"),
        Rename("t_embedder.mlp.{i}.{p}", "time.net.{i}.{p}"),
        Rename("y_embedder.embedding_table.weight", "condition.table.weight"),
        *(Rename(f"{block}attn.{theirs}.weight", f"net.attention.{{i}}.{ours}.weight") for theirs, ours in maps.items()),
        Rename(f"{block}mlp.fc1.{{p}}", "net.mlp.{i}.up.{p}"),
        Rename(f"{block}mlp.fc2.{{p}}", "net.mlp.{i}.out.{p}"),
        # shift, scale, gate of attention, then of the MLP; ours are both gates, both scales, both shifts
        Rename(f"{block}adaLN_modulation.1.{{p}}", "net.norm.maps.{i}.{p}", *reorder(2, 5, 1, 4, 0, 3)),
        Rename("final_layer.adaLN_modulation.1.{p}", "net.norm.final.{p}", *reorder(1, 0)),
        Rename("final_layer.linear.{p}", "out.{p}"),
    )


def tokens(x: Tensor) -> Tensor:
    """(…, L, C) of latents (…, C, H, W)."""
    return x.flatten(-2).transpose(-1, -2)


def latents(x: Tensor) -> Tensor:
    """Inverse of ``tokens``, of squares."""
    side = math.isqrt(x.shape[-2])
    return x.transpose(-1, -2).unflatten(-1, (side, side))


def outputs(model: ARFlow, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: both forms of the net, the recurrence by itself, the loss, and sampling."""
    m = model_of(info)
    rate, null = m["class_dropout_prob"], m["num_classes"]

    def vector(labels: Tensor, uniform: Tensor | None) -> Tensor:
        kept = labels if uniform is None else torch.where(uniform < rate, null, labels)
        return model.condition(Labels(kept)).vector_BD

    t = inputs["loss_rand_1"].sort(1).values
    own = vector(inputs["labels"], inputs.get("loss_rand_2"))
    pred, loss = model.errors(tokens(inputs["x1"]), t, tokens(inputs["loss_randn_0"]), own)
    result = {
        "pred": latents(pred),
        "loss_per_sample": loss,
        "loss": loss.mean(),
        "loss_grad_norms": gradient_norms(model, names(info), loss.mean(), info["grad_norm_keys"]),
    }
    with torch.no_grad():
        x = tokens(inputs["x"])
        result["velocity"] = latents(model(x, inputs["t"], vector(inputs["labels"], inputs.get("forward_rand_0")))[0])
        states, each, plain = None, [], vector(inputs["labels"], None)
        for i in range(x.shape[1]):
            y, states = model(x[:, i : i + 1], inputs["t"][:, i : i + 1], plain, states)
            each.append(y)
        result["velocity_incremental"] = latents(torch.cat(each, 1))
        q, k, v, g = (inputs[f"ret_{name}"].unflatten(2, (-1, 4)) for name in "qkvg")
        result["ret_out"] = hybrid(q, k, v, g)[0].flatten(2, 3)
        result["sample_trajectory"] = sampled(model, info, inputs, null)
    return {name: value.detach() for name, value in result.items()}


def sampled(model: ARFlow, info: Info, inputs: Mapping[str, Tensor], null: int) -> Tensor:
    """(steps, 2 G, C, H, W) states with the recorded noise: those of the null rows too, which move beside the others."""
    own, labels, cfg = cast(FlowSampler, model.sampler.head), inputs["gen_labels"], info["config"]["cfg"]
    rows, channels = len(labels), model.config.guided
    vector = model.condition(Labels(torch.cat([labels, torch.full_like(labels, null)]))).vector_BD
    states: Any = None
    seen = []

    def velocity(x: Tensor, time: float) -> Tensor:
        nonlocal states
        seen.append(x)
        y, states = model(torch.cat([x[:rows]] * 2)[:, None], x.new_full((2 * rows, 1), time), vector, states)
        given, other = y[:, 0, :, :channels].chunk(2)
        return torch.cat([(other + cfg * (given - other)).repeat(2, 1, 1), y[:, 0, :, channels:]], -1)

    start = tokens(torch.cat([inputs["z"]] * 2))
    last = own.walk(start, velocity, lambda i: tokens(inputs["gen_randn_0"][i]))
    return latents(torch.stack([*seen[1:], last]))
