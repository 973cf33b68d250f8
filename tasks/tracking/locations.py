"""Where MLflow's files lie, as its database has it: whole paths, which a root that was moved, copied or mounted elsewhere leaves behind.

A database below a root (``mlflow.db``) is about the files below that root and no others, so its paths are put right when it is opened.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

#: Columns of MLflow's tables that hold a location.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def stray(root: Path) -> list[str]:
    """The roots, other than this one, that its database says the files of its experiments lie under."""
    path = Path(root).absolute() / "mlflow.db"
    if not path.is_file():
        return []
    with _opened(path, "ro") as database:
        return sorted(_others(database, path.parent))


def missing(root: Path) -> list[str]:
    """Registered models whose files are not there, as ``NAME/VERSION: PATH``; only those that the root's own database has on local disk."""
    path, lost = Path(root).absolute() / "mlflow.db", []
    if not path.is_file():
        return []
    with _opened(path, "ro") as database, contextlib.suppress(sqlite3.OperationalError):
        others = _others(database, path.parent)
        query = "select name, version, coalesce(storage_location, source) from model_versions where current_stage != 'Deleted_Internal'"
        for name, version, location in database.execute(query).fetchall():
            old = next((each for each in others if str(location).startswith(f"{each}/")), None)
            here = location if old is None else path.parent.as_uri() + location.removeprefix(old)
            if here.startswith("file://") and not os.path.isdir(unquote(urlsplit(here).path)):
                lost.append(f"{name}/{version}: {unquote(urlsplit(here).path)}")
    return lost


def put_right(root: Path) -> list[str]:
    """Have the database of a root name this root wherever it names another one; those that it named."""
    path = Path(root).absolute() / "mlflow.db"
    if not stray(root):
        return []
    with _opened(path, "rw") as database, database:  # one transaction
        others = sorted(_others(database, path.parent))
        new = (path.parent / "mlruns").as_uri()
        for old in (f"{other}/mlruns" for other in others):
            for table, column in COLUMNS:
                with contextlib.suppress(sqlite3.OperationalError):  # tables of a newer or older MLflow
                    database.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) where {column} = ? or substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
    return [unquote(urlsplit(other).path) for other in others]


def _others(database: sqlite3.Connection, root: Path) -> set[str]:
    """Addresses of the roots whose ``mlruns/NAME`` is the location of an experiment NAME; another path to this root is none."""
    found = set()
    with contextlib.suppress(sqlite3.OperationalError):  # no tables yet
        for name, location in database.execute("select name, artifact_location from experiments").fetchall():
            end = f"/mlruns/{quote(str(name))}"
            if str(location).startswith("file://") and location.endswith(end) and location != (root / "mlruns" / name).as_uri():
                found.add(location.removesuffix(end))
    return {other for other in found if not _same(unquote(urlsplit(other).path), root)}


def _same(path: str, root: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(path, root)
    return False


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=10)) as database:
        yield database
