"""NextStep-1 (stepfun-ai/NextStep-1, Apache-2.0): official weights by name; prompts are ids of its own tokenizer of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.flows.matching import FlowSampler, between, drift, score
from tokenloom.models.parts.heads.flow import FlowMatching
from tokenloom.models.parts.heads.hidden import Hidden, guide
from tokenloom.models.pretrained.mar import head_names, patches
from tokenloom.models.pretrained.names import NameMap, Rename, Rule
from tokenloom.models.pretrained.options import RECORDED, Options, inert, only, used
from tokenloom.models.pretrained.parity import ReplayedDraws, ReplayedSamples, gradient_norms, paired
from tokenloom.models.sampling.sampler import Constant, Linear, Moment, Sampler, Schedule
from tokenloom.models.zoo.generators.nextstep.module import NextStep, causal
from tokenloom.models.zoo.generators.nextstep.recipe import nextstep
from tokenloom.models.zoo.generators.nextstep.words import Words

FAMILY = "nextstep_head"

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    model=used("settings of the class"),
    latent_hw=used("rows and columns of the recorded latents"),
    head_n=inert("recorded inputs say it"),
    sample=used("settings of the head's recorded samples"),
    gen=used("settings of the recorded generation"),
)
MODEL = Options(
    vocab_size=used("ids of text and symbols"),
    hidden_size=used("width"),
    intermediate_size=used("width of the MLPs"),
    num_hidden_layers=used("blocks"),
    num_attention_heads=used("heads"),
    num_key_value_heads=used("heads of keys and values"),
    max_position_embeddings=inert("rotary angles have no end"),
    rms_norm_eps=used("of the norms"),
    rope_theta=used("base of the rotary angles"),
    attention_bias=used("biases of queries, keys and values", True, False),
    o_attention_bias=used("bias of attention's output; none: as the others", True, False, None, default=None),
    mlp_bias=only(False, why="Qwen2.5 and Llama have none"),
    hidden_act=only("silu", why="Qwen2.5 and Llama have it"),
    tie_word_embeddings=only(False, why="the class has a head of its own"),
    pad_token_id=inert("recorded inputs say what is padding"),
    bos_token_id=inert("recorded inputs hold it"),
    eos_token_id=inert("recorded inputs hold it"),
    boi=inert("recorded inputs hold it"),
    eoi=inert("recorded inputs hold it"),
    image_placeholder_id=used("id in the place of an image token"),
    latent_size=inert("the class computes nothing from it"),
    latent_patch_size=used("latents of a token, on a side"),
    latent_channels=used("channels of a latent"),
    lm_loss_weight=used("of the text's loss"),
    im_loss_weight=used("of the image's"),
    fm_head_dim=used("width of the head"),
    fm_head_layers=used("its blocks"),
    fm_head_batch_mul=used("times drawn for a target"),
    use_gen_pos_embed=used("whether generation gives the head places", True, False),
)


def model_of(info: Info) -> dict[str, Any]:
    """Settings of the class, read strictly."""
    return MODEL.read({"config": OPTIONS.read(info)["model"]})


def guidance(name: str, scale: float) -> Schedule:
    """Official scale s is u + s (c - u); ``linear`` falls from it, evenly over the tokens, towards 1."""
    return Linear(start=scale - 1, value=0.0, clock="before") if name == "linear" else Constant(value=scale - 1)


def config(info: Info) -> NextStep.Config:
    """Our config for the official settings."""
    c, m = OPTIONS.read(info), model_of(info)
    out = m["attention_bias"] if m["o_attention_bias"] is None else m["o_attention_bias"]
    made = nextstep(
        depth=m["num_hidden_layers"],
        width=m["hidden_size"],
        heads=m["num_attention_heads"],
        kv_heads=m["num_key_value_heads"],
        inner=m["intermediate_size"],
        base=m["rope_theta"],
        eps=m["rms_norm_eps"],
        patch=m["latent_patch_size"],
        head_depth=m["fm_head_layers"],
        head_width=m["fm_head_dim"],
        repeats=m["fm_head_batch_mul"],
    )
    bias: Any = ("qkv" if out else "in") if m["attention_bias"] else "out" if out else "none"
    g = c["gen"]
    return replace(
        made,
        net=replace(made.net, attention=replace(made.net.attention, bias=bias)),
        weights=(m["lm_loss_weight"], m["im_loss_weight"]),
        places=32 if m["use_gen_pos_embed"] else 0,
        tokens="normalised" if g["use_norm"] else "drawn",
        condition=Words.Config(vocabulary=m["vocab_size"], dropout=0.0),
        sampler=Sampler(
            guidance=guidance(g["cfg_schedule"], g["cfg"]),
            head=FlowSampler(steps=g["num_sampling_steps"], solver="sde", shift=g["timesteps_shift"], final="velocity"),
        ),
    )


def build(info: Info) -> NextStep:
    """Our model for the official settings."""
    c, m = OPTIONS.read(info), model_of(info)
    return config(info).build(TokenLayout(grids=(tuple(c["latent_hw"]),), channels=m["latent_channels"]), 0)


def names(info: Info) -> NameMap:
    """Official names to ours; channels of queries and keys that are turned together are neighbours here."""
    m = model_of(info)
    heads, kv = m["num_attention_heads"], m["num_key_value_heads"]
    width = m["hidden_size"] // heads
    load, dump = paired(heads + kv, of=heads + 2 * kv)
    layer = "layers.{i}."
    qkv = Rule(
        tuple(f"{layer}self_attn.{n}_proj.{{p}}" for n in "qkv"),
        ("net.attention.{i}.qkv.{p}",),
        lambda t: [load(torch.cat(t))],
        lambda t: list(dump(t[0]).split([heads * width, kv * width, kv * width])),
    )
    return NameMap(
        Rename("embed_tokens.weight", "condition.table.weight"),
        Rename("lm_head.weight", "words.weight"),
        Rename("gen_pos_embed", "place", lambda t: t[0], lambda t: t[None]),
        Rename("image_in_projector.{p}", "embed.{p}"),
        Rename("image_out_projector.{p}", "between.{p}"),
        qkv,
        Rename(f"{layer}self_attn.o_proj.{{p}}", "net.attention.{i}.proj.{p}"),
        Rename(f"{layer}mlp.gate_proj.weight", "net.mlp.{i}.gate.weight"),
        Rename(f"{layer}mlp.up_proj.weight", "net.mlp.{i}.up.weight"),
        Rename(f"{layer}mlp.down_proj.weight", "net.mlp.{i}.out.weight"),
        Rename(f"{layer}input_layernorm.weight", "net.norm.branches.{i}.0.weight"),
        Rename(f"{layer}post_attention_layernorm.weight", "net.norm.branches.{i}.1.weight"),
        Rename("norm.weight", "net.norm.final.weight"),
        *head_names("image_head.net.", "head."),
    )


def outputs(model: NextStep, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: the head alone, a training pass over texts and images, and generation."""
    m, head, table = model_of(info), model.head, cast(Words, model.condition).table
    ids, token = inputs["input_ids"], patches(inputs["latents"], m["latent_patch_size"])
    image = ids == m["image_placeholder_id"]
    x = torch.empty(*ids.shape, m["hidden_size"])
    x[~image], x[image] = table(ids[~image]), model.embed(token).flatten(0, 1)
    h = model.states(x, causal(torch.ones_like(image)))
    before, rows, repeats = image[:, 1:], len(ids), head.config.repeats
    labels = torch.where(before, -100, inputs["labels"][:, 1:])
    text = model.text_loss(h[:, :-1], labels)
    # As the released training has it, the head is given states as they are.
    draws = ReplayedDraws(
        inputs["loss_randn_1"].view(repeats, rows, -1).permute(1, 2, 0).contiguous(),
        inputs["loss_randn_0"].view(repeats, rows, -1, token.shape[2]).permute(1, 2, 0, 3).contiguous(),
    )
    each = head.loss(h[:, :-1][before].unflatten(0, (rows, -1)), token, draws)
    mask = inputs["latents_mask"][:, None].expand_as(each)
    flow = (each * mask).sum() / (mask.sum() + 1e-8)
    loss = model.config.weights[0] * text + model.config.weights[1] * flow
    result = {
        "inputs_embeds": x,
        "patches": token,
        "hidden_states": h,
        "lm_loss": text,
        "im_loss": flow,
        "loss": loss,
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    with torch.no_grad():
        result |= head_outputs(head, OPTIONS.read(info)["sample"], inputs) | generated(model, info, inputs)
    return {name: value.detach() for name, value in result.items()}


def head_outputs(head: FlowMatching, s: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head alone: velocity, score, both losses, both samplers."""
    x, t, h, target = (inputs[f"head_{name}"] for name in ("x_t", "t", "c", "target"))
    velocity = head(x, t, h)

    def loss(name: str) -> Tensor:
        noise, time = inputs[f"head_{name}_randn_0"], inputs[f"head_{name}_randn_1"].sigmoid()
        return (head(between(noise, target, time), time, h) - (target - noise)).square().mean(1)

    masked, cond, null = loss("loss_masked"), *h.chunk(2)
    own = FlowSampler(steps=s["num_sampling_steps"], solver="sde", shift=s["timesteps_shift"], last=s["last_step_size"], final="velocity")
    drawn = inputs["head_sample_randn_0"].repeat(1, len(cond) // s["noise_repeat"], 1).unsqueeze(2)
    numbers = {("head", 0): drawn[0]} | {(f"head.{i - 1}", 0): drawn[i] for i in range(1, len(drawn))}
    hidden = Hidden(cond[:, None], null[:, None], s["cfg"] - 1)
    sample = head.sample(hidden, own, Moment(0, 1, 0, 1, 1), ReplayedSamples(len(cond), numbers))
    # The other sampler, of which the first row is kept, adds noise in its last step too.
    times = [i / own.steps for i in range(own.steps)]
    times = [*(u / (own.shift - (own.shift - 1) * u) for u in times), 1.0]
    y = inputs["head_sample_new_randn_0"]
    for i, (a, b) in enumerate(pairwise(times)):
        at = torch.full((len(y),), a)
        v = guide(head(y, at, cond), head(y, at, null), s["cfg"] - 1)
        y = y + (b - a) * drift(y, v, a) + math.sqrt(2 * (1 - a) * (b - a)) * inputs["head_sample_new_randn_1"][i, : len(y)]
    return {
        "head_velocity": velocity,
        "head_score": score(x, velocity, t[:, None]),
        "head_loss": loss("loss").mean(),
        "head_loss_masked": (masked * inputs["head_mask"]).sum() / inputs["head_mask"].sum(),
        "head_sample": sample.squeeze(1),
        "head_sample_new": y[:1],
    }


def generated(model: NextStep, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Generation after recorded prompts, rows of the condition and then of the null one, with the recorded noise."""
    g, ids, seen = OPTIONS.read(info)["gen"], inputs["gen_input_ids"], inputs["gen_attention_mask"].bool()
    x, steps = cast(Words, model.condition).table(ids), cast(FlowSampler, model.sampler.head).steps
    noise = inputs["gen_randn_0"].unflatten(0, (-1, steps)).repeat(1, 1, g["captions"], 1).unsqueeze(3)
    numbers: dict[tuple[str, int], Tensor] = {}
    for i, each in enumerate(noise):
        numbers |= {("head", i): each[0]} | {(f"head.{k - 1}", i): each[k] for k in range(1, steps)}
    (own, null), (own_seen, null_seen) = x.chunk(2), seen.chunk(2)
    token = model.drawn((own, own_seen), (null, null_seen), model.sampler, ReplayedSamples(len(own), numbers))
    return {"gen_prompt_hidden": model.states(x, causal(seen))[:, -1:], "gen_tokens": token}
