"""Makes the pages that come from the code: the method table, the sizes, the file tree, and the README's tree of folders.

``make readme`` rewrites the blocks between the markers ``<!-- NAME -->`` and ``<!-- /NAME -->``; a test fails when one is stale.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec, parameters
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Tokenizer
from tokenloom.models.core.sized import counted
from tokenloom.models.parts.nets.classifier import shape_of
from tokenloom.models.pretrained import families
from tokenloom.models.pretrained.options import RECORDED, TRAINING
from tokenloom.models.sampling.decoders import base as decoding

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "models", "configs")
NOTES = {
    "flows": "what runs, in which order (Prefect flows, the command line); no torch",
    "tasks": "the steps and what they do, in rooms; the only doors to the outside",
    "models": "torch only: parts, recipes, sampling",
    "configs": "the run file's schema and the runs that ship",
    "infra": "container image, deployments, clusters",
    "tests": "in rooms as the code; laws, contracts, parity with official numbers, end to end",
    "benchmarks": "side-by-side measurements, and their results",
    "docs": "what a user reads beyond the README",
}
#: What the sizes are for: greyscale images of 32 x 32 pixels in 10 classes, as in the demo.
DATA = {"signal": signals.image(32, 1).to_dict()}
CLASSES = 10


def tracked() -> list[Path]:
    """Files under version control, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return sorted({ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()})


