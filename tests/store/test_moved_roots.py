"""A root that is moved, copied, linked or mounted elsewhere: MLflow's database holds whole paths, which follow it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tokenloom.flows.cli.main import code_of
from tokenloom.tasks.tracking import locations

NAMES = ["root", "with blank", "ha#sh", "per%20cent", "ünï", "a&b=[c]"]


def database(root: Path, of: Path, *names: str) -> None:
    """A database as MLflow leaves it under the root ``of``, with an experiment a name, now found below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(root / "mlflow.db") as made:
        for table, columns in {
            "experiments": "name, artifact_location",
            "runs": "artifact_uri",
            "logged_models": "artifact_location",
            "model_versions": "name, version, source, storage_location, current_stage",
        }.items():
            made.execute(f"create table {table} ({columns})")
        made.execute("insert into experiments values ('Default', '/somewhere/mlruns/0'), ('far', 's3://bucket/mlflow/far')")
        for name in names:
            place = (of / "mlruns" / name).as_uri()
            made.execute("insert into experiments values (?, ?)", (name, place))
            made.execute("insert into runs values (?)", (f"{place}/ab/artifacts",))
            made.execute("insert into logged_models values (?)", (f"{place}/models/m-1/artifacts",))
            made.execute("insert into model_versions values (?, 1, 'models:/m-1', ?, 'None')", (name, f"{place}/models/m-1/artifacts"))
    made.close()


def places(root: Path) -> set[str]:
    with sqlite3.connect(root / "mlflow.db") as made:
        found = {row[0] for table, column in locations.COLUMNS for row in made.execute(f"select {column} from {table}").fetchall()}
    made.close()
    return found - {"/somewhere/mlruns/0", "s3://bucket/mlflow/far", "models:/m-1"}


@pytest.mark.parametrize("name", NAMES)
def test_paths_follow_a_root_that_was_moved(name: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old" / name, tmp_path / "new" / name
    database(new, old, "digits", "my run")
    assert locations.stray(new) == [old.as_uri()]
    assert locations.put_right(new) == [str(old)]
    for experiment in ("digits", "my run"):
        place = (new / "mlruns" / experiment).as_uri()
        assert {place, f"{place}/ab/artifacts", f"{place}/models/m-1/artifacts"} <= places(new)
    assert all(place.startswith(f"{new.as_uri()}/mlruns/") for place in places(new))
    assert locations.put_right(new) == []


def test_a_root_within_a_name_of_another_is_told_apart(tmp_path: Path) -> None:
    database(tmp_path / "new", tmp_path / "old", "a")
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as made:
        made.execute("insert into runs values (?)", ((tmp_path / "old" / "mlruns-not").as_uri(),))
    made.close()
    locations.put_right(tmp_path / "new")
    assert (tmp_path / "old" / "mlruns-not").as_uri() in places(tmp_path / "new")


def test_another_way_to_the_same_root_changes_nothing(tmp_path: Path) -> None:
    database(tmp_path / "root", tmp_path / "root", "a")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert locations.put_right(tmp_path / "link") == []
    assert locations.put_right(tmp_path / "root") == []


def test_no_database_and_an_empty_one(tmp_path: Path) -> None:
    assert (locations.put_right(tmp_path), locations.missing(tmp_path)) == ([], [])
    (tmp_path / "mlflow.db").touch()
    assert (locations.put_right(tmp_path), locations.missing(tmp_path)) == ([], [])


def test_doctor_tells_of_a_move_and_of_files_that_stayed_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "TOKENLOOM_STORE"):
        monkeypatch.delenv(name, raising=False)
    old, new = tmp_path / "old", tmp_path / "new"
    database(new, old, "a")
    assert code_of(["doctor", "--root", str(new)]) == 1
    assert f"BAD  root       {new}: 1 registered models have no files (a/1: {new}/mlruns/a/models" in capsys.readouterr().out
    (new / "mlruns" / "a" / "models" / "m-1" / "artifacts").mkdir(parents=True)
    assert code_of(["doctor", "--root", str(new)]) == 0
    assert str(old) in next(line for line in capsys.readouterr().out.splitlines() if " root " in line)
