"""Draws ``docs/pictures/operate.svg``: the same run on a laptop, on a cluster and in a cloud (``python docs/operate_picture.py``)."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

#: Columns: title, what one types, what works there, where artifacts are, where one looks.
COLUMNS = (
    (
        "Laptop",
        "tokenloom run digits_var",
        ("this process", "local Ray: 2 workers"),
        "store: a folder",
        ("MLflow + Prefect on SQLite", "tokenloom ui"),
    ),
    (
        "Cluster",
        "tokenloom run … --cluster ray_cluster",
        ("a driver on one node", "Ray: workers on every node"),
        "store: a bucket",
        ("MLflow + Prefect on PostgreSQL", "infra/compose.yaml"),
    ),
    (
        "Cloud",
        "tokenloom submit … --nodes 4",
        ("a batch job: node 0 leads", "its nodes form a Ray cluster"),
        "store: a bucket (infra/terraform)",
        ("the same servers", "by their addresses"),
    ),
)
WIDTH, HEIGHT, WIDE, GAP = 960, 430, 296, 20


def text(x: float, y: float, words: str, size: int = 14, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle"{f" {kind}" if kind else ""}>{escape(words)}</text>'


def box(x: float, y: float, wide: float, high: float, fill: str, *lines: str) -> str:
    first = y + high / 2 + 5 - 10 * (len(lines) - 1)
    words = "".join(text(x + wide / 2, first + 20 * i, line) for i, line in enumerate(lines))
    return f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="{fill}" stroke="#5b6570"/>{words}'


def arrow(x: float, y1: float, y2: float) -> str:
    return f'<line x1="{x}" y1="{y1}" x2="{x}" y2="{y2 - 8}" stroke="#5b6570" stroke-width="1.5" marker-end="url(#head)"/>'


def picture() -> str:
    """The picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" fill="#1b2129">',
        "<title>One run file on a laptop, a cluster and in a cloud</title>",
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="2" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#5b6570"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        box(GAP, 14, WIDTH - 2 * GAP, 40, "#f4efe4", "one run file: the same recipe has the same fingerprints in all three places"),
    ]
    for i, (title, command, workers, store, servers) in enumerate(COLUMNS):
        x = GAP + i * (WIDE + (WIDTH - 2 * GAP - 3 * WIDE) / 2)
        middle = x + WIDE / 2
        parts += [
            arrow(middle, 54, 76),
            text(middle, 96, title, 17, 'font-weight="bold"'),
            box(x, 108, WIDE, 38, "#e8eef5"),
            text(middle, 132, command, 13, 'font-family="monospace"'),
            arrow(middle, 146, 172),
            box(x, 172, WIDE, 66, "#e3f0e6", *workers),
            arrow(middle, 238, 264),
            box(x, 264, WIDE, 44, "#f4efe4", store),
            arrow(middle, 308, 334),
            box(x, 334, WIDE, 66, "#f2e7ef", *servers),
        ]
    parts.append(text(WIDTH / 2, 421, "Kill any of it: the same command goes on from the last checkpoint.", 13))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    (Path(__file__).parent / "pictures" / "operate.svg").write_text(picture(), encoding="utf-8")