def purpose(path: Path) -> str:
    """First sentence of a module's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return re.split(r"(?<=[^.])[.:]?\n\n|(?<=\w)\.\s", doc.strip(), maxsplit=1)[0].replace("\n", " ").rstrip(".")


def _block(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines) + 2
    return "```\n" + "\n".join(f"{name.ljust(width)}{note}".rstrip() for name, note in lines) + "\n```"


def folders() -> str:
    """The tree of folders: the rooms of the four packages, with what their ``__init__`` says, and one line a folder elsewhere."""
    files, lines = tracked(), []
    for folder, note in NOTES.items():
        lines.append((f"{folder}/", note))
        rooms = sorted(f.parent for f in files if f.name == "__init__.py" and len(f.relative_to(ROOT).parts) == 3)
        lines += [(f"  {room.name}/", purpose(room / "__init__.py")) for room in rooms if room.parent.name == folder]
    return _block(lines)


def tree() -> str:
    """The file tree, one line a file of the four packages and one a folder elsewhere."""
    files, lines = tracked(), []
    for folder in NOTES:
        inside = [f for f in files if f.relative_to(ROOT).parts[0] == folder]
        if not inside:
            continue
        lines.append((f"{folder}/", NOTES[folder]))
        if folder not in PACKAGES:
            continue
        seen: set[Path] = set()
        for file in sorted((f for f in inside if f.suffix == ".py"), key=lambda f: (f.parent.parts, f.name)):
            if file.name == "__init__.py":
                continue
            parent = file.parent.relative_to(ROOT)
            if len(parent.parts) > 1 and parent not in seen:
                seen.add(parent)
                lines.append((f"  {parent.relative_to(folder)}/", ""))
            lines.append(("  " * len(parent.parts) + file.name, purpose(file)))
    return _block(lines)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in rows])


def methods() -> str:
    """The methods of each kind as tables in Markdown."""
    blocks = []
    for kind, (columns, rows) in registry.tables().items():
        cells = [[f"`{name}`", *rest, _paper(paper)] for name, *rest, paper in rows]
        blocks.append(f"## {kind} ({len(rows)})\n\n{_table(columns, cells)}")
    return "\n\n".join(blocks)


def decoders() -> str:
    """The ways to decode as a table in Markdown."""
    cells = [
        [f"`{row['name']}`", "yes" if row["exact"] else "no", "; ".join(row["needs"]) or "-", _paper(row["paper"]) or "-"]
        for row in decoding.table()
    ]
    return _table(["name", "exact", "needs", "paper"], cells)


def _paper(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else paper


def _spec(name: str, small_codec: bool = False, args: dict[str, Any] | None = None) -> ModelSpec:
    """A recipe with its default arguments on the data of the page, over its codec with default arguments or those of the tests."""
    recipe = registry.get(name)
    given: dict[str, Any] = dict(DATA)
    if recipe.codec:
        codec = _spec(recipe.codec, args=dict(registry.get(recipe.codec).tiny) if small_codec else None)
        given["tokenizer"] = codec.to_dict()
        if recipe.kind == "generator":
            given = {"layout": cast(Tokenizer, codec.shaped()).layout.to_dict(), "classes": CLASSES, "tokenizer": codec.to_dict()}
    if "features" in recipe.config().needs:
        given["features"] = shape_of(1, CLASSES)
    return ModelSpec(recipe.kind, name, args or {}, {}, given)


def sizes() -> str:
    """Trainable parameters and tokens of each recipe with its default arguments."""
    rows = []
    for name in registry.names():
        spec, codec = _spec(name), registry.get(name).codec or "-"
        try:
            model = spec.shaped()
        except ConfigError:  # the codec's default arguments are not for this generator
            spec, codec = _spec(name, small_codec=True), f"{codec}, small"
            model = spec.shaped()
        layout = getattr(model, "layout", None)
        tokens = "-" if layout is None else f"{layout.length}" + (f" x {layout.codebooks}" if layout.codebooks > 1 else "")
        values = "-" if layout is None else f"{layout.channels} channels" if layout.channels else f"{layout.vocabulary}"
        rows.append([f"`{name}`", spec.kind, f"{parameters(model):,}", tokens, values, codec])
    return _table(["name", "kind", "parameters", "tokens", "vocabulary", "tokens of"], rows)


def published() -> str:
    """The published models of every recipe, and the number of parameters of ours, counted as the authors count them."""
    rows = [row for name in registry.names() for row in published_rows(name)]
    return _table(["method", "size", "published as", "tokens", "published parameters", "ours", "number from", "what it excludes"], rows)


def published_rows(name: str) -> list[list[str]]:
    """The rows of one recipe."""
    rows, recipe = [], registry.get(name)
    for size in recipe.sizes:
        numbers = ["-" if n is None else f"{n:,}" for n in (size.tokens, size.parameters, counted(recipe, size))]
        rows.append([f"`{name}`", size.name, size.key, *numbers, size.mark, size.excludes or "-"])
    return rows


def options() -> str:
    """What each official family does with each option of its official class."""
    modules: dict[str, list[str]] = {}
    for name, module in families().items():
        modules.setdefault(module.__name__, []).append(name)
    effects = {"used": "supported", "only": "only", "none": "no effect"}
    blocks = []
    for names in sorted(sorted(names) for names in modules.values()):
        declared = getattr(families()[names[0]], "OPTIONS", None)
        if declared is None:
            continue
        rows = []
        for key, option in declared.items():
            if option in (*RECORDED.values(), *TRAINING.values()):
                continue
            values = ", ".join(f"`{value}`" for value in option.values)
            rows.append([f"`{key}`", effects[option.effect] + (f" {values}" if option.effect == "only" else ""), option.words])
            if option.effect == "used" and values:
                rows[-1][2] += f"{'; ' if option.words else ''}one of {values}"
        blocks.append(f"## {', '.join(f'`{n}`' for n in names)}\n\n{_table(['option', 'support', 'what it is, or why'], rows)}")
    return "\n\n".join(blocks)


#: Page to the blocks that it has.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"folders": folders},
    "docs/methods.md": {"methods": methods},
    "docs/decoding.md": {"decoders": decoders},
    "docs/sizes.md": {"published": published, "sizes": sizes},
    "docs/files.md": {"tree": tree},
    "docs/parity.md": {"options": options},
}


def refreshed(page: str, without: str = "") -> str:
    """A page with its blocks made anew, but the one named ``without``."""
    text = (ROOT / page).read_text()
    for name, make in PAGES[page].items():
        if name == without:
            continue
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        block = make()
        text, hits = pattern.subn(lambda m, block=block: m[1] + block + "\n" + m[2], text)  # type: ignore[misc]
        if hits != 1:
            raise SystemExit(f"{page} needs exactly one block <!-- {name} --> … <!-- /{name} -->")
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(refreshed(page))
        print(f"{page}: up to date")
