"""Hi-MAR (HiDream-ai/himar, no licence stated): official weights by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.parts.diffusion import TIMES, spaced
from tokenloom.models.pretrained.himar_options import OPTIONS as OPTIONS
from tokenloom.models.pretrained.mar import (
    block_names,
    both_halves,
    class_names,
    half,
    head_names,
    latents,
    mask_of,
    patches,
    schedule,
    settings,
    times_of,
)
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename
from tokenloom.models.pretrained.parity import ReplayedDraws, ReplayedSamples, calls_of, gradient_norms, reorder
from tokenloom.models.zoo.generators.himar.module import HiMAR, PivotSampler, Round
from tokenloom.models.zoo.generators.himar.norm import TaskNorm
from tokenloom.models.zoo.generators.himar.recipe import himar

FAMILY = "himar"

Info = Mapping[str, Any]


def flat(info: Info) -> dict[str, Any]:
    """The constructor's settings and those of the call side by side, checked.

    Raises:
        ConfigError: settings with which the official class fails.
    """
    given = dict(info["config"])
    c = OPTIONS.read({"config": {**given.pop("model", {}), **given}})
    if c["img_size"] // c["vae_stride"] != 16:
        raise ConfigError(f"config.img_size={c['img_size']}, vae_stride={c['vae_stride']}: the global head has a grid of 16 x 16")
    for one, other in (("cond_dim", "vae_embed_dim"), ("decoder_embed_dim", "encoder_embed_dim")):
        if c[one] != c[other]:
            raise ConfigError(f"config.{one}={c[one]}: must be {other}={c[other]}, or the official class fails")
    return c


def config(info: Info) -> HiMAR.Config:
    """Our config for the official settings."""
    c = flat(info)
    made = himar(
        head_depth=c["diffloss_d"],
        head_width=c["diffloss_w"],
        dense_depth=c["gdm_d"],
        dense_width=c["gdm_w"],
        dense_heads=c["head"],
        repeats=c["diffusion_batch_mul"],
        shown=c["step_stage2_rate"],
        classes=c["class_num"],
        dropout=0.0,
        label_dropout=0.0,
    )
    encoder, decoder = (replace(half(c, name), norm=TaskNorm.Config()) for name in ("encoder", "decoder"))
    chain, own = settings(c["num_sampling_steps"]), cast(PivotSampler, made.sampler.head)
    own = replace(
        own,
        steps=chain.steps,
        spacing=chain.spacing,
        temperature=c["temperature"],
        pivot_guidance=schedule(c["cfg_schedule"], c["re_cfg"]),
        pivot_rounds=4 * c["cond_scale"],
        rounds=c["num_iter"],
        dense_steps=settings(c["gdm_sampling_steps"]).steps,
    )
    return replace(
        made,
        net=replace(made.net, encoder=encoder, decoder=decoder, buffer=c["buffer_size"]),
        dense=replace(made.dense, ratio=float(c["ratio"])),
        sampler=replace(made.sampler, guidance=schedule(c["cfg_schedule"], c["cfg"]), head=own),
    )


def build(info: Info) -> HiMAR:
    """Our model for the official settings."""
    c = flat(info)
    layout = TokenLayout(grids=((c["cond_scale"],) * 2, (16, 16)), channels=c["vae_embed_dim"])
    return config(info).build(layout, c["class_num"])


def names(info: Info) -> NameMap:
    """Official names to ours; the null class is the last of ours, and tables of both passes are stacked."""

    def stacked(official: str, ours: str) -> Any:
        return Rename(official, ours, lambda t: t[0].unflatten(0, (2, -1)), lambda t: t.flatten(0, 1)[None])

    def task(name: str) -> tuple[Any, ...]:
        ours = f"net.{name}.norm"
        return (
            *(
                Rename(
                    f"{name}_blocks.{{i}}.adaLN_{official}",
                    f"{ours}.{part}.{{i}}",
                    lambda t: t.flatten(0, 2),
                    lambda t: t[:, None, None],
                )
                for official, part in (("scale", "factor"), ("shift", "offset"))
            ),
            Rename(f"{name}_task_emb.weight", f"{ours}.task.weight"),
            Rename(f"{name}_blocks_ada.1.{{p}}", f"{ours}.map.{{p}}"),
        )

    dense, block, flat_kernel = (
        "cond_diffloss.net.",
        "cond_diffloss.net.blocks.{i}.",
        (lambda t: t[..., 0, 0], lambda t: t[..., None, None]),
    )
    return NameMap(
        class_names(flat(info)),
        Rename("cond_tokens", "no_pivot", lambda t: t[0], lambda t: t[None]),
        Rename("z_proj.{p}", "embed.{p}"),
        Rename("cond_proj.{p}", "embed_pivot.{p}"),
        Rename("cond_z_proj.{p}", "embed_state.{p}"),
        Rename("z_proj_ln.{p}", "net.norm.{p}"),
        stacked("encoder_pos_embed_learned", "net.position"),
        stacked("decoder_pos_embed_learned", "net.position_between"),
        stacked("mask_token", "net.mask"),
        Rename("diffusion_pos_embed_learned", "net.position_out", lambda t: t[0], lambda t: t[None]),
        Rename("decoder_embed.{p}", "net.between.{p}"),
        *block_names("encoder", "net.encoder"),
        *block_names("decoder", "net.decoder"),
        *task("encoder"),
        *task("decoder"),
        *head_names("diffloss.net.", "head."),
        Ignore(f"{dense}c_pos_embed"),
        Rename(f"{dense}pos_embed", "dense.position", lambda t: t[0], lambda t: t[None]),
        Rename(f"{dense}x_embedder.proj.weight", "dense.enter.weight", *flat_kernel),
        Rename(f"{dense}x_embedder.proj.bias", "dense.enter.bias"),
        Rename(f"{dense}c_embedder.proj.weight", "dense.condition.weight", *flat_kernel),
        Rename(f"{dense}c_embedder.proj.bias", "dense.condition.bias"),
        Rename(f"{dense}t_embedder.mlp.{{p}}", "dense.time.net.{p}"),
        Rename(f"{block}attn.{{p}}", "dense.net.attention.{i}.{p}"),
        Rename(f"{block}mlp.fc1.{{p}}", "dense.net.mlp.{i}.up.{p}"),
        Rename(f"{block}mlp.fc2.{{p}}", "dense.net.mlp.{i}.out.{p}"),
        Rename(f"{block}adaLN_modulation.1.{{p}}", "dense.net.norm.maps.{i}.{p}", *reorder(2, 5, 1, 4, 0, 3)),
        Rename(f"{dense}final_layer.adaLN_modulation.1.{{p}}", "dense.net.norm.final.{p}", *reorder(1, 0)),
        Rename(f"{dense}final_layer.linear.{{p}}", "dense.out.{p}"),
    )


def recorded(info: Info, inputs: Mapping[str, Tensor], section: str) -> Iterator[Tensor]:
    """The draws of a section as they were drawn, of a stack those of each call."""
    for name, _, count in info["draws"][section]:
        yield from inputs[name] if count > 1 else [inputs[name]]


def outputs(model: HiMAR, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: both heads alone, a training pass with its losses and gradients, and sampling."""
    c, draws, rows, n = flat(info), recorded(info, inputs, "loss"), len(inputs["labels"]), model.pivots
    orders = [next(draws) for _ in range(2 * rows)]
    data = torch.cat([patches(inputs["latent_small"], 1), patches(inputs["latent"], 1)], 1)
    total, channels = data.shape[1] - n, data.shape[2]

    def vector(uniform: Tensor) -> Tensor:
        dropped = torch.where(uniform < c["label_drop_prob"], c["class_num"], inputs["labels"])
        return model.condition(Labels(dropped)).vector_BD

    _, first_drop, time, noise, _ = (next(draws) for _ in range(5))
    share = math.cos(math.pi / 2 * float(next(draws))) if c["cos"] else c["mask_rate2"]
    given, second_drop, dense_time, dense_noise = (next(draws) for _ in range(4))
    pivots, dense = mask_of(torch.stack(orders[::2]), c["mask_rate"]), mask_of(torch.stack(orders[1::2]), share)
    with calls_of(model.net, "encoded") as calls:
        first = model.pivot_states(data, pivots, vector(first_drop))
        use = given > 1 - c["step_stage2_rate"] * min(1.0, c["epoch"] / c["step_warmup"])
        second = model.dense_states(data, dense, model.guides(first, pivots, use), vector(second_drop))
    shape, repeats = (model.head.config.repeats, rows), model.head.config.repeats
    replays = (
        ReplayedDraws(
            (time.view(*shape, n).permute(1, 2, 0) + 0.5) / TIMES, noise.view(*shape, n, channels).permute(1, 2, 0, 3).contiguous()
        ),
        ReplayedDraws(
            (dense_time.view(shape).T.contiguous() + 0.5) / TIMES,
            dense_noise.view(*shape, channels, total).permute(1, 0, 3, 2).reshape(rows, repeats, total, channels),
        ),
    )
    parts = model.parts(first, second, data, pivots, dense, replays)
    loss, share_of = parts["pivots"] + parts["dense"], {"pivots": 64 / 320, "dense": 256 / 320}
    masked = {"stage1": (pivots, torch.ones_like(dense)), "stage2": (torch.zeros_like(pivots), dense)}
    result: dict[str, Tensor] = {}
    for (name, mask), (_, encoded) in zip(masked.items(), calls):
        seen = torch.cat([pivots.new_ones(rows, model.net.buffer), ~torch.cat(mask, 1)], 1)
        result[f"tf_encoder_{name}"] = encoded[seen].unflatten(0, (rows, -1)).detach()
        result[f"tf_mask_{name}"] = torch.cat(mask, 1).float()
    grid = tuple(model.layout.grids[1])
    return (
        result
        | decoded(model, data, pivots, dense, first, use, (vector(first_drop), vector(second_drop)))
        | {
            "head_out": model.head(*(inputs[f"head_{name}"] for name in ("x_t", "t", "c"))).detach(),
            "gdm_out": model.dense(patches(inputs["gdm_x_t"], 1), inputs["gdm_t"], patches(inputs["gdm_z"], 1))
            .detach()
            .transpose(1, 2)
            .unflatten(2, grid),
            "loss_small": parts["pivots"].detach() / share_of["pivots"],
            "loss_large": parts["dense"].detach() / share_of["dense"],
            "loss": loss.detach(),
            "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
        }
        | sampled(model, info, inputs)
    )


