"""Keeps the README's file tree and method table true: both are made from the code.

``make readme`` rewrites the blocks between the markers; a test fails when they are stale.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

from tokenloom.models.core.registry import tables

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "models", "configs")
NOTES = {
    "flows": "what runs, in which order (Prefect flows, the command line); no torch",
    "tasks": "one file a step, and the only doors to the outside",
    "models": "torch only: parts, recipes, sampling",
    "configs": "the run file's schema and the runs that ship",
    "infra": "container image, deployments, clusters",
    "tests": "flat; laws, contracts, parity with official numbers, end to end",
    "benchmarks": "side-by-side measurements, and their results",
    "docs": "what a user reads beyond this page",
}


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


def tree() -> str:
    """The file tree, one line a file of the four packages and one a folder elsewhere."""
    files = tracked()
    lines = []
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
    width = max(len(name) for name, _ in lines) + 2
    return "```\n" + "\n".join(f"{name.ljust(width)}{note}".rstrip() for name, note in lines) + "\n```"


def methods() -> str:
    """The methods of each kind as tables in Markdown."""
    blocks = []
    for kind, (columns, rows) in tables().items():
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join([f"`{name}`", *cells, _paper(paper)]) + " |" for name, *cells, paper in rows]
        blocks.append(f"**{kind}** ({len(rows)})\n\n" + "\n".join(lines))
    return "\n\n".join(blocks)


def _paper(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else paper


BLOCKS = {"tree": tree, "methods": methods}


def refreshed(text: str) -> str:
    """The README with both blocks made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        block = make()
        text, hits = pattern.subn(lambda m, block=block: m[1] + block + "\n" + m[2], text)
        if hits != 1:
            raise SystemExit(f"README.md needs exactly one block <!-- {name} --> … <!-- /{name} -->")
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(refreshed(readme.read_text()))
    print("README.md: file tree and method table are up to date")
