"""STARFlow (apple/ml-starflow, Apple sample code licence): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.flows.causal import CausalFlow, Grid
from tokenloom.models.parts.mlp import GEGLU, GELU
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.parts.similarity import Normed, Scaled
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms, paired
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.starflow.condition import PlainFeatures
from tokenloom.models.zoo.generators.starflow.module import InverseSampler, STARFlow

FAMILY = "starflow"

Info = Mapping[str, Any]

#: Of the class; official configs hold them under ``model``, with the class's own defaults.
MODEL = Options(
    {k: inert("of training alone") for k in ("use_checkpoint", "use_checkpoint_mlp")},
    in_channels=used("channels of a latent"),
    img_size=used("side of the latents"),
    patch_size=used("side of a patch"),
    channels=used("width"),
    num_blocks=used("flows"),
    layers_per_block=used("blocks of each flow, or of all; 0: the identity"),
    head_dim=used("width of a head", default=64),
    num_heads=used("heads; none: as many as the width holds", default=None),
    num_kv_heads=used("heads of keys and values; none: all", default=None),
    rope=only(True, 1, why="the class cannot run with its table of positions"),
    pt_seq_len=used("side of the grid of positions; none: that of the patches", default=None),
    sos=used("a learned start of the sequence", default=False),
    txt_size=used("length of a text; 0: none", default=0),
    txt_dim=used("features of a text", default=0),
    cond_top_only=used("the topmost flow alone sees the text", default=False),
    use_softplus=used("scales by softplus, or by the exponential", default=False),
    use_swiglu=used("gated MLPs", default=False),
    use_bias=used("biases of attention and MLPs", default=True),
    use_qk_norm=used("norms of queries and keys", default=False),
    use_post_norm=used("norms after attention and MLPs", default=False),
    use_final_norm=used("a norm of hidden states", default=False),
    hf_style_rope=used("which channels are turned together", default=False),
    norm_type=used("layer_norm, rms_norm, or none for any other", default="layer_norm"),
    use_pretrained_lm=only(None, why="the topmost flow would be a language model of billions of weights"),
    use_mm_attn=inert("without a language model nothing reads it"),
    soft_clip=used("bound of the outputs; 0: none", default=0),
    seq_order=used("direction of the flows", "R2L", "L2R", default="R2L"),
    learnable_self_denoiser=only(False, 0, why="the denoiser of video is not built"),
    conditional_denoiser=inert("without a denoiser nothing reads it"),
    denoiser_window=inert("without a denoiser nothing reads it"),
    temporal_causal=used("directions turn within frames", default=0),
    top_block_channels=used("width of the topmost flow; none: as all", default=None),
    shallow_block_local=used("the flows below the topmost see one frame", default=False),
    local_attn_window=only(None, 0, why="its sampling reads the context again, which is not built"),
)
OPTIONS = Options(
    {k: inert("recorded inputs say it") for k in ("seed", "batch", "proj_out_gain", "wide")},
    model=used("settings of the class"),
    guidance=used("weight of guidance", default=0),
    guide_what=used("empty: no guidance", default="ab"),
    attn_temp=used("temperature of attention in the inverse", default=1.0),
    noise_std=used("noise of training, which is taken away again", default=0.3),
    latent_norm_regularization=used("weight of what enters the flows", default=0.0),
    frames=used("of a video; 0: an image", default=0),
    jacobi=used("whether fixed-point iterations are recorded", default=False),
    self_denoise=used("whether the score's step is recorded", default=False),
)


def model_of(info: Info) -> dict[str, Any]:
    """Settings of the class.

    Raises:
        ConfigError: an unknown or unsupported one, or those that the class itself refuses.
    """
    m = MODEL.read({"config": OPTIONS.read(info)["model"]})
    layers = list(m["layers_per_block"])
    m["layers_per_block"] = layers * m["num_blocks"] if len(layers) == 1 else layers
    if len(m["layers_per_block"]) != m["num_blocks"] or not m["layers_per_block"][-1]:
        raise ConfigError(f"config.model.layers_per_block={layers}: one number for each of num_blocks flows, the last above 0")
    refused = {
        "cond_top_only": m["cond_top_only"] and not m["txt_size"],
        "shallow_block_local": m["shallow_block_local"] and not m["cond_top_only"],
        "temporal_causal": m["temporal_causal"] and m["seq_order"] != "L2R",
        "txt_size": bool(info["config"].get("frames")) and not m["txt_size"],
    }
    if wrong := [key for key, bad in refused.items() if bad]:
        raise ConfigError(f"config.model.{wrong[0]}={m[wrong[0]]!r}: the class refuses it beside the other settings")
    return m


def config(info: Info) -> STARFlow.Config:
    """Our config for the official settings."""
    c, m = OPTIONS.read(info), model_of(info)
    top = m["top_block_channels"] or m["channels"]
    flows: list[CausalFlow.Config | None] = []
    for index, depth in enumerate(m["layers_per_block"]):
        last = index == m["num_blocks"] - 1
        width, heads = top if last else m["channels"], m["num_heads"]
        features = m["txt_dim"] if last or not m["cond_top_only"] else 0
        flows.append(flow(m, depth, width, heads or width // m["head_dim"], features) if depth else None)
    flipped = (m["num_blocks"] - 1 + (m["seq_order"] == "L2R")) % 2
    return STARFlow.Config(
        flows=tuple(flows),
        features=m["txt_dim"],
        patch=m["patch_size"],
        top="backwards" if flipped else "forwards",
        reversal="frames" if m["temporal_causal"] else "all",
        local="frame" if m["shallow_block_local"] else "all",
        noise=c["noise_std"],
        norm=c["latent_norm_regularization"],
        reach=m["pt_seq_len"] or m["img_size"] // m["patch_size"],
        condition=PlainFeatures.Config(length=m["txt_size"]) if m["txt_size"] and m["txt_dim"] else None,
        sampler=Sampler(
            guidance=Constant(value=c["guidance"] if c["guide_what"] else 0.0),
            head=InverseSampler(temperature=c["attn_temp"], guided="top" if m["cond_top_only"] else "all"),
        ),
    )


def flow(m: Mapping[str, Any], depth: int, width: int, heads: int, features: int) -> CausalFlow.Config:
    """One flow of the class."""
    kind = {"layer_norm": "layer", "rms_norm": "rms_offset"}.get(m["norm_type"], "none")
    bias = "yes" if m["use_bias"] else "no"
    net = Transformer.Config(
        width=width,
        depth=depth,
        heads=heads,
        norm=PreNorm.Config(
            kind=cast(Any, kind),
            eps=1e-5 if kind == "layer" else 1e-6,
            last="raw",
            post="rms_offset" if m["use_post_norm"] else "none",
        ),
        mlp=GEGLU.Config(bias=cast(Any, bias)) if m["use_swiglu"] else GELU.Config(form="none", bias=cast(Any, bias)),
        attention=Attention.Config(
            similarity=Normed(kind="rms_offset") if m["use_qk_norm"] else Scaled(),
            bias="qkv" if m["use_bias"] else "none",
            kv_heads=m["num_kv_heads"] or 0,
            head_width=m["head_dim"],
        ),
        init=Init(std=0.02),
    )
    return CausalFlow.Config(
        net=net,
        start="learned" if m["sos"] else "kept",
        scale="softplus" if m["use_softplus"] else "exp",
        clip=float(m["soft_clip"]),
        last="norm" if m["use_final_norm"] else "raw",
        features=features,
        axes=3 if m["txt_size"] else 2,
    )


def build(info: Info) -> STARFlow:
    """Our model for the official settings."""
    c, m = OPTIONS.read(info), model_of(info)
    layout = TokenLayout(grids=((m["img_size"],) * 2,), channels=m["in_channels"], frames=max(1, c["frames"]))
    return config(info).build(layout, 1)


def names(info: Info) -> NameMap:
    """Official names to ours."""
    m = model_of(info)
    block, layer, ours = "blocks.{i}.", "blocks.{i}.attn_blocks.{j}.", "flows.{i}.net."
    kv = m["num_kv_heads"]
    queries = m["num_heads"] or m["channels"] // m["head_dim"]
    last = m["num_heads"] or (m["top_block_channels"] or m["channels"]) // m["head_dim"]
    rules = []
    for i, heads in enumerate([queries] * (m["num_blocks"] - 1) + [last]):
        ways = paired(heads + (kv or heads), of=heads + 2 * (kv or heads)) if m["hf_style_rope"] else (None, None)
        rules.append(Rename(f"blocks.{i}.attn_blocks.{{j}}.attention.qkv.{{p}}", f"flows.{i}.net.attention.{{j}}.qkv.{{p}}", *ways))
    each = paired(1) if m["hf_style_rope"] else (None, None)
    maps = {"gate_proj": "gate", "up_proj": "up", "down_proj": "out"} if m["use_swiglu"] else {"main.0": "up", "main.2": "out"}
    return NameMap(
        *rules,
        Ignore("var"),
        Ignore(f"{block}attn_mask"),
        Ignore("feat_rope.{rest}"),
        Rename(f"{block}sos_embed", "flows.{i}.first"),
        Rename(f"{block}proj_in.{{p}}", "flows.{i}.enter.{p}"),
        Rename(f"{block}proj_out.{{p}}", "flows.{i}.out.{p}"),
        Rename(f"{block}proj_txt.{{p}}", "flows.{i}.text.{p}"),
        Rename(f"{block}final_norm.weight", "flows.{i}.norm.weight"),
        Rename(f"{layer}attention.norm.{{p}}", f"{ours}norm.branches.{{j}}.0.{{p}}"),
        Rename(f"{layer}mlp.norm.{{p}}", f"{ours}norm.branches.{{j}}.1.{{p}}"),
        Rename(f"{layer}attention.post_norm.weight", f"{ours}norm.post.{{j}}.0.weight"),
        Rename(f"{layer}mlp.post_norm.weight", f"{ours}norm.post.{{j}}.1.weight"),
        Rename(f"{layer}attention.query_norm.weight", f"{ours}attention.{{j}}.similarity.q.weight", *each),
        Rename(f"{layer}attention.key_norm.weight", f"{ours}attention.{{j}}.similarity.k.weight", *each),
        Rename(f"{layer}attention.proj.{{p}}", f"{ours}attention.{{j}}.proj.{{p}}"),
        *(Rename(f"{layer}mlp.{theirs}.{{p}}", f"{ours}mlp.{{j}}.{mine}.{{p}}") for theirs, mine in maps.items()),
    )


def outputs(model: STARFlow, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture."""
    return {k: v.detach() for k, v in (forwards(model, info, inputs) | backwards(model, info, inputs)).items()}


