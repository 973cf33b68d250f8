"""PFGM++ (Newbeeer/pfgmpp, CC BY-NC-SA 4.0): official weights by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.zoo.densities.pfgmpp.module import DATA, PFGMPP, FieldSampler, stable_targets, trajectory
from tokenloom.models.zoo.densities.pfgmpp.unet import UNet

FAMILY = "pfgmpp"

Info = Mapping[str, Any]

#: Of the net and its preconditioning; official configs hold them under ``net``, with the classes' own defaults.
NET = Options(
    {k: inert("of training alone") for k in ("dropout", "label_dropout")},
    img_resolution=used("side of an image"),
    img_channels=used("its channels"),
    label_dim=used("classes; 0: none", default=0),
    augment_dim=used("numbers of an augmentation; 0: none", default=0),
    pfgmpp=inert("says that the model was trained so"),
    pfgm=only(False, why="a net with a further output belongs to another method"),
    use_fp16=only(False, why="numbers are float32"),
    D=used("further dimensions", default=128),
    sigma_min=used("the smallest level", default=0),
    sigma_max=used("the largest level", default=math.inf),
    sigma_data=only(DATA, why="images in [-1, 1] have it"),
    model_type=used("the net", "SongUNet", "DhariwalUNet", default="DhariwalUNet"),
    model_channels=used("width; none: the class's", default=None),
    channel_mult=used("its multiples at each resolution; none: the class's", default=None),
    channel_mult_emb=used("of the embedding", default=4),
    num_blocks=used("blocks of a resolution; none: the class's", default=None),
    attn_resolutions=used("sides with attention; none: the class's", default=None),
    embedding_type=used("sines or Fourier features", "positional", "fourier", default="positional"),
    channel_mult_noise=used("widths of them", default=1),
    encoder_type=used("how small images enter", "standard", "skip", "residual", default="standard"),
    decoder_type=used("how they leave", "standard", "skip", default="standard"),
    resample_filter=used("taps of the filter that resizes", default=(1, 1)),
    small=inert("nothing reads it"),
)
SAMPLER = Options(
    num_steps=used("noise levels", default=18),
    sigma_min=used("the smallest", default=0.002),
    sigma_max=used("the largest", default=80),
    rho=used("their spacing", default=7),
    S_churn=used("noise added anew", default=0),
    S_min=used("from this level", default=0),
    S_max=used("to this level", default=math.inf),
    S_noise=used("its size", default=0),
)
OPTIONS = Options(
    {k: inert("recorded inputs say it") for k in ("seed", "batch", "refs", "gen_batch")},
    net=used("settings of the net"),
    loss=used("mean and deviation of log levels"),
    lsun=used("levels of training are larger", default=False),
    sampler=used("settings of the sampler"),
    ablation=only(None, why="the other schedules of that sampler are not built"),
)


def net_of(info: Info) -> dict[str, Any]:
    """Settings of the net, with the defaults of its class."""
    n = NET.read({"config": OPTIONS.read(info)["net"]})
    song = n["model_type"] == "SongUNet"
    own = {"model_channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 4, "attn_resolutions": (16,)}
    adm = {"model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3, "attn_resolutions": (32, 16, 8)}
    return n | {key: value for key, value in (own if song else adm).items() if n[key] is None}


def config(info: Info) -> PFGMPP.Config:
    """Our config for the official settings."""
    c, n = OPTIONS.read(info), net_of(info)
    s = SAMPLER.read({"config": c["sampler"]})
    if unknown := sorted(c["loss"].keys() - {"P_mean", "P_std"}):
        raise ConfigError(f"config.loss.{unknown[0]}={c['loss'][unknown[0]]!r}: the family knows P_mean and P_std")
    net = UNet.Config(
        kind="song" if n["model_type"] == "SongUNet" else "adm",
        width=n["model_channels"],
        multipliers=tuple(n["channel_mult"]),
        embedding_multiple=n["channel_mult_emb"],
        blocks=n["num_blocks"],
        attention=tuple(n["attn_resolutions"]),
        dropout=0.0,
        times=n["embedding_type"],
        times_multiple=n["channel_mult_noise"],
        encoder=n["encoder_type"],
        decoder=n["decoder_type"],
        taps=tuple(n["resample_filter"]),
        augment=n["augment_dim"],
    )
    sampler = FieldSampler(
        steps=s["num_steps"],
        smallest=max(s["sigma_min"], n["sigma_min"]),
        largest=float(min(s["sigma_max"], n["sigma_max"])),
        rho=float(s["rho"]),
        churn=float(s["S_churn"]),
        low=float(s["S_min"]),
        high=min(float(s["S_max"]), 1e6),
        noise=float(s["S_noise"]),
    )
    return PFGMPP.Config(net=net, dims=n["D"], classes=n["label_dim"], sampler=sampler)


def build(info: Info) -> PFGMPP:
    """Our model for the official settings."""
    n = net_of(info)
    return config(info).build(signal=signals.image(n["img_resolution"], n["img_channels"]))


def names(info: Info) -> NameMap:
    """Official names to ours: convolutions stand inside of what resizes, but those of attention and the norms."""
    m, block = "model.", "model.{h}.{b}."
    inner = {"conv0": "conv0.conv", "conv1": "conv1.conv", "skip": "skip.conv"}
    kept = ("norm0", "norm1", "norm2", "affine", "qkv", "proj")
    rules = [
        Rename(f"{m}map_label.{{p}}", "net.label.{p}"),
        Rename(f"{m}map_augment.{{p}}", "net.augment.{p}"),
        Rename(f"{m}map_layer{{i}}.{{p}}", "net.layer{i}.{p}"),
        Rename(f"{m}map_noise.freqs", "net.frequency"),
        Rename(f"{m}out_norm.{{p}}", "net.out_norm.{p}"),
        Rename(f"{m}out_conv.{{p}}", "net.out_conv.conv.{p}"),
        Ignore(f"{m}{{rest}}.resample_filter"),
    ]
    for leaf in ("weight", "bias"):
        for theirs, ours in inner.items():
            rules.append(Rename(f"{block}{theirs}.{leaf}", f"net.{{h}}.{{b}}.{ours}.{leaf}"))
        rules += [Rename(f"{block}{part}.{leaf}", f"net.{{h}}.{{b}}.{part}.{leaf}") for part in kept]
        for name in ("_conv", "_aux_skip", "_aux_residual", "_aux_conv"):
            rules.append(Rename(f"{m}{{h}}.{{i}}x{{j}}{name}.{leaf}", f"net.{{h}}.{{i}}x{{j}}{name}.conv.{leaf}"))
        rules.append(Rename(f"{m}{{h}}.{{i}}x{{j}}_aux_norm.{leaf}", f"net.{{h}}.{{i}}x{{j}}_aux_norm.{leaf}"))
    return NameMap(*rules)


def noise_of(model: PFGMPP, sigma: Tensor, beta: Tensor, normal: Tensor) -> Tensor:
    """(B, C, H, W) noise by the recorded radius, which is clipped, and direction."""
    b = beta.double().clamp(1e-3, 1 - 1e-3)
    radius = sigma.double() * math.sqrt(model.config.dims) * (b / (1 - b + 1e-8) + 1e-8).sqrt()
    return (radius[:, None] * normal / normal.norm(dim=1, keepdim=True)).float().view(-1, *model.shape)


def outputs(model: PFGMPP, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: the net, the losses of three kinds of noise, targets from references, and sampling."""
    c, images, labels = OPTIONS.read(info), inputs["images"], inputs.get("labels")
    larger = 380 / 80 if c["lsun"] else 1.0
    level = {"P_mean": -1.2, "P_std": 1.2} | c["loss"]

    def level_of(normal: Tensor) -> Tensor:
        return (normal.flatten() * level["P_std"] + level["P_mean"]).exp() * larger

    sigma = level_of(inputs["loss_randn_0"])
    x = images + noise_of(model, sigma, inputs["loss_beta_1"], inputs["loss_randn_2"])
    loss_map = model.weight(sigma) * (model.denoised(x, sigma, labels) - images).square()
    loss = loss_map.sum() / len(images)
    diffused, even = level_of(inputs["edm_loss_randn_0"]), 0.02 * (100 / 0.02) ** inputs["ve_loss_rand_0"].flatten()
    spread = images + noise_of(model, even, inputs["ve_loss_beta_1"], inputs["ve_loss_randn_2"])
    result = {
        "perturbed": x,
        "loss_sigma": sigma,
        "loss_map": loss_map,
        "loss": loss,
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    with torch.no_grad():
        noisy = images + diffused.view(-1, 1, 1, 1) * inputs["edm_loss_randn_1"]
        targets = [stable_targets(x.flatten(1), sigma, inputs["refs"].flatten(1), d) for d in (model.config.dims, 0)]
        result |= {
            "denoised": model.denoised(images, inputs["sigma"], labels),
            "raw": model.net(images, inputs["sigma"].log() / 4, labels),
            "edm_loss_map": model.weight(diffused) * (model.denoised(noisy, diffused, labels) - images).square(),
            "ve_loss_map": (model.denoised(spread, even, labels) - images).square() / even.view(-1, 1, 1, 1).square(),
            "stf_target_pfgmpp": targets[0],
            "stf_target_diffusion": targets[1],
        }
        result |= sampled(model, inputs)
    return {k: v.detach() for k, v in result.items()}


def sampled(model: PFGMPP, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sampling from far away, and as a diffusion does."""
    own, labels = model.config.sampler, inputs.get("gen_labels")

    def denoised(x: Tensor, sigma: float) -> Tensor:
        return model.denoised(x.float(), torch.full((len(x),), sigma, dtype=torch.float64).float(), labels).double()

    each = list(trajectory(own, inputs["latents"], denoised, lambda i: inputs["gen_randn_0"][i]))
    start = inputs["latents_edm"].double() * own.largest
    *_, other = trajectory(replace(own), start, denoised, lambda i: inputs["gen_edm_randn_0"][i])
    return {"sample": each[-1].float(), "sample_trajectory": torch.stack(each).float(), "sample_edm": other.float()}
