"""MAR (LTH14/mar, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.diffusion import TIMES, GaussianDiffusion, spaced
from tokenloom.models.parts.heads.diffusion import Diffusion, DiffusionSampler
from tokenloom.models.parts.nets import blocks
from tokenloom.models.parts.nets.masked_autoencoder import MaskedAutoencoder
from tokenloom.models.parts.orders import Masked
from tokenloom.models.parts.plan import Plan
from tokenloom.models.pretrained.names import Fuse, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import RECORDED, Options, inert, used
from tokenloom.models.pretrained.parity import ReplayedDraws, ReplayedSamples, calls_of, gradient_norms
from tokenloom.models.sampling.sampler import Constant, Linear, Schedule
from tokenloom.models.zoo.generators.mar import mar

FAMILY = "mar"

Info = Mapping[str, Any]

#: Of training and of what was recorded.
COMMON = Options(
    RECORDED,
    {k: inert("of training alone") for k in ("attn_dropout", "proj_dropout", "mask_ratio_min", "label_drop_prob", "grad_checkpointing")},
    mask_rate=used("share of the recorded training pass that is masked"),
    num_iter=used("steps of sampling"),
    cfg_scale=used("scale s of guidance, u + s (c - u)"),
    cfg_schedule=used("of guidance: growing with the tokens known after the step, or the same", "linear", "constant"),
)
#: Of a masked autoencoder over latents.
DECODER = Options(
    img_size=used("side of an image"),
    vae_stride=used("pixels of a latent"),
    patch_size=used("latents of a token", default=1),
    vae_embed_dim=used("channels of a latent"),
    class_num=used("classes"),
    buffer_size=used("slots of the class before the tokens"),
    mlp_ratio=used("hidden width of an MLP over its width"),
    decoder_embed_dim=used("width of the decoder"),
    decoder_depth=used("its blocks"),
    decoder_num_heads=used("its heads"),
)
OPTIONS = Options(
    COMMON,
    DECODER,
    encoder_embed_dim=used("width of the encoder"),
    encoder_depth=used("its blocks"),
    encoder_num_heads=used("its heads"),
    diffloss_d=used("blocks of the head"),
    diffloss_w=used("width of the head"),
    num_sampling_steps=used("times of the head's chain: a number, or ddim and a number for equal strides"),
    diffusion_batch_mul=used("noise levels of a target"),
    temperature=used("of the head's noise"),
    ddim_spacing=used("times of a second recorded chain"),
)


def settings(spacing: str) -> DiffusionSampler:
    """The chain of an official spacing: ``100`` or ``ddim50``.

    Raises:
        ConfigError: sections of the chain with counts of their own.
    """
    count = spacing.removeprefix("ddim")
    if not count.isdecimal():
        raise ConfigError(f"config.num_sampling_steps={spacing!r}: write a number or ddim and a number")
    return DiffusionSampler(steps=int(count), spacing="stride" if spacing != count else "even")


def schedule(name: str, scale: float) -> Schedule:
    """Official scale s is u + s (c - u), constant or growing with the tokens known after the step; ours is the weight w = s - 1."""
    return Linear(value=scale - 1, clock="almost") if name == "linear" else Constant(value=scale - 1)


def layout_of(c: Mapping[str, Any]) -> TokenLayout:
    """Latents of an image, or patches of them."""
    patch = c.get("patch_size", 1)
    side = c["img_size"] // c["vae_stride"] // patch
    return TokenLayout(grids=((side, side),), channels=c["vae_embed_dim"] * patch**2)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    made = mar(
        head_depth=c["diffloss_d"],
        head_width=c["diffloss_w"],
        repeats=c["diffusion_batch_mul"],
        buffer=c["buffer_size"],
        steps=c["num_iter"],
        classes=c["class_num"],
        dropout=0.0,
        label_dropout=0.0,
    )
    net = MaskedAutoencoder.Config(encoder=half(c, "encoder"), decoder=half(c, "decoder"), buffer=c["buffer_size"])
    own = replace(settings(c["num_sampling_steps"]), temperature=c["temperature"])
    return replace(made, net=net, sampler=replace(made.sampler, guidance=schedule(c["cfg_schedule"], c["cfg_scale"]), head=own))


def half(c: Mapping[str, Any], name: str) -> Any:
    """The encoder's or the decoder's blocks."""
    return blocks.vit(c[f"{name}_depth"], c[f"{name}_embed_dim"], c[f"{name}_num_heads"], c["mlp_ratio"])


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    return config(info).build(layout_of(info["config"]), info["config"]["class_num"])


def names(info: Info) -> NameMap:
    """Official names to ours; the null class is the last of ours."""
    return NameMap(*outer_names(info["config"]), *head_names("diffloss.net.", "head."))


def class_names(c: Mapping[str, Any]) -> Rule:
    """The null class has a parameter of its own there."""
    return Fuse(("class_emb.weight", "fake_latent"), "condition.table.weight", sizes=(c["class_num"], 1))


def block_names(official: str, ours: str) -> tuple[Rule, ...]:
    """Blocks of a vision transformer and the norm after them; both are prefixes without their last character."""
    return (
        Rename(f"{official}_blocks.{{i}}.norm1.{{p}}", f"{ours}.norm.branches.{{i}}.0.{{p}}"),
        Rename(f"{official}_blocks.{{i}}.norm2.{{p}}", f"{ours}.norm.branches.{{i}}.1.{{p}}"),
        Rename(f"{official}_blocks.{{i}}.attn.{{p}}", f"{ours}.attention.{{i}}.{{p}}"),
        Rename(f"{official}_blocks.{{i}}.mlp.fc1.{{p}}", f"{ours}.mlp.{{i}}.up.{{p}}"),
        Rename(f"{official}_blocks.{{i}}.mlp.fc2.{{p}}", f"{ours}.mlp.{{i}}.out.{{p}}"),
        Rename(f"{official}_norm.{{p}}", f"{ours}.norm.final.{{p}}"),
    )


def outer_names(c: Mapping[str, Any]) -> tuple[Rule, ...]:
    """All but the head."""
    return (
        class_names(c),
        Rename("encoder_pos_embed_learned", "feed.position"),
        Rename("z_proj.{p}", "feed.embed.{p}"),
        Rename("z_proj_ln.{p}", "feed.norm.{p}"),
        Rename("decoder_pos_embed_learned", "net.position"),
        Rename("diffusion_pos_embed_learned", "net.position_out"),
        Rename("mask_token", "net.mask"),
        Rename("decoder_embed.{p}", "net.between.{p}"),
        *block_names("encoder", "net.encoder"),
        *block_names("decoder", "net.decoder"),
    )


def mlp_names(official: str, ours: str) -> tuple[Rule, ...]:
    """The residual MLP of a head."""
    return (
        Rename(f"{official}input_proj.{{p}}", f"{ours}enter.{{p}}"),
        Rename(f"{official}res_blocks.{{i}}.in_ln.{{p}}", f"{ours}norm.{{i}}.{{p}}"),
        Rename(f"{official}res_blocks.{{i}}.mlp.{{p}}", f"{ours}mlp.{{i}}.{{p}}"),
        Rename(f"{official}res_blocks.{{i}}.adaLN_modulation.1.{{p}}", f"{ours}modulation.{{i}}.{{p}}"),
        Rename(f"{official}final_layer.adaLN_modulation.1.{{p}}", f"{ours}last.{{p}}"),
        Rename(f"{official}final_layer.linear.{{p}}", f"{ours}out.{{p}}"),
    )


def head_names(official: str, ours: str) -> tuple[Rule, ...]:
    """The diffusion head."""
    return (
        *mlp_names(official, ours),
        Rename(f"{official}cond_embed.{{p}}", f"{ours}condition.{{p}}"),
        Rename(f"{official}time_embed.mlp.{{p}}", f"{ours}time.{{p}}"),
    )


def patches(latent_BCHW: Tensor, patch: int) -> Tensor:
    """(B, L, C) tokens of latents, channel first in each patch."""
    return torch.nn.functional.pixel_unshuffle(latent_BCHW, patch).flatten(2).transpose(1, 2)


def latents(token_BLC: Tensor, patch: int) -> Tensor:
    """Latents of the tokens of a square."""
    side = round(token_BLC.shape[1] ** 0.5)
    return torch.nn.functional.pixel_shuffle(token_BLC.transpose(1, 2).unflatten(2, (side, side)), patch)


def orders(inputs: Mapping[str, Tensor], name: str) -> Tensor:
    """(B, L) recorded orders."""
    return torch.stack([inputs[key] for key in sorted((k for k in inputs if k.startswith(name)), key=lambda k: int(k.split("_")[-1]))])


def mask_of(order_BL: Tensor, rate: float) -> Tensor:
    """(B, L) bool: the first positions of each order, so many rounded up."""
    count = -int(-order_BL.shape[1] * rate // 1)
    return torch.zeros_like(order_BL, dtype=torch.bool).scatter(1, order_BL[:, :count], True)


def decoding_plan(order_BL: Tensor, sizes: tuple[int, ...]) -> Plan:
    """Official orders are decoded from the back; upstream lists the positions of a step in raster order."""
    return Plan(torch.cat([group.sort(1).values for group in order_BL.flip(1).split(list(sizes), 1)], dim=1), sizes)


def chain_of(
    head: Diffusion, times: list[int], x: Tensor, output: Callable[[Tensor, Tensor], Tensor], noise: Sequence[Tensor], temperature: float
) -> Tensor:
    """(steps, …, C) samples after each reverse step, the noisiest first; ``output(x, t)`` are the net's."""
    found = []
    for i, (t, s) in enumerate(zip(times[::-1], [*times[-2::-1], -1])):
        x, log_variance = head.process.back(output(x, torch.full(x.shape[:-1], t)), x, t, s)
        if s >= 0:
            x = x + temperature * (0.5 * log_variance).exp() * noise[i]
        found.append(x)
    return torch.stack(found)


