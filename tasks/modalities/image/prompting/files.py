"""Files of prompts: GenEval's JSONL, DPG-Bench's CSV or folder of texts, HPS's JSON, or a prompt a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenloom.models.core.config import ConfigError

#: Layout to the images a prompt that its benchmark asks for.
EACH = {"geneval": 4, "dpg": 4, "hps": 1, "plain": 1}


@dataclass(frozen=True)
class Prompt:
    """One prompt: its name in the layout, its text, the text that is drawn in its place, and what its file says of it besides."""

    name: str
    text: str
    drawn: str
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, and the layout that its form stands for."""

    layout: str
    prompts: tuple[Prompt, ...]


def read(path: Path, rewrites: Path | None = None) -> Prompts:
    """The prompts of a file or folder, in order.

    ``rewrites`` is a JSON object from a prompt to the text that is drawn in its place (a language model's longer form of it).

    Raises:
        ConfigError: a form that no benchmark has, an entry without a prompt, two of one name, or a rewrite of no prompt.
    """
    layout, found = _read(path)
    if not found:
        raise ConfigError(f"--prompts {path}: holds no prompt")
    names = [name for name, _, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--prompts {path}: two prompts are called {twice!r}")
    changed = _rewrites(rewrites, {text for _, text, _ in found})
    return Prompts(layout, tuple(Prompt(name, text, changed.get(text, text), about) for name, text, about in found))


def _read(path: Path) -> tuple[str, list[tuple[str, str, dict[str, Any]]]]:
    here = f"--prompts {path}"
    if path.is_dir():
        texts = sorted(path.glob("*.txt"))
        return "dpg", [(file.stem, _checked(_text(file, here), f"{here}: {file.name}"), {}) for file in texts]
    ending = path.suffix.lower()
    if ending not in (".jsonl", ".csv", ".json", ".txt"):
        raise ConfigError(f"{here}: give GenEval's .jsonl, DPG-Bench's .csv (or folder of .txt), HPS's .json, or a .txt of a prompt a line")
    raw = _text(path, here)
    if ending == ".txt":
        lines = [line.strip() for line in raw.splitlines() if line.strip()]
        return "plain", [(f"{number:05d}", line, {}) for number, line in enumerate(lines)]
    if ending == ".csv":
        return "dpg", list(_table(raw, here))
    if ending == ".jsonl":
        return "geneval", list(_lines(raw, here))
    return "hps", list(_styles(_json(raw, here), path.stem, here))


def _lines(raw: str, here: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for number, line in enumerate(each for each in raw.splitlines() if each.strip()):
        about = _json(line, f"{here}: line {number + 1}")
        if not isinstance(about, dict):
            raise ConfigError(f"{here}: line {number + 1} is no object with a prompt")
        yield f"{number:05d}", _checked(about.get("prompt"), f"{here}: line {number + 1}"), about


def _table(raw: str, here: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """DPG-Bench's table has several rows a prompt: one for each of the questions about it."""
    rows = csv.DictReader(io.StringIO(raw))
    if absent := {"item_id", "text"} - set(rows.fieldnames or ()):
        raise ConfigError(f"{here}: no column {' and '.join(sorted(absent))}; it has {', '.join(rows.fieldnames or ())}")
    seen: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        name, text = row["item_id"].strip(), _checked(row["text"], f"{here}: line {number}")
        if not name or "/" in name or name.startswith("."):
            raise ConfigError(f"{here}: line {number}: item_id={name!r} is no name of a file")
        if name not in seen:
            seen[name] = text
            yield name, text, {}
        elif seen[name] != text:
            raise ConfigError(f"{here}: line {number}: item {name} has another text than before")


def _styles(found: Any, style: str, here: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """HPS has a list of prompts a style, in files named after it, or all in one object."""
    styles = found if isinstance(found, dict) else {style: found}
    for name, texts in styles.items():
        if not isinstance(texts, list) or "/" in name or name.startswith("."):
            raise ConfigError(f"{here}: {name!r} is no style with a list of prompts")
        for number, text in enumerate(texts):
            yield f"{name}/{number:05d}", _checked(text, f"{here}: {name}, prompt {number}"), {"style": name}


def _rewrites(path: Path | None, texts: set[str]) -> dict[str, str]:
    if path is None:
        return {}
    here = f"--rewrites {path}"
    found = _json(_text(path, here), here)
    if not isinstance(found, dict):
        raise ConfigError(f"{here}: give an object, {{PROMPT: REWRITE}}")
    if odd := next((prompt for prompt in found if prompt not in texts), None):
        raise ConfigError(f"{here}: {odd!r} is no prompt of the file")
    return {prompt: _checked(text, f"{here}: {prompt!r}") for prompt, text in found.items()}


def _checked(text: Any, here: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{here}: no prompt, but {text!r}")
    return text.strip()


def _text(path: Path, here: str) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{here}: cannot be read: {error}") from error


def _json(raw: str, here: str) -> Any:
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{here}: is no JSON: {error}") from error
