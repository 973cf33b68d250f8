"""PAR's transformer (Epiphqny/PAR, no licence stated): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.shifted import Registers
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.orders import Regions
from tokenloom.models.pretrained import llamagen
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import Options, square, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy

FAMILY = "par"

Info = Mapping[str, Any]

OPTIONS = Options(
    llamagen.LLAMA,
    spe_token_num=used("learned tokens of a group: its size less one"),
    ar_token_num=used("regions, a square number; the first token of each comes alone"),
)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    across = square("ar_token_num", c["ar_token_num"])
    if c["spe_token_num"] != c["ar_token_num"] - 1:
        raise ConfigError(f"config.spe_token_num={c['spe_token_num']}: a group has a token of each region, so it is ar_token_num - 1")
    return replace(llamagen.of(c), order=Regions(across=across), feed=Registers.Config(registers=c["spe_token_num"]))


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    return llamagen.built(config(info), OPTIONS.read(info))


def names(info: Info) -> NameMap:
    """Official names to ours."""
    register = "feed.register"
    return NameMap(
        *llamagen.names(info).rules,
        Rename("spe_tok_embeddings.special_embeddings.weight", register, lambda t: t.view(1, *t.shape[-2:]), lambda t: t[0]),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: logits, loss, guided greedy parallel decoding, gradient norms."""
    ids = inputs["ids"]
    plan = model.order.plan(model.layout, None)
    logits = cast(Categorical, model.head).logits(model(ids, Labels(inputs["labels"]), plan))
    grouped = ids.gather(1, plan.sequence_BL.expand_as(ids))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), grouped.flatten())
    steps = list(model.decode_steps(Labels(inputs["gen_labels"]), greedy(model.sampler), SampleDraws.of(0, 0, len(inputs["gen_labels"]))))
    drawn = torch.cat([s.data for s in steps], dim=1)
    return {
        "grouped_ids": grouped,
        "logits": logits.detach(),
        "loss": loss.detach(),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "gen_grouped_ids": drawn,
        "gen_ids": torch.zeros_like(drawn).scatter(1, plan.sequence_BL.expand_as(drawn), drawn),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
