"""The families that are timed: our model for the official settings, and a plain reading with the same weights.

Settings are the official ones but for width and depth, which are small enough for one thread; tokens are those of 256 x 256 images,
and of 128 x 128 in quick benches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.plain.arpg import ARPG
from benchmarks.speed.plain.halton_maskgit import HaltonMaskGIT
from benchmarks.speed.plain.llamagen import LlamaGen
from benchmarks.speed.plain.randar import RandAR
from benchmarks.speed.plain.rar import RAR
from benchmarks.speed.plain.var import VAR
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, Labels, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.plan import Plan
from tokenloom.models.pretrained import families
from tokenloom.models.sampling.sampler import Sampler

#: Width, depth and the side of the grid of tokens.
SIZES = {"full": (256, 4, 16), "quick": (256, 4, 8), "tiny": (64, 2, 4)}
CLASSES = 1000


@dataclass(frozen=True)
class Family:
    """One family: its name in ``models/pretrained``, the plain class, the official settings of a width, depth and grid."""

    name: str
    plain: Callable[[dict[str, Any]], nn.Module]
    settings: Callable[[int, int, int], dict[str, Any]]
    #: Official guidance scale, top-k and top-p with which images are made.
    scale: float
    top_k: int = 0
    top_p: float = 1.0
    #: Dropout with which it is trained.
    dropout: float = 0.1


def _llama(width: int, depth: int, side: int, **more: Any) -> dict[str, Any]:
    return {
        "dim": width, "n_layer": depth, "n_head": width // 64, "multiple_of": 256, "norm_eps": 1e-5,
        "rope_base": 10000, "vocab_size": 16384, "block_size": side * side, "num_classes": CLASSES, "cls_token_num": 1, **more,
    }  # fmt: skip


def _var(width: int, depth: int, side: int) -> dict[str, Any]:
    return {
        "patch_nums": [n for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16) if n <= side],
        "vocab_size": 4096, "Cvae": 32, "share_quant_resi": 4, "quant_resi": 0.5,
        "num_classes": CLASSES, "depth": depth, "embed_dim": width, "num_heads": width // 64, "mlp_ratio": 4.0, "norm_eps": 1e-6,
        "shared_aln": False, "attn_l2_norm": True, "cfg_scale": 1.5,
    }  # fmt: skip


def _rar(width: int, depth: int, side: int) -> dict[str, Any]:
    return {
        "codebook_size": 1024, "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 64,
        "intermediate_size": 4 * width, "image_seq_len": side * side, "condition_num_classes": CLASSES, "guidance_scale": 16.0,
        "guidance_scale_pow": 2.75, "temperature": 1.0,
    }  # fmt: skip


def _halton(width: int, depth: int, side: int) -> dict[str, Any]:
    return {
        "input_size": side, "hidden_dim": width, "codebook_size": 16384, "depth": depth, "heads": width // 64, "mlp_dim": 4 * width,
        "nclass": CLASSES, "register": 1, "proj": 1, "step": 2 * side, "w": 1.5, "top_k": 0,
    }  # fmt: skip


FAMILIES = {
    f.name: f
    for f in (
        Family("var", VAR, _var, scale=2.5, top_k=900, top_p=0.96, dropout=0.0),
        Family("llamagen_c2i", LlamaGen, lambda w, d, s: _llama(w, d, s, cfg_scale=2.0), scale=2.0),
        Family("rar", RAR, _rar, scale=16.0),
        Family(
            "arpg",
            ARPG,
            lambda w, d, s: _llama(w, d, s, num_iter=s * s // 4, guidance_scale=5.0, cfg_schedule="linear", sample_schedule="arccos"),
            scale=5.0,
        ),
        Family("randar", RandAR, lambda w, d, s: _llama(w, d, s, num_inference_steps=s * s * 11 // 32, cfg_scales=[1.0, 3.4]), scale=3.4),
        Family("halton_maskgit", HaltonMaskGIT, _halton, scale=2.5),
    )
}


def dropped(config: GroupGenerator.Config, rate: float) -> GroupGenerator.Config:
    """The config with this dropout wherever its recipe has one."""
    net: Any = config.net
    net = replace(net, content=replace(net.content, dropout=rate)) if hasattr(net, "content") else replace(net, dropout=rate)
    return replace(config, net=net, feed=replace(config.feed, dropout=rate))  # type: ignore[call-arg]


class Pair:
    """Our model and the plain one with the same weights.

    Raises:
        AssertionError: they do not agree, so that their times say nothing.
    """

    def __init__(self, family: Family, size: str, dropout: float = 0.0) -> None:
        self.family, settings = family, {**family.settings(*SIZES[size]), "dropout": dropout}
        module: Any = families()[family.name]
        info = {"config": settings}
        torch.manual_seed(0)
        self.ours: GroupGenerator = module.build(info)
        if dropout:
            self.ours = dropped(module.config(info), dropout).build(self.ours.layout, *self.ours.given)
        # Heads and adaptive norms start at zero, where all codes would be alike.
        with torch.no_grad():
            for parameter in self.ours.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        self.plain: Any = family.plain(settings)
        official = {k.removeprefix("state_vae/"): v for k, v in module.names(info).dump(self.ours.state_dict()).items()}
        odd = self.plain.load_state_dict(official, strict=False)
        assert not odd.unexpected_keys, odd
        assert set(odd.missing_keys) <= {"head.weight"}, odd

    def batch(self, rows: int) -> Batch:
        """Random tokens and labels."""
        layout, generator = self.ours.layout, torch.Generator().manual_seed(rows)
        ids = torch.randint(layout.vocabulary, (rows, layout.length), generator=generator)
        labels = Labels(torch.randint(CLASSES, (rows,), generator=generator))
        return Batch(tokens=Tokens(ids, layout), conditions=Conditions.of(labels))

    # --- sampling

    def sampler(self, greedy: bool) -> Sampler:
        """The official one, or the same that takes the likeliest code."""
        return replace(self.ours.sampler, top_k=1 if greedy else self.family.top_k, top_p=1.0 if greedy else self.family.top_p)

    def sample_ours(self, labels: Tensor, greedy: bool = False, plan: Plan | None = None) -> Tensor:
        """(B, L) ids."""
        given = {} if plan is None else {"plan": plan}
        tokens, _ = self.ours.decode(Labels(labels), self.sampler(greedy), SampleDraws.of(0, 0, len(labels)), **given)
        return tokens.data

    def sample_plain(self, labels: Tensor, greedy: bool = False, order: Tensor | None = None) -> Tensor:
        """(B, L) ids."""
        k, p = (1, 1.0) if greedy else (self.family.top_k, self.family.top_p)
        return self.plain.sample(labels, order, self.family.scale, k, p)

    def same_samples(self, rows: int = 2) -> float:
        """The share of equal codes of greedy samples, in one order; sums of other kernels may turn what is nearly a tie."""
        self.ours.eval()
        self.plain.eval()
        labels = torch.arange(rows) * 7
        plan = self.ours.order.decode(self.ours.layout, rows, SampleDraws.of(0, 0, rows))
        order = plan.sequence_BL
        if self.family.name == "arpg":  # one order for all rows
            order = order[0]
            plan = replace(plan, sequence_BL=order[None])
        ours, plain = self.sample_ours(labels, True, plan), self.sample_plain(labels, True, order)
        share = float((ours == plain).float().mean())
        assert share == 1.0, f"{self.family.name}: only {share:.4f} of the greedy codes are equal"
        return share

    # --- training

    def loss_ours(self, batch: Batch, step: int = 0) -> Tensor:
        """The loss of a step with fresh draws."""
        return self.ours.losses(batch, "train", self.draws(batch.rows, step))["loss"]

    def draws(self, rows: int, step: int) -> Draws:
        """The numbers of a step."""
        return Draws.whole(0, step, rows)

    def same_loss(self, batch: Batch) -> None:
        """See that the losses and the gradients of one order are equal; without dropout."""
        self.ours.train()
        self.plain.train()
        plan = self.ours.order.plan(self.ours.layout, self.draws(batch.rows, 0))
        order = plan.sequence_BL.expand(batch.rows, -1) if plan.known_BL is None else ~plan.known_BL
        assert batch.tokens is not None
        ours = self.loss_ours(batch)
        plain = self.plain.loss(batch.tokens.data, batch.conditions.get("class").label_B, order)  # type: ignore[union-attr]
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
        ours.backward()
        plain.backward()
        norms = [sum(float(p.grad.square().sum()) for p in m.parameters() if p.grad is not None) ** 0.5 for m in (self.ours, self.plain)]
        assert abs(norms[0] - norms[1]) < 1e-3 * norms[1], f"{self.family.name}: gradients of norm {norms[0]} and {norms[1]}"
