"""The generators' leaderboard: one dataset, shared tokenizers, equal parameters, equal training FLOPs, one protocol.

    python benchmarks/generators.py [--root FOLDER] [--only NAME …] [--minutes N] [--steps 400] [--page docs/leaderboard.md]

Trains and judges each entry of ``SUITE`` on Fashion-MNIST at 32 pixels, one after another in one Ray session, then the leading five
with two more seeds, and writes the leaderboard.  What the store has is not done again: an interrupted run goes on, and ``--minutes``
stops with status 75.  ``--steps`` are those of ``raster``; the others train for as many FLOPs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import budget
import leaderboard
from claims import Claim
from claims_of_papers import CLAIMS
from suite import Suite
from tokenizers import DATA
from tokenizers import SUITE as CODECS
from tokenizers import training as codec_training

from tokenloom.configs.load import load_cluster
from tokenloom.configs.schema import RunConfig
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.protocols import Tokenizer

#: The entry that sets the sizes: all others have about its parameters, and train for its FLOPs.
REFERENCE = "raster"
CLASSES, BATCH, LR, EMA, SEEDS, LEADERS = 10, 64, 2e-3, 0.99, 3, 5
#: Optimizer steps of every tokenizer; those of the tokenizers' leaderboard, so that one root serves both.
CODEC_STEPS = 400
#: Settings of sampling that all entries share.
SAMPLE = {"guidance": 0.3, "guidance_schedule": "constant", "top_k": 0, "top_p": 1.0, "temperature": 1.0}
EVALUATE = {"samples": 2000, "shard": 500, "metrics": ["fd", "precision_recall", "nll"]}
WIDTHS = range(32, 400, 16)


@dataclass(frozen=True)
class Entry:
    """One method: its recipe, the entry of the tokenizers' leaderboard whose tokens it takes, and arguments besides its width.

    ``heads``: attention heads, 0 where the recipe has none.
    """

    name: str
    codec: str = "vq-ema"
    args: dict[str, Any] = field(default_factory=dict)
    depth: int = 4
    heads: int = 4
    codec_args: dict[str, Any] = field(default_factory=dict)

    @property
    def claim(self) -> Claim | None:
        return CLAIMS.get(self.name)

    def tokenizer(self) -> dict[str, Any]:
        """The section ``tokenizer`` of its run."""
        codec = next(each for each in CODECS if each.name == self.codec)
        section = {"recipe": codec.recipe, "args": codec.args | self.codec_args, "train": codec_training(codec.lr, CODEC_STEPS)}
        if codec.base:
            base = next(each for each in CODECS if each.name == codec.base)
            section["base"] = {"recipe": base.recipe, "args": base.args, "train": codec_training(base.lr, CODEC_STEPS)}
        return section

    def spec(self) -> ModelSpec:
        """The generator without a width, for the layout of its tokens."""
        section, image = self.tokenizer(), {"signal": signals.image(DATA["size"], 1).to_dict()}
        codec = ModelSpec("tokenizer", section["recipe"], section["args"], {}, image)
        if base := section.get("base"):
            codec.given["tokenizer"] = ModelSpec("tokenizer", base["recipe"], base["args"], {}, image).to_dict()
        layout = cast(Tokenizer, codec.build()).layout
        heads = {"heads": self.heads} if self.heads else {}
        args = {"depth": self.depth, **heads, **self.args}
        given = {"layout": layout.to_dict(), "classes": CLASSES, "tokenizer": codec.to_dict()}
        return ModelSpec("generator", self.name, args, {}, given)


#: Sixteen tokens of ten bits unless another tokenizer is named.
SUITE = (
    Entry("raster"),
    Entry("rar"),
    Entry("randar", args={"steps": 8}),
    Entry("arpg", args={"steps": 8}),
    Entry("par"),
    Entry("nar"),
    Entry("npp"),
    Entry("token_shuffle"),
    Entry("coarse_to_fine", args={"labels": 32, "fine_depth": 2}, depth=2),
    Entry("maskgit", args={"steps": 8}),
    Entry("halton_maskgit", args={"steps": 8}),
    Entry("vq_ddm", args={"steps": 32}),
    Entry("discrete_interpolants", args={"steps": 16}),
    Entry("sigma_gpt"),
    Entry("oar"),
    Entry("heptapod", args={"blocks": 1, "targets": 4}, depth=3),
    Entry("aim", depth=6, heads=0),
    Entry("vir"),
    Entry("aaren"),
    Entry("var", "var-vq"),
    Entry("hmar", "var-vq", {"late": 2}),
    Entry("srdd", "var-vq"),
    Entry("mvar", "var-vq"),
    Entry("flexvar", "flexvar-vq"),
    Entry("nfig_ar", "nfig"),
    Entry("infinity", "infinity-bsq", {"reach": 16}),
    Entry("open_magvit2", "lfq", {"inner": 1}, codec_args={"factors": [5, 5]}),
    Entry("tokenbridge_ar", "tokenbridge", {"inner": 1, "inner_width": 64, "inner_heads": 4, "buffer": 4, "steps": 8}, depth=2),
    Entry("titok_imagebert", "titok", {"steps": 8}),
    Entry("titok_uvitbert", "titok", {"steps": 8}, depth=5),
)


def sized(root: Path, entries: tuple[Entry, ...] = SUITE) -> dict[str, budget.Cost]:
    """Widths with the reference's number of parameters, and what training costs; found once and kept beside the runs."""
    file = root / "sizes.json"
    kept = json.loads(file.read_text()) if file.exists() else {}

    def key(one: Entry) -> str:
        return json.dumps([one.name, one.tokenizer(), one.spec().args], sort_keys=True)

    reference = next(one for one in SUITE if one.name == REFERENCE)
    costs: dict[str, budget.Cost] = {}
    for entry in (reference, *(one for one in entries if one != reference)):
        if key(entry) not in kept:
            widths = [128] if entry == reference else WIDTHS
            cost, _ = budget.matched(entry.spec(), widths, costs[REFERENCE].parameters if costs else 0)
            kept[key(entry)] = asdict(cost)
            file.write_text(json.dumps(kept, indent=1))
        costs[entry.name] = budget.Cost(**kept[key(entry)])
    return costs


