"""The tokenizers' leaderboard: one dataset, equal steps, groups of equal token budget, one protocol.

    python benchmarks/tokenizers.py [--board BOARD] [--root FOLDER] [--only NAME …] [--minutes N] [--steps 400] [--page docs/tokenizers.md]

Trains and measures each entry of ``SUITE`` on Fashion-MNIST at 32 pixels, on emoji in colour at 32 pixels (``--board emoji``, narrow nets),
or ten of them at 64 (``emoji64``), one after another in one Ray session, and writes the leaderboard.  What the store has is not done
again: an interrupted run goes on, and ``--minutes`` stops with status 75.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite import Suite, between

from tokenloom.configs.load import load_cluster
from tokenloom.configs.schema import RunConfig
from tokenloom.models.core import registry
from tokenloom.tasks.evaluation import compare
from tokenloom.tasks.evaluation.report import meaning
from tokenloom.tasks.store.artifacts import Store

#: 24,000 images, a sixth of them held out.
DATA = {"source": "fashion_mnist", "size": 32, "fit": "pad", "limit": 24_000, "validation": 0.1667, "shard_rows": 4096}
#: Boards by name: their data.
BOARDS: dict[str, dict[str, Any]] = {
    "fashion": DATA,
    "emoji": {"source": "emoji", "size": 32, "channels": 3, "validation": 0.1667},
    "emoji64": {"source": "emoji", "size": 64, "channels": 3, "validation": 0.1667},
}
#: In colour nets are narrow, so that all of them take hours on two cores: arguments by what a recipe has.
NARROW: dict[str, Any] = {"channels": 24, "width": 64, "widths": [64, 64]}
#: The ten at 64 pixels, where a grid has four times the tokens.
TEN = ("vq-plain", "vq-ema", "vq-cosine", "simvq", "fsq", "bsq", "rvq-2x10", "var-vq", "maskgit-vqgan", "titok-onestage")
#: Learning rates that suit convolutions and transformers; all else of the training is equal.
CONV, VIT = 3e-3, 1e-3


@dataclass(frozen=True)
class Entry:
    """One tokenizer: its recipe, arguments and learning rate; ``base`` is the entry that it depends on."""

    name: str
    recipe: str
    args: dict[str, Any] = field(default_factory=dict)
    lr: float = CONV
    base: str | None = None
    trained: bool = True


#: By token budget: about 160, 300 and 640 bits an image, then what has no such budget.
SUITE = (
    # 16 tokens of 10 bits
    Entry("vq-plain", "vq_ste", {"codes": 1024}),
    Entry("vq-ema", "vq_ema", {"codes": 1024}),
    Entry("vq-cosine", "vq", {"codes": 1024}),
    Entry("simvq", "simvq", {"codes": 1024}),
    Entry("ibq", "ibq", {"codes": 1024}),
    Entry("fsq", "fsq", {"levels": [8, 5, 5, 5]}),
    Entry("lfq", "lfq", {"bits": 10}),
    Entry("bsq", "bsq", {"bits": 10}),
    Entry("rvq", "rvq", {"stages": 2, "codes": 32}),
    Entry("pq", "pq", {"groups": 2, "codes": 32}),
    Entry("digit", "digit", {"codes": 1024}),
    Entry("columns", "columns", {"strip": 2, "codes": 1024}),
    Entry("maskgit-vqgan", "maskgit_vqgan", {"codes": 1024}),
    Entry("vit-vq", "vit_vq", {"codes": 1024}, VIT),
    Entry("titok", "titok", {"tokens": 16, "codes": 1024}, VIT, base="maskgit-vqgan"),
    Entry("titok-onestage", "titok_onestage", {"tokens": 16, "codes": 1024}, VIT),
    Entry("gigatok", "gigatok", {"tokens": 16, "codes": 1024}, VIT),
    Entry("flextok", "flextok", {"tokens": 16}, VIT),
    Entry("d-ar", "d_ar", {"tokens": 16, "codes": 1024}, VIT),
    Entry("layton", "layton", {"tokens": 16, "codes": 1024}, VIT, base="kl"),
    # 30 tokens of 10 bits: four scales
    Entry("var-vq", "var_vq", {"codes": 1024}),
    Entry("flexvar-vq", "flexvar_vq", {"codes": 1024}),
    Entry("nfig", "nfig", {"codes": 1024}),
    Entry("infinity-bsq", "infinity_bsq", {"bits": 10}),
    Entry("rvq-2x10", "rvq", {"stages": 2, "codes": 1024}),
    # 64 tokens of 10 bits: an 8x8 grid
    Entry("vq-ema-64", "vq_ema", {"codes": 1024, "multipliers": [1]}),
    Entry("fsq-64", "fsq", {"levels": [8, 5, 5, 5], "multipliers": [1]}),
    Entry("lfq-64", "lfq", {"bits": 10, "multipliers": [1]}),
    # no such budget
    Entry("kl", "kl", {}),
    Entry("tokenbridge", "tokenbridge", {}),
    Entry("jpeg", "jpeg", {}, trained=False),
)


def training(lr: float, steps: int) -> dict[str, Any]:
    """The training that all entries share."""
    every = max(1, steps // 5)
    return {
        "steps": steps,
        "batch": 64,
        "optimizer": {"lr": lr},
        "log_every": 50,
        "validate_every": every,
        "checkpoint_every": every,
    }


def args_of(entry: Entry, board: str) -> dict[str, Any]:
    """The entry's arguments on a board: in colour with narrow nets; at 64 pixels with scales up to the larger grid."""
    if board == "fashion":
        return entry.args
    signature = inspect.signature(registry.get(entry.recipe).function).parameters
    held = {field for one in signature.values() if dataclasses.is_dataclass(one.default) for field in vars(one.default)}
    narrow = {name: value for name, value in NARROW.items() if name in {*signature, *held}}
    larger = {"scales": [1, 2, 3, 4, 6, 8]} if board == "emoji64" and "scales" in signature else {}
    return {**narrow, **larger, **entry.args}


