"""Plots for people, of any kind of signal: codebook use, training curves, quality against cost. PNG bytes out.

Shapes: S groups of codes (a scale or a codebook), K codes.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

_PANELS = 24  # of one plot of codebooks
P = ParamSpec("P")


def plain(draw: Callable[P, bytes]) -> Callable[P, bytes]:
    """Have a plot drawn in matplotlib's own style: pictures are kept, and a person's settings (``matplotlibrc``, where they stand, too)
    are none of an artifact's inputs."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> bytes:
        from matplotlib import style

        with style.context("default"):
            return draw(*args, **options)

    return drawn


@plain
def codebook(count_SK: NDArray, names: Sequence[str], used: Sequence[float], perplexity: Sequence[float]) -> bytes:
    """Use of the codes, one panel a scale or codebook (the first ones), codes sorted by how often they occur: PNG."""
    count_SK, names = count_SK[:_PANELS], list(names)[:_PANELS]
    figure, axes = figure_of(len(names), 1, (7, 1.2 + 1.1 * len(names)))
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
    return saved(figure)


@plain
def importance(shares: Mapping[str, float], metric: str) -> bytes:
    """The share of each setting in how a metric varies, the largest above: PNG."""
    names = sorted(shares, key=lambda name: shares[name])
    figure, axes = figure_of(1, 1, (7, 1.2 + 0.4 * len(names)))
    bars = axes[0, 0].barh(names, [shares[name] for name in names], color="#4c72b0")
    axes[0, 0].bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=3, fontsize=8)
    axes[0, 0].set_xlim(0, 1.1)
    axes[0, 0].set_title(f"Share of each setting in how {metric} varies", fontsize=10)
    return saved(figure)


@plain
def curves(series: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> bytes:
    """One panel a model, one line a measure: ``{"generator": {"loss": (steps, values)}}`` to PNG."""
    figure, axes = figure_of(1, len(series), (5.5 * len(series), 3.6))
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
    return saved(figure)


_LABELLED = 8  # more points have a legend instead of names beside them
_COLUMN = 24  # names in one column of a legend
_MARKERS = "osD^v"


@plain
def scatter(points: Sequence[tuple[str, float, float]], x_name: str, y_name: str, log_x: bool = True) -> bytes:
    """Named points, e.g. quality against speed: PNG."""
    many = len(points) > _LABELLED
    figure, axes = figure_of(1, 1, (9.6, 5.4) if many else (6.4, 4.4))
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
    return saved(figure)


def figure_of(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state and never a window

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def saved(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
