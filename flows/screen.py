"""What the screen shows while a run works: a live bar on a terminal, a line now and then elsewhere, both on stderr."""

from __future__ import annotations

import contextlib
import logging
import shutil
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from tokenloom.tasks.store.artifacts import Artifact

#: Seconds between two lines of one stage where there is no terminal.
QUIET_SECONDS = 10.0
#: Numbers that are shown beside the bar, in this order, when a step reports them.
SHOWN = (
    "loss",
    "val_loss",
    "validation_loss",
    "images_per_second",
    "items_per_second",
    "windows_per_second",
    "tokens_per_second",
    "mb_per_second",
    "minutes_left",
    "rejected",
)


@dataclass
class Done:
    """One step of a run that has ended, for the table at the end."""

    name: str
    status: str  # cached, ran or failed
    artifact: Artifact | None = None
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def row(self) -> dict[str, Any]:
        """Plain form: an entry of ``steps`` in ``tokenloom run --json``."""
        made = self.artifact
        row = {
            "name": self.name,
            "status": self.status,
            "fingerprint": made.fingerprint if made else None,
            "seconds": round(self.seconds, 2),
            "uri": made.uri if made else None,
            "artifact": made.id if made else None,
        }
        return row | ({"error": self.error} if self.error else {})


class Screen:
    """Receives ``report(stage, done, total, numbers)`` from every step; safe to call from several threads."""

    def __init__(self, console: Console | None = None, live: bool | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal if live is None else live
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}
        self._seen: dict[str, tuple[float, float, int]] = {}  # stage: first call, last line, done at first call
        self._progress: Progress | None = None
        self.steps: list[Done] = []

    def __enter__(self) -> Screen:
        if self.live:
            columns = [
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
            ]
            self._progress = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._bars.clear()

    def report(self, stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        """Show how far a stage is; never raises, so that a screen that went away cannot stop the work."""
        with contextlib.suppress(Exception), self._lock:
            if self._progress is not None:
                self._bar(self._progress, stage, done, total, numbers)
            else:
                self._line(stage, done, total, numbers)

    def begin(self, name: str) -> None:
        """A step starts."""
        self.steps = [each for each in self.steps if each.name != name]

    def end(self, done: Done) -> None:
        """A step has ended: one line that stays."""
        self.steps.append(done)
        what = f"{done.artifact.kind}/{done.artifact.id}" if done.artifact else done.error or ""
        self.say(f"{done.name}: {done.status} in {clock(done.seconds)}  {what}".rstrip())

    def say(self, text: str) -> None:
        """One line above the bars."""
        with contextlib.suppress(Exception):
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One warning line."""
        with contextlib.suppress(Exception):
            self.console.print(f"warning: {text}", style="yellow", markup=False)

    def _bar(self, progress: Progress, stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if stage not in self._bars:
            for other in self._bars.values():  # one bar at a time: the stage before has ended
                progress.update(other, visible=False)
            self._bars[stage] = progress.add_task(stage, total=total or None, numbers="")
        progress.update(self._bars[stage], completed=done, total=total or None, visible=True, numbers=shown(numbers))

    def _line(self, stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        now = time.monotonic()
        first, last, origin = self._seen.get(stage, (now, float("-inf"), done))
        if done == origin or done < 2:
            first, origin = now, done  # the time to start up says nothing about the rate
        ended = 0 < total <= done
        if now - last < QUIET_SECONDS and not (ended and last != float("inf")):
            self._seen[stage] = (first, last, origin)
            return
        self._seen[stage] = (first, float("inf") if ended else now, origin)
        if ended and last == float("inf"):
            return
        left = ""
        if not ended and done > origin and now - first > QUIET_SECONDS / 2:
            left = f"  {clock((now - first) * (total - done) / (done - origin))} left"
        self.console.print(f"{stage} {done}/{total or '?'}  {shown(numbers)}{left}".rstrip(), markup=False)


_current: Screen | None = None


def current() -> Screen:
    """The screen of this process: that of the command line, else one that prints lines (a worker, a notebook)."""
    return _current or _fallback


@contextlib.contextmanager
def screen(quiet: bool = False) -> Iterator[Screen]:
    """Make a screen the current one for a block."""
    global _current
    before = _current
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    with Screen(console) as made:
        _current = made
        warnings = _Warnings(made)
        logging.getLogger("tokenloom.tasks").addHandler(warnings)
        try:
            yield made
        finally:
            logging.getLogger("tokenloom.tasks").removeHandler(warnings)
            _current = before


class _Warnings(logging.Handler):
    """Warnings that steps log, for the person who waits as well."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.warn(record.getMessage())


def shown(numbers: dict[str, float]) -> str:
    """The numbers worth a look while waiting, e.g. ``loss 2.31  1500 tokens/s``."""
    parts = []
    for name in SHOWN:
        if name in numbers:
            value = numbers[name]
            unit = name.removesuffix("_per_second")
            text = f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
            parts.append(f"{text} {unit}/s" if unit != name else f"{name.replace('_', ' ')} {text}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(title: str, columns: list[str], rows: list[list[Any]], console: Console | None = None) -> None:
    """Print a table on stdout or, where it is wider than the screen, one paragraph a row; no word of it is ever cut."""
    from rich.measure import Measurement
    from rich.table import Table

    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    made = Table(title=title or None, title_justify="left", show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, no_wrap=True)
    for row in cells:
        made.add_row(*row)
    out = console or Console(highlight=False, width=width())
    if Measurement.get(out, out.options.update(max_width=10_000), made).maximum <= out.width:
        out.print(made, markup=False)
        return
    if title:
        out.print(title, style="italic", markup=False)
    for row in cells:
        out.print(row[0], style="bold", markup=False, soft_wrap=True)
        named = [f"{column}: {cell}" if column else cell for column, cell in zip(columns[1:], row[1:]) if cell not in ("", "-")]
        for line in packed(named, out.width):
            out.print(line, markup=False, soft_wrap=True)


def width() -> int:
    """Columns of the screen that stdout is, or that ``COLUMNS`` says; 200 where it is none."""
    return shutil.get_terminal_size((200, 24)).columns


def packed(parts: Sequence[str], columns: int, indent: str = "  ") -> list[str]:
    """Parts side by side as far as they fit; one that is too long for a line is broken between words."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= columns:
            lines[-1] += f"  {part}"
        else:
            lines += textwrap.wrap(
                part,
                max(columns, 20),
                initial_indent=indent,
                subsequent_indent=f"{indent}  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines


_fallback = Screen(live=False)
