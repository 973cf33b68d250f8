"""Writes ``docs/tokenizers.md``: the leaderboard of tokenizers, from evaluations in a store.

``python docs/tokenizers.py [--root ROOT] [--store URI] RUN…``, where RUN are tokenizer-only runs on the same data.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from flows.commands_look import evaluation_of
from flows.workspace import Workspace
from tasks.compare import budgets, leaderboard, write
from tasks.report import meaning

DOCS = Path(__file__).resolve().parent
PICTURES = {
    "leaderboard.png": "Quality against bits an image",
    "reconstructions.png": "Held-out images and their reconstructions",
}


def page(work: Workspace, runs: list[str], docs: Path = DOCS) -> Path:
    """Write the page and its pictures; its path.

    Raises:
        ConfigError: a run that was not evaluated, or judged under another protocol.
    """
    rows = leaderboard(work.store, [evaluation_of(run, work.store) for run in runs])
    protocol = work.store.record(work.store.resolve(str(rows[0]["evaluation"]), "evaluation")).notes["protocol"]
    with tempfile.TemporaryDirectory() as folder:
        made = {path.name: path for path in write(work.store, rows, Path(folder))}
        lines = [
            "# Tokenizers",
            "",
            f"{protocol['reference']['images']} held-out images of {protocol['image']['size']}x{protocol['image']['size']} pixels, "
            f"features of the network `{protocol['features']['network']}` (its Fréchet distance is no FID). Tokenizers compare within a "
            "budget of bits an image. Written by `python docs/tokenizers.py`; each line is `tokenloom run RUN`.",
            "",
            made["leaderboard.md"].read_text(),
        ]
        for name, title in PICTURES.items():
            if name in made:
                (docs / "pictures").mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made[name], docs / "pictures" / f"tokenizers_{name}")
                lines += [f"![{title}](pictures/tokenizers_{name})", ""]
    lines += ["| measure | better | what it is |", "|---|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {meaning(name)[0]} | {meaning(name)[1]} |" for name in rows[0] if meaning(name)[1]]
    assert budgets(rows), "runs with a generator: compare tokenizer-only runs"
    path = docs / "tokenizers.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--root")
    parser.add_argument("--store")
    given = parser.parse_args()
    print(page(Workspace.open("tokenloom", given.root, given.store), given.runs))


if __name__ == "__main__":
    main()
