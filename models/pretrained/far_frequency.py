"""FAR by frequencies (yuhuUSTC/FAR, MIT): official weights by name, with masks and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Labels
from tokenloom.models.parts.diffusion import TIMES
from tokenloom.models.parts.nets.masked_autoencoder import MaskedAutoencoder
from tokenloom.models.pretrained.mar import (
    DECODER,
    half,
    head_names,
    latents,
    layout_of,
    mask_of,
    outer_names,
    patches,
    settings,
    times_of,
)
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import RECORDED, Options, inert, only, used
from tokenloom.models.pretrained.parity import ReplayedDraws, ReplayedSamples, calls_of, gradient_norms
from tokenloom.models.sampling.sampler import Moment
from tokenloom.models.zoo.generators.far_frequency.head import StagedDiffusion, StagedSampler, told
from tokenloom.models.zoo.generators.far_frequency.module import FrequencyGenerator
from tokenloom.models.zoo.generators.far_frequency.recipe import far_frequency

FAMILY = ("far_frequency", "far_frequency_nomask")

Info = Mapping[str, Any]

GRID = "the released samplers are of a grid of 16 x 16"

OPTIONS = Options(
    RECORDED,
    DECODER.without("img_size", "vae_stride", "patch_size", "class_num"),
    {k: inert("of training alone") for k in ("attn_dropout", "proj_dropout", "mask_ratio_min", "label_drop_prob")},
    {k: inert("recorded inputs say it") for k in ("batch", "gen_batch", "stage")},
    {k: inert("the released samplers do not use it") for k in ("num_iter", "cfg_schedule")},
    loss_weight=only(False, why="the official code fails with it"),
    class_num=inert("the table of classes has 1000 rows whatever it says"),
    img_size=used("side of an image; 16 latents across", default=256),
    vae_stride=used("pixels of a latent", default=16),
    patch_size=only(1, why=GRID),
    mask=used("whether positions of the low-pass are hidden", True, False, default=True),
    mask_rate=used("share of the recorded training pass that is masked"),
    encoder_embed_dim=used("width of the encoder"),
    encoder_depth=used("its blocks"),
    encoder_num_heads=used("its heads"),
    diffloss_d=used("blocks of the head", default=3),
    diffloss_w=used("width of the head", default=1024),
    num_sampling_steps=used("times of the head's chain: a number, or ddim and a number for equal strides", default="100"),
    diffusion_batch_mul=used("noise levels of a target", default=4),
    cfg=used("scale of guidance that a sampling of endless steps would reach"),
    temperature=used("that a sampling of endless steps would reach; without masks it is not used"),
)


def flat(info: Info) -> dict[str, Any]:
    """The constructor's settings and those of the call side by side, checked.

    Raises:
        ConfigError: another grid than 16 x 16.
    """
    given = dict(info["config"])
    c = OPTIONS.read({"config": {**given.pop("model", {}), **given}})
    if c["img_size"] // c["vae_stride"] != 16:
        raise ConfigError(f"config.img_size={c['img_size']}, vae_stride={c['vae_stride']}: {GRID}")
    return c


def config(info: Info) -> FrequencyGenerator.Config:
    """Our config for the official settings."""
    c = flat(info)
    made = far_frequency(
        head_depth=c["diffloss_d"],
        head_width=c["diffloss_w"],
        repeats=c["diffusion_batch_mul"],
        buffer=c["buffer_size"],
        masks="some" if c["mask"] else "none",
        temperature=c["temperature"],
        guidance=c["cfg"] - 1,
        classes=1000,
        dropout=0.0,
        label_dropout=0.0,
    )
    net = MaskedAutoencoder.Config(encoder=half(c, "encoder"), decoder=half(c, "decoder"), buffer=c["buffer_size"])
    chain, own = settings(c["num_sampling_steps"]), cast(StagedSampler, made.sampler.head)
    return replace(made, net=net, sampler=replace(made.sampler, head=replace(own, steps=chain.steps, spacing=chain.spacing)))


def build(info: Info) -> FrequencyGenerator:
    """Our model for the official settings."""
    return FrequencyGenerator(config(info), layout_of(flat(info)), 1000)


def names(info: Info) -> NameMap:
    """Official names to ours; the null class is the last of ours."""
    return NameMap(
        *outer_names({"class_num": 1000}),
        Rename("diffloss.net.cond_embed.{p}", "head.condition.hidden.{p}"),
        Rename("diffloss.net.index_cond_embed.{p}", "head.condition.stage.{p}"),
        *head_names("diffloss.net.", "head.")[:-2],
        Rename("diffloss.net.time_embed.mlp.{p}", "head.time.{p}"),
    )


def recorded(info: Info, inputs: Mapping[str, Tensor], section: str) -> Iterator[Tensor]:
    """The draws of a section as they were drawn, of a stack those of each call."""
    for name, _, count in info["draws"][section]:
        yield from inputs[name] if count > 1 else [inputs[name]]


def outputs(model: FrequencyGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: the head alone, a training pass with its loss and gradients, sampling stage by stage."""
    c, head, draws = flat(info), cast(StagedDiffusion, model.head), recorded(info, inputs, "loss")
    x, t, h, index = (inputs[f"head_{name}"] for name in ("x_t", "t", "c", "index"))
    rows, stage, length = len(inputs["labels"]), int(inputs["stage"]), model.layout.length
    data = patches(inputs["latent"], 1)
    masked = torch.zeros(data.shape[:2], dtype=torch.bool)
    if c["mask"]:
        masked = mask_of(torch.stack([next(draws) for _ in range(rows)]), c["mask_rate"])
    dropped = next(draws) < c.get("label_drop_prob", 0.1)
    labels = Labels(torch.where(dropped, 1000, inputs["labels"]))
    low = model.low_pass(data, stage)
    with calls_of(cast(MaskedAutoencoder, model.net).encoder, "forward") as calls:
        z = model(low, ~masked, labels)
    seen = torch.cat([masked.new_ones(rows, model.feed.buffer), ~masked], 1)
    shape = (head.config.repeats, rows, length)
    time, noise = next(draws).view(shape), next(draws).view(*shape, -1)
    replay = ReplayedDraws((time.permute(1, 2, 0) + 0.5) / TIMES, noise.permute(1, 2, 0, 3).contiguous())
    loss = head.loss(told(z, stage), data, replay).mean()
    result = {
        "head_out": head(x, t, torch.cat([h, index], -1)).detach(),
        "head_out_noindex": head(x, t, h).detach(),
        "tf_low_pass": latents(low, 1),
        "tf_encoder_out": calls[0][1][seen].unflatten(0, (rows, -1)).detach(),
        "tf_z": z.detach(),
        "loss": loss.detach(),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    } | ({"tf_mask": masked.float()} if c["mask"] else {})
    found = result | sampled(model, info, inputs)
    # Of hidden states and tokens a fixture holds those of some stages.
    return {name: each for name, each in found.items() if f"out/{name}" in info["tensors"]}