def entered(model: STARFlow, x: Tensor) -> tuple[Tensor, Grid]:
    """Patches of latents (B, C, H, W) or (B, F, C, H, W), and their grid."""
    p, frames = model.config.patch, x.shape[1] if x.ndim == 5 else 0
    grid = Grid(frames, x.shape[-2] // p, x.shape[-1] // p)
    tokens = x.flatten(-2).transpose(-1, -2)
    return model.patches(tokens.flatten(1, 2) if frames else tokens, grid), grid


def left(model: STARFlow, x_BNP: Tensor, grid: Grid) -> Tensor:
    """Inverse of ``entered``."""
    p = model.config.patch
    tokens = model.tokens(x_BNP, grid).unflatten(1, (-1, grid.rows * p, grid.columns * p)).movedim(-1, 2)
    return tokens if grid.frames else tokens[:, 0]


def forwards(model: STARFlow, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Latents, log-determinants and losses."""
    image = inputs["x"].clone().requires_grad_()
    x, grid = entered(model, image)
    found, logs, text = model(x, inputs.get("y"), grid)
    nll, rows, shape = model.nll(found, logs), len(x), (grid.frames,) * bool(grid.frames) + (grid.rows, grid.columns)
    own = [log.unflatten(1, (grid.frames, -1)) if model.config.local == "frame" and grid.frames and i < len(logs) - 1 else log
           for i, log in enumerate(logs)]  # fmt: skip
    z = left(model, found[-1], grid)
    kept = z[:, 1:] if grid.frames else found[-1][:, 1:]
    dropped = [log[:, 1:] if log.ndim > 1 else log for log in own]
    loss = nll.mean() + model.config.norm * model.squares(found)
    log_mean = torch.stack([log.reshape(rows, -1).mean(1) for log in logs]).sum(0)
    result = {
        "z": z,
        "loss_nll": nll.mean(),
        "loss_z": 0.5 * found[-1].square().flatten(1).mean(1).mean(),
        "loss_logdet": -log_mean.mean(),
        "loss_weighted": (nll * torch.linspace(0.5, 1.5, rows)).mean(),
        "loss_drop_first": (
            0.5 * kept.square().flatten(1).mean(1) - torch.stack([d.reshape(rows, -1).mean(1) for d in dropped]).sum(0)
        ).mean(),
        "loss": loss,
        "x_grad": torch.autograd.grad(loss, image, retain_graph=True)[0],
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    result |= {f"block_output_{i}": y.unflatten(1, shape) for i, y in enumerate(found)}
    result |= {f"logdet_{i}": log for i, log in enumerate(own)}
    if text is not None and text.shape[1]:
        result["text_stream"] = text
    return result


@torch.no_grad()
def backwards(model: STARFlow, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: of latents, of noise with and without guidance, by fixed points, and the score's step."""
    c, y, null = OPTIONS.read(info), inputs.get("y"), inputs.get("y_uncond")
    own, weight = cast(InverseSampler, model.sampler.head), model.sampler.guidance.value
    plain = replace(own, temperature=1.0)
    x, grid = entered(model, inputs["x"])
    noise, _ = entered(model, inputs["noise"])

    def inverse(z: Tensor, how: InverseSampler, guided: float, of: Grid = grid) -> list[Tensor]:
        return [left(model, each, of) for each in model.inverse(z, y, null, how.how(guided), how.guided, of)]

    result = {"roundtrip": inverse(model(x, y, grid)[0][-1], plain, 0.0)[-1]}
    if "x_wide" in inputs:
        wide, other = entered(model, inputs["x_wide"])
        found, logs, _ = model(wide, y, other)
        result |= {
            "z_wide": left(model, found[-1], other),
            "logdet_sum_wide": torch.stack([log.reshape(len(wide), -1).sum(1) for log in logs]).sum(0),
            "roundtrip_wide": inverse(found[-1], plain, 0.0, other)[-1],
        }
    result |= {f"reverse_sequence_{i}": each for i, each in enumerate(inverse(noise, own, 0.0))}
    if c["guidance"] > 0 and null is not None:
        guided = inverse(noise, own, weight)
        result |= {f"reverse_guided_{i}": each for i, each in enumerate(guided)}
        result["reverse_guide_top"] = inverse(noise, replace(own, guided="top"), weight)[-1]
        result["reverse_guided_annealed"] = guided[-1]
    if c["jacobi"]:
        exact = replace(own, chunk=5)
        result["jacobi"] = inverse(noise, exact, 0.0)[-1]
        result["jacobi_few"] = inverse(noise, replace(own, chunk=4, iterations=2), 0.0)[-1]
        if c["guidance"] > 0 and null is not None:
            result["jacobi_guided"] = inverse(noise, exact, c["guidance"])[-1]
    if c["self_denoise"]:
        result["self_denoised"] = left(model, model.denoised(x, y, grid), grid)
    return result
