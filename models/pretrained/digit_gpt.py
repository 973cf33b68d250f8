"""DiGIT's first stage (DAMO-NLP-SG/DiGIT, MIT, on fairseq): a decoder over ids of cluster centres; official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.placed import Placed
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import PostNorm, PreNorm
from tokenloom.models.parts.orders import Raster
from tokenloom.models.pretrained.names import Fuse, Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import RECORDED, Options, inert, only, optional, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.sampling.sampler import Constant, Sampler

FAMILY = "digit_gpt"

Info = Mapping[str, Any]

#: Symbols before the codes: begin, padding, end, unknown; no image holds one.
SPECIAL, END = 4, 2
EQUAL = "released models have no map between widths"
OPTIONS = Options(
    RECORDED,
    args=used("options of the decoder, below"),
    codes=used("cluster centres"),
    feat=used("channels of the features"),
    grid=used("side of the grid"),
    classes=used("classes", default=1000),
    label_smoothing=used("of the loss", default=0.1),
    gen_len=used("tokens of a recorded run"),
    topk=used("likeliest codes to draw from", default=300),
    temperature=used("of sampling", default=1.0),
    batch=inert("recorded inputs say it"),
    gen_batch=inert("recorded inputs say it"),
)
#: Options of fairseq's decoder, under ``args``.
DECODER = Options(
    decoder_embed_dim=used("width"),
    decoder_output_dim=used("width of the output, the same"),
    decoder_input_dim=used("width of the embeddings, the same"),
    decoder_ffn_embed_dim=used("hidden width of the MLP"),
    decoder_layers=used("blocks"),
    decoder_attention_heads=used("heads"),
    activation_fn=only("gelu", why="released models have no other"),
    decoder_learned_pos=used("learned places, or fixed sinusoids", True, False, default=False),
    decoder_normalize_before=used("norms before branches and one at the end, or after branches", True, False, default=False),
    no_decoder_final_norm=only(False, why="released models end with the norm that norms before branches need"),
    class_conditional=used("starts with a class, or with the end symbol", True, False, default=True),
    max_target_positions=used("places"),
    share_decoder_input_output_embed=only(False, why="the output would range over classes too"),
    dropout=inert("of training alone"),
    attention_dropout=inert("of training alone"),
    activation_dropout=inert("of training alone"),
    layernorm_embedding=only(False, why="released models have none"),
    no_scale_embedding=only(False, why="released models scale embeddings"),
)


class OfCentres(GroupGenerator):
    """A generator that carries the cluster centres of its tokens, as the official checkpoint does."""

    centroids: Tensor
    centroid_norm: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupGenerator.Config, tag="model.of_centres"):
        """``centres``: channels and number of them."""

        centres: tuple[int, int]

    def __init__(self, config: Config, layout: TokenLayout, classes: int, tokenizer: Any = None) -> None:
        super().__init__(config, layout, classes, tokenizer)
        self.register_buffer("centroids", torch.zeros(config.centres))
        self.register_buffer("centroid_norm", torch.zeros(1, config.centres[1]))

    def on(self, grids: tuple[tuple[int, int], ...], quantizer: Any = None) -> GroupGenerator:
        other = OfCentres(cast(Any, self.config), replace(self.layout, grids=grids), *self.given)
        other.load_state_dict(self.state_dict())
        return other.train(self.training)

    def distances(self, feature_BLC: Tensor) -> Tensor:
        """Squared distances (B L, codes) of features to the centres."""
        x = feature_BLC.flatten(0, 1)
        return x.square().sum(1, keepdim=True) - 2 * x @ self.centroids + self.centroid_norm


def settings(info: Info) -> dict[str, Any]:
    """The official settings, read strictly; those of the decoder are beside the others."""
    c = OPTIONS.read(info)
    args = DECODER.read({"config": c["args"]})
    equal = {key: optional(only(args["decoder_embed_dim"], why=EQUAL), None) for key in ("decoder_output_dim", "decoder_input_dim")}
    DECODER.read({"config": c["args"]}, also=equal)
    return {**c, **args, "classes": c["classes"] if args["class_conditional"] else 1}


def config(info: Info) -> OfCentres.Config:
    """Our config for the official settings; its sampler draws no special symbol."""
    c = settings(info)
    pre, width = c["decoder_normalize_before"], c["decoder_embed_dim"]
    return OfCentres.Config(
        order=Raster(),
        feed=Placed.Config(rows=c["max_target_positions"] + 2, first=2, places="learned" if c["decoder_learned_pos"] else "sinusoidal"),
        net=Transformer.Config(
            width=width,
            depth=c["decoder_layers"],
            heads=c["decoder_attention_heads"],
            norm=PreNorm.Config(kind="layer", eps=1e-5) if pre else PostNorm.Config(eps=1e-5),
            mlp=GELU.Config(ratio=c["decoder_ffn_embed_dim"] / width, form="none"),
            attention=Attention.Config(bias="qkv"),
        ),
        head=Categorical.Config(never=SPECIAL),
        condition=ClassCondition.Config(classes=c["classes"], dropout=0.0),
        sampler=Sampler(temperature=Constant(value=c["temperature"]), top_k=c["topk"]),
        centres=(c["feat"], c["codes"]),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings: tokens are codes after the special symbols."""
    c = settings(info)
    layout = TokenLayout(grids=((c["grid"], c["grid"]),), vocabulary=SPECIAL + c["codes"])
    return config(info).build(layout, c["classes"])


