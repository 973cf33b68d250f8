"""ARINAR (Qinyu-Allen-Zhao/Arinar): official weights by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.heads.inner import InnerMixture
from tokenloom.models.parts.nets.masked_autoencoder import MaskedAutoencoder
from tokenloom.models.parts.orders import Masked
from tokenloom.models.pretrained.mar import COMMON, DECODER, decoding_plan, half, latents, layout_of, masked_pass, outer_names, schedule
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.parity import ReplayedSamples, calls_of, gradient_norms
from tokenloom.models.sampling.sampler import Moment
from tokenloom.models.zoo.generators.arinar import arinar

FAMILY = "arinar"

Info = Mapping[str, Any]

OTHER = "the other heads of the official class are other methods"

OPTIONS = Options(
    COMMON.without("cfg_scale"),
    DECODER,
    {k: inert("of training alone, or of another head") for k in ("head_width", "head_depth")},
    {k: inert("recorded inputs say it") for k in ("batch", "gen_batch", "head_n", "head_cfg")},
    encoder_embed_dim=used("width of the encoder"),
    encoder_depth=used("its blocks"),
    encoder_num_heads=used("its heads"),
    num_gaussians=used("Gaussians of a mixture", default=1),
    head_type=only("ar_gmm", why=OTHER),
    head_batch_mul=only(1, why="the official class takes no other with this head"),
    inner_ar_width=used("width of the inner transformer", default=1024),
    inner_ar_depth=used("its blocks", default=1),
    bilevel_schedule=used("of temperature and guidance within a token", "constant", "linear", "cosine", default="constant"),
    feature_group=used("features of one mixture; guided runs have one, as the official guidance of more is wrong", default=1),
    use_nf=only(False, why="the flow before the features is not built"),
    cfg=used("scale of guidance"),
    temperature=used("of deviations"),
)


def flat(info: Info) -> dict[str, Any]:
    """The description with the constructor's settings and those of the call side by side, checked.

    Raises:
        ConfigError: guided mixtures of several features.
    """
    given = dict(info["config"])
    c = OPTIONS.read({"config": {**given.pop("model", {}), **given}})
    if c["feature_group"] > 1 and 1 not in (c["cfg"], c.get("head_cfg", 1)):
        raise ConfigError(
            f"config.feature_group={c['feature_group']}: the official guidance is wrong for more than one feature; set cfg: 1"
        )
    return {**info, "config": c}


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = flat(info)["config"]
    made = arinar(
        inner_width=c["inner_ar_width"],
        inner_depth=c["inner_ar_depth"],
        components=c["num_gaussians"],
        together=c["feature_group"],
        buffer=c["buffer_size"],
        steps=c["num_iter"],
        temperature=c["temperature"],
        within=c["bilevel_schedule"],
        classes=c["class_num"],
        dropout=0.0,
        label_dropout=0.0,
    )
    net = MaskedAutoencoder.Config(encoder=half(c, "encoder"), decoder=half(c, "decoder"), buffer=c["buffer_size"])
    return replace(made, net=net, sampler=replace(made.sampler, guidance=schedule(c["cfg_schedule"], c["cfg"])))


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = flat(info)["config"]
    return config(info).build(layout_of(c), c["class_num"])


def names(info: Info) -> NameMap:
    """Official names to ours; the null class is the last of ours."""
    block = "arhead.blocks.{i}"
    return NameMap(
        *outer_names(flat(info)["config"]),
        Ignore(f"{block}.attn.zero_k_bias"),
        Rename("arhead.start_token", "head.start"),
        Rename("arhead.pos_embedding", "head.position"),
        Rename("arhead.input_proj.{p}", "head.embed.{p}"),
        Rename("arhead.cond_proj.{p}", "head.condition.{p}"),
        Rename(f"{block}.attn.q_bias", "head.net.attention.{i}.q_bias"),
        Rename(f"{block}.attn.v_bias", "head.net.attention.{i}.v_bias"),
        Rename(f"{block}.attn.mat_qkv.weight", "head.net.attention.{i}.qkv.weight"),
        Rename(f"{block}.attn.proj.{{p}}", "head.net.attention.{i}.proj.{p}"),
        Rename(f"{block}.ffn.fc1.{{p}}", "head.net.mlp.{i}.up.{p}"),
        Rename(f"{block}.ffn.fc2.{{p}}", "head.net.mlp.{i}.out.{p}"),
        Rename(f"{block}.ada_lin.1.{{p}}", "head.net.norm.maps.{i}.{p}"),
        Rename("arhead.head_nm.ada_lin.1.{p}", "head.net.norm.final.{p}"),
        Rename("arhead.head.{p}", "head.out.{p}"),
    )


def recorded(info: Info, inputs: Mapping[str, Tensor], section: str) -> Iterator[Tensor]:
    """The draws of a section, one after the other."""
    for name, _, count in info["draws"][section]:
        found = inputs[name]
        yield from found if count > 1 else [found]


@contextmanager
def picking(head: InnerMixture, chosen: list[Tensor]) -> Iterator[list[Tensor]]:
    """Recorded indices in place of drawn ones, while it lasts; what they would have been drawn from."""
    left, seen = iter(chosen), list[Tensor]()

    def pick(logits: Tensor, uniform: Tensor) -> Tensor:
        seen.append(logits)
        return next(left).view(uniform.shape)

    object.__setattr__(head, "pick", pick)
    try:
        yield seen
    finally:
        object.__delattr__(head, "pick")


def replayed(
    head: InnerMixture, draws: Iterator[Tensor], step: int, rows: int, guided: bool, at: Callable[[Tensor], Tensor]
) -> tuple[dict[tuple[str, int], Tensor], list[Tensor]]:
    """Numbers and indices of one token's features for the streams of our head; ``at`` brings official rows in the order of ours."""
    numbers: dict[tuple[str, int], Tensor] = {}
    chosen: list[Tensor] = []
    for g in range(head.groups):
        component, noise = at(next(draws)), at(next(draws).transpose(0, 1)[:, :, 0])  # (M, S), (M, S, K, F)
        index = component[..., None, None].expand(-1, -1, 1, noise.shape[-1])
        numbers |= {(f"head.{g}", step): component.float(), (f"head.{g}.noise", step): noise.gather(2, index).squeeze(2)}
        chosen.append(component)
        if guided:
            chosen.append(at(next(draws)))
            numbers[f"head.{g}.chosen", step] = chosen[-1].float()
    return numbers, chosen