@torch.no_grad()
def sampled(model: FrequencyGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sampling with the recorded noise, by the generator."""
    c, draws, labels = flat(info), recorded(info, inputs, "gen"), Labels(inputs["gen_labels"])
    rows, times = labels.rows, times_of(cast(StagedSampler, model.sampler.head))
    order = torch.stack([next(draws) for _ in range(rows)]) if c["mask"] else None
    numbers: dict[tuple[str, int], Tensor] = {}
    for g in range(len(model.stages)):
        numbers["head", g] = next(draws)
        for i in reversed(range(len(times))):  # the last step draws too, and does not use it
            numbers[f"head.{i}", g] = next(draws)[: len(numbers["head", g])]
    steps = list(model.walk(labels, model.sampler, ReplayedSamples(rows, numbers), order))
    result = {"gen_latent": latents(steps[-1].token_BLC, 1)}
    for g, step in enumerate(steps):
        both = [h[..., :-1].flatten(0, 1) for h in (step.hidden.cond_BND, step.hidden.null_BND) if h is not None]
        result |= {f"gen_z_{g}": torch.cat(both), f"gen_tokens_{g}": step.token_BLC.flatten(0, 1)}
    moments = [Moment(g, len(steps), 0, 0, 1) for g in range(len(steps))]
    return result | {
        "gen_temperature": torch.tensor([step.temperature for step in steps]),
        "gen_cfg": torch.tensor([1 + model.sampler.guidance.on(moment) for moment in moments]),
        "gen_stage": torch.tensor([float(step.side) for step in steps]),
    }
