"""The report of an evaluation: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tokenloom.tasks import modalities
from tokenloom.tasks.costs.took import COLUMNS

#: What a reader should know about a number of any kind of signal: metrics whose names begin so, which way is better, what it is.
MEANING = (
    ("codebook_use", "higher", "share of codes that occur in the held-out data"),
    ("codebook_perplexity", "higher", "effective number of codes"),
    ("parameters", "", "trainable parameters"),
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "img{max-width:100%;height:auto;border:1px solid #ddd}table{border-collapse:collapse}"
    "td,th{text-align:left;padding:.15rem .8rem .15rem 0;border-bottom:1px solid #eee;vertical-align:top}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}pre{background:#f6f6f6;padding:.8rem;overflow:auto}"
)


def all_meanings() -> tuple[tuple[str, str, str], ...]:
    """What is known of metrics, those of every kind of signal included."""
    return (*(row for modality in modalities.kinds().values() for row in modality.meanings), *MEANING)


def meaning(name: str) -> tuple[str, str]:
    """(which way is better, what it is) of a metric; empty for one that is not known."""
    for prefix, better, text in all_meanings():
        if name.startswith(prefix):
            return better, text
    return "", ""


def number(value: Any) -> str:
    """A number for people: whole and large ones in full, others with four digits."""
    if isinstance(value, (int, float)) and abs(value) >= 1 and (float(value).is_integer() or 1e4 <= abs(value) < 1e12):
        value = round(value)
        return f"{int(value):,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def page(
    name: str,
    numbers: Mapping[str, Any],
    notes: Mapping[str, Any],
    lineage: Mapping[str, str],
    pictures: Mapping[str, bytes],
    titles: Mapping[str, str],
    taken: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The whole report; ``pictures`` are PNG bytes by name, in the order of their ``titles``; ``taken`` is what each input took."""
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td class=n>{number(numbers[key])}</td><td>{escape(meaning(key)[0])}</td>"
        f"<td>{escape(meaning(key)[1])}</td></tr>"
        for key in sorted(numbers, key=_place)
        if not key.endswith("_deviation")
    )
    figures = "".join(
        f'<h2>{escape(titles.get(key, key))}</h2><img alt="{escape(titles.get(key, key))}" '
        f'src="data:image/png;base64,{base64.b64encode(pictures[key]).decode()}">'
        for key in sorted(pictures, key=lambda k: list(titles).index(k) if k in titles else len(titles))
    )
    made_of = "".join(f"<tr><td>{escape(role)}</td><td>{escape(artifact)}</td></tr>" for role, artifact in lineage.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation of {escape(name)}</title><style>{_STYLE}</style>'
        f"<h1>Evaluation of {escape(name)}</h1>"
        f"<table><tr><th>metric</th><th>value</th><th>better</th><th></th></tr>{rows}</table>{figures}"
        f"<h2>Made from</h2><table>{made_of}</table>{_costs(taken or {})}"
        f"<h2>Protocol</h2><p>Numbers of two evaluations compare only under the same protocol.</p>"
        f"<pre>{escape(json.dumps(notes, indent=1, sort_keys=True))}</pre></html>\n"
    )


def _costs(taken: Mapping[str, Sequence[str]]) -> str:
    """What each input took (``tasks/costs/took.py``), as a table."""
    if not taken:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *COLUMNS))
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in (role, *cells))}</tr>" for role, cells in taken.items())
    return f"<h2>What it took</h2><table><tr>{head}</tr>{rows}</table>"


def _place(name: str) -> tuple[int, str]:
    for i, (prefix, _, _) in enumerate(all_meanings()):
        if name.startswith(prefix):
            return i, name
    return len(all_meanings()), name


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers are written as in reports, None is an empty cell."""

    def cell(value: Any) -> str:
        return "" if value is None else value if isinstance(value, str) else number(value)

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