def names(info: Info) -> NameMap:
    """Official names to ours; one official table holds symbols, codes and classes, and the end symbol stands for no class."""
    c = settings(info)
    layer, attention = "decoder.layers.{i}.", "net.attention.{i}."
    return NameMap(
        _table(SPECIAL + c["codes"], c["class_conditional"]),
        Rename("decoder.embed_positions.weight", "feed.position"),
        Fuse((f"{layer}self_attn.{n}_proj.{{p}}" for n in "qkv"), f"{attention}qkv.{{p}}"),
        Rename(f"{layer}self_attn.out_proj.{{p}}", f"{attention}proj.{{p}}"),
        Rename(f"{layer}self_attn_layer_norm.{{p}}", "net.norm.branches.{i}.0.{p}"),
        Rename(f"{layer}fc1.{{p}}", "net.mlp.{i}.up.{p}"),
        Rename(f"{layer}fc2.{{p}}", "net.mlp.{i}.out.{p}"),
        Rename(f"{layer}final_layer_norm.{{p}}", "net.norm.branches.{i}.1.{p}"),
        Rename("decoder.layer_norm.{p}", "net.norm.final.{p}"),
        Rename("decoder.output_projection.weight", "head.out.weight"),
        Rename("centroids", "centroids"),
        Rename("centroid_norm", "centroid_norm"),
        Ignore("decoder.version"),
        Ignore("decoder.embed_positions._float_tensor"),
    )


def _table(symbols: int, classes: bool) -> Rule:
    def load(parts: list[Tensor]) -> list[Tensor]:
        table, end = parts[0], parts[0][END : END + 1]
        return [table[:symbols], torch.cat([table[symbols:] if classes else end, end])]

    def dump(parts: list[Tensor]) -> list[Tensor]:
        tokens, start = parts
        if classes:
            return [torch.cat([tokens, start[:-1]])]
        return [torch.cat([tokens[:END], start[:1], tokens[END + 1 :]])]  # the end symbol is the start, and nothing else

    return Rule(("decoder.embed_tokens.weight",), ("feed.table.books.0.weight", "condition.table.weight"), load, dump)


def outputs(model: OfCentres, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: nearest centres, taught logits and smoothed loss, greedy and recorded sampling, gradient norms."""
    c = settings(info)
    distances = model.distances(inputs["features"])
    ids = distances.argmin(1).view(inputs["features"].shape[:2]) + SPECIAL
    labels = Labels(inputs["cls_ids"] if c["class_conditional"] else torch.zeros(len(ids), dtype=torch.long))
    # The taught sequence ends with the end symbol, which no image holds: one position more than the grid.
    target = torch.cat([ids, torch.full_like(ids[:, :1], END)], 1)
    taught = model.on(((1, target.shape[1]),))
    plan = taught.order.plan(taught.layout, None)
    logits = cast(Categorical, taught.head).logits(taught(target, labels, plan))
    flat = logits.flatten(0, 1), target.flatten()
    loss = torch.nn.functional.cross_entropy(*flat, label_smoothing=c["label_smoothing"])
    result = {
        "semantic_tokens": ids,
        "semantic_distances": distances,
        "logits": logits.detach(),
        "mask": torch.ones_like(target, dtype=torch.bool),
        "target": target,
        "loss": loss.detach(),
        "nll_loss": torch.nn.functional.cross_entropy(*flat).detach(),
        "loss_grad_norms": gradient_norms(taught, names(info), loss, info["grad_norm_keys"]),
    }
    rows = len(inputs["gen_multinomial_0"][0])
    labels = Labels(inputs["gen_cls_ids"] if c["class_conditional"] else torch.zeros(rows, dtype=torch.long))
    start = SPECIAL + c["codes"] + labels.label_B[:, None] if c["class_conditional"] else torch.full((rows, 1), END)

    def scores(logits: Tensor) -> Tensor:
        every = (logits / c["temperature"]).log_softmax(-1)
        return torch.cat([torch.full_like(every[..., :SPECIAL], -1e9), every[..., SPECIAL:]], -1)

    steps = list(islice(model.decode_steps(labels, greedy(model.sampler), SampleDraws.of(0, 0, rows)), c["gen_len"]))
    result["greedy_tokens"] = torch.cat([start, *(step.data for step in steps)], 1)
    drawn = target.new_zeros(rows, model.layout.length)
    hidden = [cast(Categorical, model.head).logits(step.h_BnD) for step in steps]
    result["greedy_logprobs"] = scores(torch.cat(hidden, 1)).detach()
    found = []
    for i, index in enumerate(inputs["gen_multinomial_0"]):
        with torch.no_grad():
            h = model(drawn, labels, model.order.plan(model.layout, None))
        found.append(scores(cast(Categorical, model.head).logits(h[:, i : i + 1])))
        candidates = found[-1][:, 0].topk(c["topk"], dim=1).indices if c["topk"] > 0 else torch.arange(len(found[-1][0, 0]))[None]
        drawn[:, i] = candidates.expand(rows, -1).gather(1, index)[:, 0]
    result["sample_tokens"] = torch.cat([start, drawn[:, : len(found)]], 1)
    return result | {"sample_logprobs": torch.cat(found, 1)}