def run_of(entry: Entry, steps: int, board: str = "fashion") -> RunConfig:
    """The entry as a run file."""
    tokenizer: dict[str, Any] = {"recipe": entry.recipe, "args": args_of(entry, board)}
    if entry.trained:
        tokenizer["train"] = training(entry.lr, steps)
    if entry.base:
        base = next(each for each in SUITE if each.name == entry.base)
        tokenizer["base"] = {"recipe": base.recipe, "args": args_of(base, board), "train": training(base.lr, steps)}
    name = f"tokens-{entry.name}" if board == "fashion" else f"{board}-{entry.name}"
    return RunConfig.model_validate({"name": name, "data": BOARDS[board], "tokenizer": tokenizer})


#: Columns of the page; the rest is in the CSV beside the pictures.
SHOWN = (
    "run", "budget", "tokenizer", "evaluation", "tokens_per_image", "rfd_classifier", "psnr", "ssim", "detail", "text", "codebook_use",
    "codebook_perplexity", "encoded_per_second", "decoded_per_second", "parameters",
)  # fmt: skip
MARKS = {
    "fashion": ("<!-- leaderboard: made by benchmarks/tokenizers.py -->", "<!-- end of leaderboard -->"),
    "emoji": ("<!-- emoji: made by benchmarks/tokenizers.py -->", "<!-- end of emoji -->"),
    "emoji64": ("<!-- emoji64: made by benchmarks/tokenizers.py -->", "<!-- end of emoji64 -->"),
}


def refresh(page: Path, store: Store, names: list[str], steps: int, board: str = "fashion") -> None:
    """Write the leaderboard and its protocol between the page's marks; pictures and CSV go into ``pictures/tokenizers`` beside it."""
    rows = compare.leaderboard(store, names)
    compare.write(store, rows, page.parent / "pictures" / ("tokenizers" if board == "fashion" else f"tokenizers_{board}"))
    prefix = "tokens-" if board == "fashion" else f"{board}-"
    short = [{k: v if k != "run" else str(v).removeprefix(prefix) for k, v in row.items() if k in SHOWN} for row in rows]
    protocol = store.record(store.resolve(str(rows[0]["evaluation"]), "evaluation")).notes["protocol"]
    reference = protocol["reference"]
    about = (
        f"{steps} optimizer steps of 64 images each, AdamW, learning rate {CONV} for convolutions and {VIT} for transformers; judged on "
        f"{reference['images']} held-out images (sha256 `{reference['sha256']}`) with the features of a classifier of the same data, so "
        "`rfd_classifier` is no FID. The speeds were read while other work ran on the machine: orders of magnitude only."
    )
    measures = [f"- **{k.replace('_', ' ')}**: {meaning(k)[1]}" for k in short[0] if meaning(k)[1]]
    if board != "fashion":
        about = f"{len(names)} of {len(TEN) if board == 'emoji64' else len(SUITE)} entries are made. {about}"
    block = "\n".join([about, "", compare.markdown(compare.budgets(short)), *measures, ""])
    between(page, *MARKS[board], block)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", choices=list(BOARDS), default="fashion", help="data: fashion, emoji (32 pixels), or emoji64")
    parser.add_argument("--root", type=Path, default=Path(".tokenloom/tokenizers"), help="where the runs live, kept between calls")
    parser.add_argument("--only", nargs="*", default=(), help="entries to run, in this order; all if not given")
    parser.add_argument("--minutes", type=float, default=0, help="stop after this many minutes (0: never); the same command goes on")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each entry")
    parser.add_argument("--page", type=Path, help="Markdown page to write, with pictures beside it")
    options = parser.parse_args()
    if unknown := set(options.only) - {entry.name for entry in SUITE}:
        parser.error(f"unknown entries: {', '.join(sorted(unknown))}; there are: {', '.join(e.name for e in SUITE)}")
    entries = {entry.name: entry for entry in SUITE}
    chosen = options.only or (TEN if options.board == "emoji64" else entries)
    runs = {name: run_of(entries[name], options.steps, options.board) for name in chosen}
    suite = Suite(options.root, load_cluster())
    suite.run(runs, options.minutes)
    if options.page and suite.done:
        refresh(options.page, suite.store, suite.done, options.steps, options.board)
    return suite.status


if __name__ == "__main__":
    sys.exit(main())