def run_of(entry: Entry, costs: dict[str, budget.Cost], steps: int, seed: int = 0) -> RunConfig:
    """The entry as a run file."""
    mine, reference = costs[entry.name], costs[REFERENCE]
    steps = max(1, round(steps * reference.flops / mine.flops))
    spec = entry.spec()
    train = {
        "steps": steps, "batch": BATCH, "seed": seed, "ema": EMA, "optimizer": {"lr": LR}, "log_every": 50,
        "validate_every": max(1, steps // 2), "checkpoint_every": max(1, steps // 2),
    }  # fmt: skip
    document = {
        "name": f"board-{entry.name.replace('_', '-')}" + (f"-s{seed}" if seed else ""),
        "data": DATA,
        "tokenizer": entry.tokenizer(),
        "generator": {"recipe": entry.name, "args": {**spec.args, "width": mine.width}, "train": train},
        "sample": SAMPLE,
        "evaluate": EVALUATE,
    }
    return RunConfig.model_validate(document)


def settings(steps: int, reference: budget.Cost) -> str:
    """How all entries were trained and sampled, in a sentence."""
    work = steps * BATCH * reference.flops / 1e12
    return (
        f"it trains for the FLOPs of {steps} steps of `{REFERENCE}` with {BATCH} images each ({work:.1f} TFLOP; elementwise work is not "
        f"counted) by AdamW, learning rate {LR:g} with a cosine, and is sampled with averaged weights ({EMA:g}), guidance "
        f"{SAMPLE['guidance']:g} and no truncation."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".tokenloom/tokenizers"), help="where the runs live, kept between calls")
    parser.add_argument("--only", nargs="*", default=(), help="entries to run, in this order; all if not given")
    parser.add_argument("--minutes", type=float, default=0, help="start none after this many minutes (0: never); the same command goes on")
    parser.add_argument("--steps", type=int, default=400, help=f"optimizer steps of {REFERENCE}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of the leading {LEADERS}")
    parser.add_argument("--sizes", action="store_true", help="only show widths, parameters and steps")
    parser.add_argument("--page", type=Path, help="Markdown page to write, with pictures beside it")
    options = parser.parse_args()
    entries = {entry.name: entry for entry in SUITE}
    if unknown := set(options.only) - set(entries):
        parser.error(f"unknown entries: {', '.join(sorted(unknown))}; there are: {', '.join(entries)}")
    chosen = {name: entries[name] for name in options.only or entries}
    if options.page and REFERENCE not in chosen:
        parser.error(f"--page compares with {REFERENCE}: add it to --only")
    options.root.mkdir(parents=True, exist_ok=True)
    costs = sized(options.root, tuple(chosen.values()))
    runs = {name: run_of(entry, costs, options.steps) for name, entry in chosen.items()}
    if options.sizes:
        for name, run in runs.items():
            train, cost = cast(Any, run.generator).train, costs[name]
            sizes = f"width {cost.width:4} {cost.parameters:9,} parameters {cost.flops / 1e6:8.1f} MFLOP an image"
            print(f"{name:24} {sizes} {train.steps:5} steps")
        return 0
    suite = Suite(options.root, load_cluster(sets=("cluster.execution.workers=1",)))
    suite.run(runs, options.minutes)
    first = {name: [run] for name, run in runs.items() if run.name in suite.done}
    if not suite.stopped and first:
        leading = leaderboard.leading(suite.store, first, LEADERS)
        more = {name: [run_of(entries[name], costs, options.steps, seed) for seed in range(1, options.seeds)] for name in leading}
        suite.run({run.name: run for each in more.values() for run in each}, options.minutes)
        for name, each in more.items():
            first[name] += [run for run in each if run.name in suite.done]
    if options.page and REFERENCE in first:
        claims = {name: entries[name].claim for name in first}
        leaderboard.refresh(options.page, suite.store, first, REFERENCE, costs, settings(options.steps, costs[REFERENCE]), claims)
    return suite.status


if __name__ == "__main__":
    sys.exit(main())
