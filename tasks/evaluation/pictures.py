"""Pictures for people: grids of images, codebook use, curves. PNG bytes out; nothing here touches files or the store."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
_GAP = 2  # pixels between images, after enlarging
_PANELS = 24  # of one picture of codebooks
_LEAST = 48  # small images are enlarged (nearest) to about this many pixels a side


def png(image_HWC: Image) -> bytes:
    """One image (H, W, 1 or 3) uint8 as PNG."""
    from PIL import Image as Pillow

    image = image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC
    out = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(image)).save(out, "PNG")
    return out.getvalue()


def grid(image_NHWC: Image, columns: int, enlarge: bool = True) -> Image:
    """Images row by row on a white sheet: (rows of the sheet, columns of the sheet, 3) uint8."""
    n, h, w, c = image_NHWC.shape
    if not n:
        raise ValueError("a grid of no images")
    image = np.repeat(image_NHWC, 3, axis=3) if c == 1 else image_NHWC
    times = max(1, round(_LEAST / max(h, w))) if enlarge else 1
    image = image.repeat(times, axis=1).repeat(times, axis=2)
    h, w, rows = h * times + _GAP, w * times + _GAP, -(-n // columns)
    sheet = np.full((rows * h + _GAP, min(n, columns) * w + _GAP, 3), 255, np.uint8)
    for i, one in enumerate(image):
        y, x = _GAP + i // columns * h, _GAP + i % columns * w
        sheet[y : y + h - _GAP, x : x + w - _GAP] = one
    return sheet


def class_grid(image_NHWC: Image, label_N: NDArray, names: Sequence[str], per_class: int = 12, most: int = 20) -> bytes:
    """One row a class with its name: PNG. At most ``most`` classes (evenly spread) are shown."""
    present = np.unique(label_N)
    if len(present) > most:
        present = present[np.linspace(0, len(present) - 1, most).round().astype(int)]
    rows = [(str(names[k]) if k < len(names) else str(k), image_NHWC[label_N == k][:per_class]) for k in present]
    return labelled_rows(rows)


def labelled_rows(rows: Sequence[tuple[str, Image]], title: str = "") -> bytes:
    """Rows of images, each with a short text at its left: PNG."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    sheets = [(name[:48], grid(images, len(images))) for name, images in rows if len(images)]
    if not sheets:
        raise ValueError("a picture of no images")
    margin = 10 + round(max(font.getlength(name) for name, _ in sheets))
    top = 24 if title else 0
    width, height = margin + max(s.shape[1] for _, s in sheets), top + sum(s.shape[0] for _, s in sheets)
    width = max(width, 16 + round(font.getlength(title)))
    page = Pillow.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(page), top
    draw.text((6, 4), title, fill="black", font=font)
    for name, sheet in sheets:
        draw.text((5, y + sheet.shape[0] // 2 - 8), name, fill="black", font=font)
        page.paste(Pillow.fromarray(sheet), (margin, y))
        y += sheet.shape[0]
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


def pairs(left_NHWC: Image, right_NHWC: Image, names: tuple[str, str], columns: int = 10) -> bytes:
    """Two sets image by image: a row of the first above a row of the second, as many such rows as needed: PNG."""
    rows: list[tuple[str, Image]] = []
    for i in range(0, len(left_NHWC), columns):
        rows += [(names[0], left_NHWC[i : i + columns]), (names[1], right_NHWC[i : i + columns])]
    return labelled_rows(rows)


def codebook(count_SK: NDArray, names: Sequence[str], used: Sequence[float], perplexity: Sequence[float]) -> bytes:
    """Use of the codes, one panel a scale or codebook (the first ones), codes sorted by how often they occur: PNG."""
    count_SK, names = count_SK[:_PANELS], list(names)[:_PANELS]
    figure, axes = _figure(len(names), 1, (7, 1.2 + 1.1 * len(names)))
    for axis, count, name, share, even in zip(axes[:, 0], count_SK, names, used, perplexity):
        p = np.sort(count)[::-1] / max(1, count.sum())
        shown = np.unique(np.linspace(0, len(p) - 1, min(len(p), 2000)).round().astype(int))  # more than the paper has dots
        axis.fill_between(shown, p[shown], step="mid", color="#4c72b0")
        axis.axhline(1 / len(p), color="#c44e52", linewidth=0.8, linestyle="--")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_yticks([])
        axis.text(0.99, 0.85, f"used {share:.0%}, perplexity {even:.0f}", transform=axis.transAxes, ha="right", va="top", fontsize=8)
    axes[0, 0].set_title("Codebook use (dashed: every code equally often)", fontsize=10)
    axes[-1, 0].set_xlabel("codes, most frequent first")
    return _save(figure)


def curves(series: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> bytes:
    """One panel a model, one line a measure: ``{"generator": {"loss": (steps, values)}}`` to PNG."""
    figure, axes = _figure(1, len(series), (5.5 * len(series), 3.6))
    for axis, (title, lines) in zip(axes[0], series.items()):
        for name, (steps, values) in lines.items():
            axis.plot(steps, values, label=name, linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if lines:
            axis.legend(fontsize=8)
        positive = [v for _, values in lines.values() for v in values]
        if positive and min(positive) > 0 and max(positive) > 50 * min(positive):
            axis.set_yscale("log")
    return _save(figure)


_LABELLED = 8  # more points have a legend instead of names beside them
_COLUMN = 24  # names in one column of a legend
_MARKERS = "osD^v"


def scatter(points: Sequence[tuple[str, float, float]], x_name: str, y_name: str, log_x: bool = True) -> bytes:
    """Named points, e.g. quality against speed: PNG."""
    many = len(points) > _LABELLED
    figure, axes = _figure(1, 1, (9.6, 5.4) if many else (6.4, 4.4))
    axis = axes[0, 0]
    for i, (name, x, y) in enumerate(points):
        axis.scatter([x], [y], s=60, color=f"C{i % 10}", marker=_MARKERS[i // 10 % len(_MARKERS)], label=name)
        if not many:
            axis.annotate(name, (x, y), textcoords="offset points", xytext=(7, 5), fontsize=9)
    if many:
        axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7, frameon=False, ncols=1 + len(points) // _COLUMN)
        if 0 < 10 * min(p[2] for p in points) < max(p[2] for p in points):
            axis.set_yscale("log")
    if log_x and points and 0 < 5 * min(p[1] for p in points) < max(p[1] for p in points):
        axis.set_xscale("log")
    axis.margins(0.25)
    axis.set_xlabel(x_name)
    axis.set_ylabel(y_name)
    axis.grid(alpha=0.3)
    return _save(figure)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state and never a window

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