def head_outputs(head: Diffusion, c: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head alone: its net, the terms of its loss, reverse steps, and chains of both spacings."""
    x, t, h, x0, noise = (inputs[f"head_{name}"] for name in ("x_t", "t", "c", "x0", "noise"))
    out, n, channels = head(x, t, h), len(x) // 2, x.shape[1]
    twice = head(torch.cat([x[:n], x[:n]]), t, h)
    eps = twice[:, :channels]
    guided = torch.cat([(eps[n:] + c["cfg_scale"] * (eps[:n] - eps[n:])).repeat(2, 1), twice[:, channels:]], 1)
    x_t = head.process.noised(x0, noise, t)
    terms = head.process.losses(head(x_t, t, h), x0, noise, x_t, t)
    times = torch.tensor(times_of(settings(c["num_sampling_steps"])))
    index = torch.arange(len(x)) % len(times)
    later, before = times[index], torch.where(index > 0, times[(index - 1).clamp_min(0)], -1)
    output = head(x, later, h)
    mean, log_variance = head.process.back(output, x, later, before)
    # Upstream's log-variance of the last step, which nothing uses, ends at that of the step before it in the shorter chain.
    plain = GaussianDiffusion(head.process.schedule, "eps", "fixed")
    low, true = (plain.back(eps, x, a, b)[1] for a, b in ((later, before), (times[index.clamp_min(1)], times[(index - 1).clamp_min(0)])))
    result = {
        "head_out": out,
        "head_out_cfg": guided,
        "head_q_sample": x_t,
        "head_terms_mse": terms["mse"],
        "head_terms_vb": terms["vb"],
        "head_terms_loss": terms["mse"] + terms["vb"],
        "gen_timestep_map": times,
        "head_p_mean": mean,
        "head_p_log_variance": log_variance + (1 - output[:, channels:]) / 2 * (true - low),
        "head_p_pred_xstart": head.process.clean(output, x, later),
    }
    for name, spacing in (("std", c["num_sampling_steps"]), ("ddim", c["ddim_spacing"])):
        kept = times_of(settings(spacing))
        each = [inputs[f"head_sample_{name}_step_noise_{i}"] for i in range(len(kept))]
        steps = chain_of(head, kept, noise, lambda x, t: head(x, t, h), each, c["temperature"])
        result |= {f"head_sample_{name}_timestep_map": torch.tensor(kept), f"head_sample_{name}_traj": steps}
    return result


def times_of(own: DiffusionSampler) -> list[int]:
    """The times of a chain."""
    return spaced(own.steps, own.spacing)


def both_halves(
    head: Diffusion, times: list[int], z: Tensor, start: Tensor, noise: Sequence[Tensor], scale: float, temperature: float
) -> Tensor:
    """Samples (2n, C) of guided rows as upstream keeps them: the null half has noise and variance of its own, and is then dropped."""
    n, channels = start.shape

    def output(x: Tensor, t: Tensor) -> Tensor:
        both = head(torch.cat([x[:n], x[:n]]), t, z)
        eps = both[:, :channels]
        return torch.cat([(eps[n:] + scale * (eps[:n] - eps[n:])).repeat(2, 1), both[:, channels:]], 1)

    return chain_of(head, times, start.repeat(2, 1), output, noise, temperature)[-1]


@torch.no_grad()
def sampled(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sampling with the recorded noise, by the generator; the null half of each step, which upstream drops, by itself."""
    c, head = info["config"], cast(Diffusion, model.head)
    labels, times = Labels(inputs["gen_labels"]), times_of(cast(DiffusionSampler, model.sampler.head))
    plan = decoding_plan(orders(inputs, "gen_order_"), cast(Masked, model.order).decoding.cut(model.layout.length))
    noise = {("head", g): inputs[f"gen_init_noise_{g}"] for g in range(plan.groups)}
    for g in range(plan.groups):
        for i in range(len(times) - 1):
            noise[f"head.{len(times) - 1 - i}", g] = inputs[f"gen_step_noise_{g}_{i}"][: len(noise["head", g])]
    draws = ReplayedSamples(labels.rows, noise)
    with calls_of(head, "draw") as calls:
        steps = list(model.decode_steps(labels, model.sampler, draws, plan=plan))
    result = {"gen_latent": latents(steps[-1].state[0][: labels.rows], c.get("patch_size", 1))}
    scales = []
    for g, ((hidden, sampler, moment, *_), drawn) in enumerate(calls):
        scales.append(1 + sampler.guidance.on(moment))
        z, tokens = hidden.cond_BND.flatten(0, 1), drawn.data.flatten(0, 1)
        if hidden.null_BND is not None:
            z = torch.cat([z, hidden.null_BND.flatten(0, 1)])
            every = [inputs[f"gen_step_noise_{g}_{i}"] for i in range(len(times))]
            pair = both_halves(head, times, z, noise["head", g], every, scales[-1], c["temperature"])
            tokens = torch.cat([tokens, pair[len(tokens) :]])
        result |= {f"gen_z_{g}": z, f"gen_tokens_{g}": tokens}
    return result | {"gen_cfg_per_iter": torch.tensor(scales)}


def masked_pass(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Tokens, mask and hidden states of the recorded training pass, and its outputs."""
    c = info["config"]
    x0 = patches(inputs["latent"], c.get("patch_size", 1))
    masked = mask_of(orders(inputs, "tf_order_"), c["mask_rate"])
    labels = Labels(torch.where(inputs["tf_label_drop_uniform"] < 0.1, c["class_num"], inputs["labels"]))
    z = model(x0, labels, cast(Masked, model.order).of_mask(~masked, 1.0))
    return x0, masked, z, {"tf_mask": masked.float(), "tf_z": z.detach()}


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture."""
    c, head = info["config"], cast(Diffusion, model.head)
    with torch.no_grad():
        result = head_outputs(head, c, inputs)
    with calls_of(cast(MaskedAutoencoder, model.net).encoder, "forward") as calls:
        x0, masked, z, found = masked_pass(model, info, inputs)
    seen = torch.cat([masked.new_ones(len(masked), c["buffer_size"]), ~masked], 1)
    encoded = calls[0][1][seen].unflatten(0, (len(masked), -1))
    shape = (head.config.repeats, *masked.shape)
    t, noise = inputs["tf_t"].view(shape), inputs["tf_noise"].view(*shape, -1)
    draws = ReplayedDraws((t.permute(1, 2, 0) + 0.5) / TIMES, noise.permute(1, 2, 0, 3).contiguous())
    loss = head.loss(z, x0, draws)[masked].mean()
    result |= found | {
        "tf_encoder_out": encoded.detach(),
        "loss": loss.detach(),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    return result | sampled(model, info, inputs)