@torch.no_grad()
def head_outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head alone: its likelihood and outputs, and the features of one token."""
    head, given = cast(InnerMixture, model.head), flat(info)["config"]
    z, target, mask = inputs["head_z"], inputs["head_target"], inputs["head_mask"]
    # The official loss lacks the normal distribution's constant.
    nll = head.loss(z[None], target[None])[0] - target.shape[1] * 0.5 * math.log(2 * math.pi)
    result = {"head_nll": nll.mean(), "head_nll_masked": (nll * mask).sum() / mask.sum(), "head_pred": head.taught(z, target)}
    scale = given.get("head_cfg", 1.0)
    rows = len(z) if scale == 1 else 1
    hidden = Hidden(z[None, :rows], None if scale == 1 else z[None, 1:2], scale - 1)
    numbers, chosen = replayed(head, recorded(info, inputs, "head_sample"), 0, rows, scale != 1, lambda t: t)
    with picking(head, chosen) as seen:
        drawn = head.draw(hidden, model.sampler, Moment(0, 1, 0, 1, 1), ReplayedSamples(1, numbers)).data[0]
    share = [logits.softmax(-1) for logits in seen]
    result["head_sample"] = drawn if scale == 1 else torch.cat([drawn, drawn])
    result["head_sample_weight"] = torch.stack(share[:: 1 if scale == 1 else 2])
    if scale != 1:
        result["head_sample_select_prob"] = torch.stack(share[1::2]).unsqueeze(1)
    return result


@torch.no_grad()
def sampled(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sampling with the recorded draws, by the generator."""
    c, head = info["config"], cast(InnerMixture, model.head)
    labels, draws = Labels(inputs["gen_labels"]), recorded(info, inputs, "gen")
    order = torch.stack([next(draws) for _ in range(labels.rows)])
    plan = decoding_plan(order, cast(Masked, model.order).decoding.cut(model.layout.length))
    numbers: dict[tuple[str, int], Tensor] = {}
    chosen: list[Tensor] = []
    for g in range(plan.groups):
        found = replayed(head, draws, g, labels.rows * plan.sizes[g], c["cfg"] != 1, lambda t: t)
        numbers |= found[0]
        chosen += found[1]
    with picking(head, chosen), calls_of(head, "draw") as calls:
        steps = list(model.decode_steps(labels, model.sampler, ReplayedSamples(labels.rows, numbers), plan=plan))
    result = {"gen_latent": latents(steps[-1].state[0][: labels.rows], c["patch_size"])}
    for g, ((hidden, *_), drawn) in enumerate(calls):
        states = [h.flatten(0, 1) for h in (hidden.cond_BND, hidden.null_BND) if h is not None]
        result |= {f"gen_z_{g}": torch.cat(states), f"gen_tokens_{g}": drawn.data.flatten(0, 1).repeat(len(states), 1)}
    return result


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture."""
    info = flat(info)
    orders = torch.stack(list(recorded(info, inputs, "loss")))
    dropped = torch.where(inputs["label_drop_rand"] < 0.5, 0.0, 1.0)
    given = {**inputs, "tf_label_drop_uniform": dropped} | {f"tf_order_{i}": each for i, each in enumerate(orders)}
    net = cast(MaskedAutoencoder, model.net)
    with calls_of(net.encoder, "forward") as calls:
        x0, masked, z, found = masked_pass(model, info, given)
    seen = torch.cat([masked.new_ones(len(masked), net.buffer), ~masked], 1)
    loss = (model.head.loss(z, x0)[masked]).mean() - x0.shape[2] * 0.5 * math.log(2 * math.pi)
    return {
        **head_outputs(model, info, inputs),
        **found,
        "tf_encoder_out": calls[0][1][seen].unflatten(0, (len(masked), -1)).detach(),
        "loss": loss.detach(),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
        **sampled(model, info, inputs),
    }
