"""Where raw series come from: tables with one row a time step, standardised by their training part and cut into windows.

Shapes: T time steps, H history, F horizon, C channels.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.configs.schema import DataConfig, SeriesConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import ONE_CLASS, Entry, Item, Source, file_digest, looked
from tokenloom.tasks.modalities.series.served.forecast import Windows

Values = NDArray[np.float64]
#: File and value column inside of ``statsmodels/datasets``.
PACKAGED = {"sunspots": ("sunspots/sunspots.csv", "SUNACTIVITY"), "co2": ("co2/co2.csv", "co2")}


def open_source(config: DataConfig) -> Source:
    """The windows of the series that a run file names, each in the split of the time that it forecasts.

    Raises:
        ConfigError: an unknown or missing source, or series that are too short.
    """
    given = config.series
    assert given is not None, "checked by the schema"
    paths, wanted = _files(config.source, given)
    table = {path.name: read_table(path, wanted) for path in paths}
    if len(table) < len(paths):
        raise ConfigError(f"data.source {config.source}: two of its files have one name; give each another one")
    names = next(iter(table.values()))[0]
    for name, (columns, _) in table.items():
        if columns != names:
            raise ConfigError(f"data.source {config.source}: {name} has the columns {columns}, others {names}; name them in series.values")
    windows = _windows(config, given, names, [values for _, values in table.values()])

    def items(entry: Entry) -> Iterator[Item]:
        values = (table[entry.name][1] - np.array(windows.mean)) / np.array(windows.std)
        for start, split in cuts(len(values), config, given):
            window = values[start : start + given.history + given.horizon].astype(np.float32)
            yield Item(f"{entry.name}#{start:08d}", partial(np.copy, window), ONE_CLASS, None, f"{entry.name}#{start}", split=split)

    # The scale is part of what a window is: new values of it, which another file may bring, make all windows anew.
    scale = hashlib.sha256(repr(windows).encode()).hexdigest()
    entries = tuple(Entry.of(path, path.name, stamp=scale[:16]) for path in paths)

    def digest(entry: Entry) -> str:
        return hashlib.sha256((file_digest(replace(entry, stamp="")) + scale).encode()).hexdigest()

    how = f"values {', '.join(names)}"
    return Source((ONE_CLASS,), entries, items, digest, notes=asdict(windows), how=how)


def cuts(length: int, config: DataConfig, given: SeriesConfig) -> Iterator[tuple[int, str]]:
    """(start, split) of each window: its horizon lies in one split, and training windows end before the validation time begins."""
    train, validation = borders(length, config)
    for start in range(0, length - given.history - given.horizon + 1):
        first, end = start + given.history, start + given.history + given.horizon
        if end <= train:
            if start % given.stride == 0:
                yield start, "train"
        elif first >= train and end <= validation:
            yield start, "validation"
        elif first >= validation:
            yield start, "test"


def borders(length: int, config: DataConfig) -> tuple[int, int]:
    """The time steps at which validation and test begin."""
    train = int(length * (1 - config.validation - config.test))
    return train, length - int(length * config.test)


def _windows(config: DataConfig, given: SeriesConfig, names: list[str], series: list[Values]) -> Windows:
    parts = [values[: borders(len(values), config)[0]] for values in series]
    if min(len(part) for part in parts) < given.history + given.horizon:
        raise ConfigError(
            f"data.series: history={given.history} + horizon={given.horizon} is longer than the training part of "
            f"{min(len(part) for part in parts)} values: shorten them, or lower data.validation and data.test"
        )
    if given.season > given.history:
        raise ConfigError(f"data.series.season={given.season}: longer than history={given.history}, which it is repeated from")
    together = np.concatenate(parts)
    std = together.std(0)
    if not (std > 0).all():
        raise ConfigError(f"data.series: {names[int(np.argmin(std))]} never changes in the training part; leave it out (series.values)")
    steps = np.concatenate([np.abs(part[given.season :] - part[: -given.season]) for part in parts])
    plain = {"mean": together.mean(0), "std": std, "naive": steps.mean(0)}
    rest: dict[str, Any] = {k: tuple(float(x) for x in v) for k, v in plain.items()}
    return Windows(names=tuple(names), history=given.history, horizon=given.horizon, season=given.season, **rest)


def _files(source: str, given: SeriesConfig) -> tuple[list[Path], list[str] | None]:
    kind, _, where = source.partition(":")
    if kind in PACKAGED and not where:
        spec = importlib.util.find_spec("statsmodels")  # its file is read without importing the library, which is slow
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"data.source {kind}: needs the package statsmodels; install tokenloom[series]")
        file, column = PACKAGED[kind]
        return [Path(next(iter(spec.submodule_search_locations)), "datasets", file)], given.values or [column]
    if kind in ("csv", "parquet") and where:
        paths = [Path(p).absolute() for p in sorted(glob.glob(os.path.expanduser(where), recursive=True)) if os.path.isfile(p)]
        if not paths:
            raise ConfigError(f"data.source {source}: no file matches{looked(where)}")
        return paths, given.values
    raise ConfigError(f"data.source {source!r} is unknown for kind series; there are: {', '.join(PACKAGED)}, csv:GLOB, parquet:GLOB")


def read_table(path: Path, wanted: list[str] | None) -> tuple[list[str], Values]:
    """Names and values (T, C) of a table in the order of its rows; gaps are filled linearly, as between weekly measurements.

    Raises:
        ConfigError: not a table, no such column, or no numbers in it.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a table: {error}") from error
    names = wanted or [str(name) for name in frame.select_dtypes("number").columns]
    if missing := [name for name in names if name not in frame]:
        raise ConfigError(f"{path}: no column {missing[0]!r}; it has {', '.join(map(str, frame))} (data.series.values)")
    numbers = frame[names].apply(pd.to_numeric, errors="coerce").interpolate(limit_direction="both")
    values: Values = numbers.to_numpy(np.float64)
    if not names or not len(values) or not np.isfinite(values).all():
        raise ConfigError(f"{path}: no numbers in {', '.join(names) or 'any column'}; name the value columns in data.series.values")
    return names, values
