"""xAR (OliverRensu/xAR): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_denoiser import GroupDenoiser
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.nets.halves import Halves
from tokenloom.models.pretrained.mar import latents, layout_of, patches
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import RECORDED, TRAINING, Options, inert, only, used
from tokenloom.models.pretrained.parity import ReplayedDraws, ReplayedSamples, calls_of, gradient_norms
from tokenloom.models.zoo.generators.xar import half, xar

FAMILY = "xar"

Info = Mapping[str, Any]

SHAPE = {"img_size": 256, "vae_stride": 16, "vae_embed_dim": 16}
FIXED = "rotary tables of 256 positions and cells of 64 are fixed there"

OPTIONS = Options(
    RECORDED,
    TRAINING,
    {k: inert("of training alone") for k in ("attn_dropout", "proj_dropout", "label_drop_prob")},
    diffusion_batch_mul=inert("the official class does not use it"),
    img_size=only(256, why=FIXED),
    vae_stride=only(16, why=FIXED),
    patch_size=only(1, why=FIXED),
    vae_embed_dim=only(16, why="16 channels are fixed there"),
    clusters=only(4, why=FIXED),
    class_num=only(1000, why="the table of classes has 1001 rows whatever it says"),
    encoder_embed_dim=used("width of the first half", default=1024),
    encoder_depth=used("its blocks", default=16),
    encoder_num_heads=used("its heads", default=16),
    decoder_embed_dim=used("width of the second half, which must be that of the first", default=1024),
    decoder_depth=used("its blocks", default=16),
    decoder_num_heads=used("its heads", default=16),
    mlp_ratio=used("hidden width of an ungated MLP with as many weights, over the width", default=4.0),
    num_steps=used("runs of the net for a cell"),
    cfg_scale=used("largest scale s of guidance, u + s (c - u)"),
)


def config(info: Info) -> GroupDenoiser.Config:
    """Our config for the official settings; both halves read one condition, so that theirs must be of one width."""
    c = OPTIONS.read(info)
    made = xar(draw_steps=c["num_steps"], guidance=c["cfg_scale"] - 1, classes=1000, dropout=0.0, label_dropout=0.0)
    first, second = (half(c[f"{n}_depth"], c[f"{n}_embed_dim"], c[f"{n}_num_heads"], c["mlp_ratio"]) for n in ("encoder", "decoder"))
    return replace(made, net=Halves.Config(first=first, second=second))


def build(info: Info) -> GroupDenoiser:
    """Our model for the official settings."""
    return GroupDenoiser(config(info), layout_of(SHAPE), 1000)


def names(info: Info) -> NameMap:
    """Official names to ours."""

    # Learned positions are listed cell after cell there.
    layout = layout_of(SHAPE)
    sequence = config(info).order.plan(layout, None).sequence_BL[0]

    def position(official: str, ours: str) -> Rule:
        return Rename(official, ours, lambda t: t[0][sequence.argsort()], lambda t: t[sequence][None])

    return NameMap(
        Ignore("mask"),
        *(Ignore(f"{half}_blocks.{{i}}.attn.rope.{{p}}") for half in ("encoder", "decoder")),
        position("encoder_pos_embed_learned", "position"),
        position("decoder_pos_embed_learned", "net.position"),
        Rename("class_emb.weight", "condition.table.weight"),
        Rename("time_embed.mlp.{p}", "time.net.{p}"),
        Rename("z_proj.{p}", "embed.{p}"),
        Rename("z_proj_ln.weight", "norm.weight"),
        Rename("decoder_embed.{p}", "net.between.{p}"),
        Rename("pred.{p}", "out.{p}"),
        *(rule for official, ours in (("encoder", "net.first"), ("decoder", "net.second")) for rule in half_names(official, ours)),
    )


def half_names(official: str, ours: str) -> tuple[Rule, ...]:
    """The blocks of a half."""
    block = f"{official}_blocks.{{i}}"
    return (
        Rename(f"{block}.attn.qkv.{{p}}", f"{ours}.attention.{{i}}.qkv.{{p}}"),
        Rename(f"{block}.attn.proj.{{p}}", f"{ours}.attention.{{i}}.proj.{{p}}"),
        Rename(f"{block}.mlp.fc1_g.{{p}}", f"{ours}.mlp.{{i}}.gate.{{p}}"),
        Rename(f"{block}.mlp.fc1_x.{{p}}", f"{ours}.mlp.{{i}}.up.{{p}}"),
        Rename(f"{block}.mlp.fc2.{{p}}", f"{ours}.mlp.{{i}}.out.{{p}}"),
        Rename(f"{block}.ada_lin.1.{{p}}", f"{ours}.norm.maps.{{i}}.{{p}}"),
        Rename(f"{official}_norm.weight", f"{ours}.norm.before.weight"),
    )


def outputs(model: GroupDenoiser, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: a training pass with its loss and gradients, guided sampling with each run of the net."""
    plan = model.order.plan(model.layout, None)
    rows, cells = len(inputs["latent"]), plan.groups
    labels = Labels(torch.where(inputs["tf_label_drop_uniform"] < 0.1, 1000, inputs["labels"]))
    data = take(patches(inputs["latent"], 1), plan.sequence_BL)
    # Their time is the share of noise.
    time_BG = 1 - inputs["tf_time"].view(cells, rows).T
    noise = torch.cat([inputs[f"tf_noise_{g}"] for g in range(cells)], 1)
    draws = ReplayedDraws(time_BG.logit(), noise)
    assert torch.allclose(draws.normal(cells).sigmoid(), time_BG)
    t = time_BG[:, plan.group_L].unsqueeze(-1)
    velocity = model((1 - t) * noise + t * data, time_BG, labels, plan)
    loss = (velocity - (data - noise)).square().mean()
    result = {
        "tf_velocity": -velocity.detach(),
        "loss": loss.detach(),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    return result | sampled(model, info, inputs)


@torch.no_grad()
def sampled(model: GroupDenoiser, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sampling with the recorded noise, by the generator."""
    labels, steps = Labels(inputs["gen_labels"]), info["config"]["num_steps"]
    groups = model.order.plan(model.layout, None).groups
    noise = {("head", g): inputs[f"gen_init_noise_{g}"] for g in range(groups)}
    noise |= {(f"head.{i}", g): inputs[f"gen_step_noise_{g}_{i}"].float() for g in range(groups) for i in range(steps - 1)}
    with calls_of(model, "step") as calls:
        tokens = model.generate(labels, model.sampler, ReplayedSamples(labels.rows, noise))
    # The last run of all cells but the last is on what the cell came to, for the cache.
    velocities = [-cast(Tensor, found) for (_, time, *_), found in calls if time < 1]
    return {"gen_latent": latents(tokens.data, 1)} | {f"gen_velocity_{i}": each for i, each in enumerate(velocities)}
