"""What a person reads: errors that say where was looked, commands to copy, tables on narrow screens, warnings with a file's name."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

import pytest
from image_files import config, picture

from tokenloom.flows import results
from tokenloom.flows.cli.main import code_of
from tokenloom.flows.screen import packed
from tokenloom.flows.workspace import Workspace
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.evaluation.sample import chosen_classes
from tokenloom.tasks.store.artifacts import StepSpec, Store
from tokenloom.tasks.training.curves import BEGUN


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENLOOM_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("TOKENLOOM_STORE", raising=False)


@pytest.mark.parametrize("run", ["smoke_var", "series_sunspots"])
@pytest.mark.parametrize("source", ["folder:my images", "idx:idx", "parquet:a/*.parquet", "webdataset:a/*.tar", "csv:a.csv"])
def test_a_relative_source_that_is_not_there_says_where_was_looked(
    run: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, where = source.split(":")
    if (kind == "csv" and run == "smoke_var") or (kind not in ("csv", "parquet") and run != "smoke_var"):
        pytest.skip("no source of this kind of signal")
    assert code_of(["plan", run, "--set", f"data.source={source}"]) == 2
    said = capsys.readouterr().err
    assert f"looked for {tmp_path / where}" in said
    assert "where the command is started" in said


@pytest.mark.parametrize("name", ["plain", "with blank", "it's", "a$b", "a;b"])
def test_a_printed_command_can_be_copied(name: str, tmp_path: Path) -> None:
    work = Workspace.open(root=str(tmp_path / name))
    command = results.where(work, None)["UIs"]
    assert shlex.split(command) == ["tokenloom", "ui", "--root", str(tmp_path / name)]


NAMES = ["cat", "dog", "tench, Tinca tinca", "half-blood", "7"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [0]), ("dog, cat", [1, 0]), ("tench, Tinca tinca", [2]), ("half-blood,cat", [3, 0]), ("0-2", [0, 1, 2]),
        ("1,cat,3-4", [1, 0, 3, 4]),
    ],
)  # fmt: skip
def test_classes_are_chosen_by_name_or_number(text: str, expected: list[int]) -> None:
    assert chosen_classes(text, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cta", "no class 'cta'; there are e.g. cat"),
        ("7", "none of the 5"),
        ("3-9", "none of the 5"),
        ("2-1", "none of"),
        (" ,", "names no class"),
    ],
)
def test_a_class_that_there_is_not_is_refused_with_those_that_are_near(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        chosen_classes(text, NAMES)


def _artifacts(root: Path) -> None:
    store = Store(str(root / "store"), root)
    for kind in ("dataset", "generator", "evaluation"):

        def body(work):
            work.put("note.txt", b"hello")
            work.notes["classes"] = ["abyssinian cat", "beagle"]
            return {"recognition": 0.98765, "precision": 0.5, "a_measure_with_a_long_name": 0.123456}

        store.execute(StepSpec("step", 1, kind, "a-run-with-a-long-name", {"a": kind}), body)


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", ["methods", "runs", "show a-run-with-a-long-name", "plan smoke_var"])
def test_screens_of_forty_and_eighty_columns_cut_no_word(
    command: str, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not command.startswith("plan"):
        _artifacts(tmp_path / "root")

    def words(width: int) -> tuple[list[str], list[str]]:
        monkeypatch.setenv("COLUMNS", str(width))
        assert code_of(command.split()) == 0
        out = capsys.readouterr().out
        return out.splitlines(), re.findall(r"[^\s│━─┃╇]+", out)

    lines, narrow = words(columns)
    assert all(len(line) <= columns or len(line.split()) <= 2 for line in lines)  # a name, and a word that is longer than the screen
    _, wide = words(1000)
    heads = {"name", "run", "step", "fingerprint"}  # of the first column, and of one that is empty
    assert {word.rstrip(":") for word in wide if word != "-"} - heads <= {word.rstrip(":") for word in narrow}


def test_show_names_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _artifacts(tmp_path / "root")
    assert code_of(["show", "a-run-with-a-long-name"]) == 0
    assert "2 classes: abyssinian cat, beagle" in capsys.readouterr().out


def test_ten_numbers_come_first_with_their_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {f"other_{at}": at for at in range(12)} | {"train_seconds": 3.25, "peak_memory_bytes": 3 << 30, "tokens_per_second": 12345.6}
    metrics |= {"parameters": 1234567, "steps": 10, "validation_loss": 1.5, "best_validation_loss": 1.0, "best_step": 4, "kept_step": 10}
    store = Store(str(tmp_path / "root" / "store"), tmp_path / "root")
    made = store.execute(StepSpec("train_generator", 1, "generator", "over", {}), lambda _: metrics).artifact
    assert code_of(["show", "over"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "parameters 1,234,567 steps 10 validation loss 1.5" in said
    assert "tokens 12,346/s train 3.25 s peak memory 3.0 GiB" in said
    assert "and 12 more numbers: --all" in said
    assert "best at step 4 of 10: 1, and 1.5 at the end (over-fitting); the last weights were kept" in said
    assert code_of(["show", made.id, "--all"]) == 0
    assert "other 11 11" in capsys.readouterr().out


def test_runs_say_how_far_a_training_is_and_what_was_paid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(tmp_path / "root" / "store"), tmp_path / "root")
    store.execute(StepSpec("train_tokenizer", 1, "tokenizer", "half", {}), lambda _: {"train_seconds": 1800.0, "workers": 4})
    folder = "generator/half-0123456789ab"
    store.storage.write(f"{folder}/{BEGUN}", b'{"step": "train_generator", "steps": 1000, "name": "half"}')
    store.storage.write(f"{folder}/metrics/0000001.jsonl", b'{"step": 1}\n{"step": 250}\n')
    assert code_of(["runs", "--price", "2.5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tokenizer; train_generator 250/1,000 (25%), stopped; the same command goes on" in said
    assert "5.00" in said  # half an hour of four workers
    with store.lease("generator-0123456789ab"):
        assert code_of(["runs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(25%), working" in said
    assert "2 worker h" in said
    assert code_of(["runs", "--price", "nan"]) == 2


def test_parts_are_packed_into_lines() -> None:
    assert packed(["a: 1", "b: 2", "c: three four five six"], 22) == ["  a: 1  b: 2", "  c: three four five", "    six"]


def test_warnings_of_libraries_are_counted_with_the_first_file(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for at in range(20):
        exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" if at >= 17 else b""  # five entries, and none there
        picture(tmp_path / "images" / "ab"[at % 2] / f"{at}.jpg", at, exif=exif)
    with caplog.at_level(logging.WARNING, "tokenloom.tasks"):
        ingest("x", config(f"folder:{tmp_path / 'images'}"), store)
    said = [record.getMessage() for record in caplog.records if "EXIF" in record.getMessage()]
    assert len(said) == 1
    assert re.match(r"\S*1[789]\.jpg and 2 more: Corrupt EXIF data", said[0])