@torch.no_grad()
def decoded(
    model: HiMAR, data: Tensor, pivots: Tensor, dense: Tensor, first: Tensor, use: Tensor, vectors: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Hidden states of all positions of both passes."""
    with calls_of(model.net, "forward") as calls:
        model.pivot_states(data, pivots, vectors[0])
        model.dense_states(data, dense, model.guides(first, pivots, use), vectors[1])
    return {f"tf_decoder_stage{i + 1}": found for i, (_, found) in enumerate(calls)}


@torch.no_grad()
def sampled(model: HiMAR, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sampling with the recorded noise, by the generator; the null half of each round, which upstream drops, by itself."""
    draws, labels, own = recorded(info, inputs, "gen"), Labels(inputs["gen_labels"]), cast(PivotSampler, model.sampler.head)
    rows, n = labels.rows, model.pivots
    order = [next(draws) for _ in range(2 * rows)]
    orders = torch.stack(order[::2]), torch.stack(order[1::2])
    times, dense_times = times_of(own), spaced(own.dense_steps)
    numbers: dict[tuple[str, int], Tensor] = {}
    every: dict[tuple[str, int], list[Tensor]] = {}
    for g in range(own.pivot_rounds):
        numbers["head", g] = next(draws)
        every["head", g] = [next(draws) for _ in times]  # the last step draws too, and does not use it
        numbers |= {(f"head.{len(times) - 1 - i}", g): noise[: len(numbers["head", g])] for i, noise in enumerate(every["head", g])}
    for g in range(own.rounds):
        numbers["dense", g] = patches(next(draws), 1)
        # What is known is noised by the noise of the start; numbers drawn for it are not used.
        every["dense", g] = [patches([next(draws), next(draws)][1], 1) for _ in dense_times]
        numbers |= {(f"dense.{len(dense_times) - 1 - i}", g): noise[:rows] for i, noise in enumerate(every["dense", g])}
    steps = list(model.walk(labels, model.sampler, ReplayedSamples(rows, numbers), orders))
    pivot_rounds, rounds, data = steps[: own.pivot_rounds], steps[own.pivot_rounds :], steps[-1][1]
    result = {
        "gen_small": latents(data[:, :n], 1),
        "gen_latent": latents(data[:, n:], 1),
        "gen_cfg_per_iter": torch.tensor([1 + step.hidden.weight for step, _ in steps]),
    }
    for g, (step, _) in enumerate(pivot_rounds):
        token = step.token.flatten(0, 1)
        if step.hidden.null_BND is not None:
            z = torch.cat([step.hidden.cond_BND.flatten(0, 1), step.hidden.null_BND.flatten(0, 1)])
            pair = both_halves(model.head, times, z, numbers["head", g], every["head", g], 1 + float(step.hidden.weight), own.temperature)
            token = torch.cat([token, pair[len(token) :]])
        result[f"gen_small_tokens_{g}"] = token
    grid = tuple(model.layout.grids[1])
    for g, (step, _) in enumerate(rounds):
        before, hidden = steps[own.pivot_rounds + g - 1][1][:, n:], step.hidden
        both = [hidden.cond_BND] if hidden.null_BND is None else [hidden.cond_BND, hidden.null_BND]
        grids = [step.token]
        if hidden.null_BND is not None:
            start = numbers["dense", g]
            grids.append(null_half(model, step, before, start, every["dense", g], dense_times, own.temperature))
        result |= {
            f"gen_large_z_{g}": torch.cat(both).transpose(1, 2).unflatten(2, grid),
            f"gen_large_mask_{g}": step.unknown.unflatten(1, grid).repeat(len(both), 1, 1),
            f"gen_large_sample_{g}": torch.cat(grids).transpose(1, 2).unflatten(2, grid),
        }
    return result


def null_half(model: HiMAR, step: Round, given: Tensor, start: Tensor, noise: list[Tensor], times: list[int], warmth: float) -> Tensor:
    """The grid that upstream carries along for the null condition: noise of its own, but the guided predictions of the other half."""
    process, rows, predicted = model.dense.process, len(start), cast("list[Tensor]", [])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        predicted.append(step.hidden.guided(lambda h: model.dense(x, t[:, 0], h)))
        return predicted[-1]

    def held(x: Tensor, t: int) -> Tensor:
        return torch.where(step.unknown.unsqueeze(-1), x, process.noised(given, start, torch.full(x.shape[:2], t)))

    process.chain(guided, start, times, lambda i: warmth * noise[len(times) - 1 - i][:rows], held)
    again = iter(predicted)
    return process.chain(lambda x, t: next(again), start, times, lambda i: warmth * noise[len(times) - 1 - i][rows:], held)
