"""The fault harness itself: what it does to connections and servers, how it judges, and one fault of each cheap kind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.judge import differing, kept, outcome, resumed_early, rewritten, twice
from benchmarks.faults.page import latest, page
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.trials import ENDED, category
from benchmarks.faults.whole import repeated, versions


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    while data := client.recv(100):
                        client.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def test_a_proxy_passes_holds_and_cuts(echo: int) -> None:
    proxy = Proxy(echo)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"one")
        assert client.recv(10) == b"one"
        with proxy.held():
            client.sendall(b"two")
            client.settimeout(0.4)
            with pytest.raises(TimeoutError):
                client.recv(10)
        client.settimeout(5)
        assert client.recv(10) == b"two", "what was held arrives"
        with proxy.cut(), pytest.raises(ConnectionResetError):
            client.recv(10)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"three")
        assert client.recv(10) == b"three"
    proxy.close()


FILES = {
    "dataset/d-1/record.json": b"{}",
    "dataset/d-1/shards/a.parquet": b"a",
    "tokenizer/t-2/checkpoints/step-0000004/state.json": b"{}",
    "tokenizer/t-2/checkpoints/step-0000004/state.safetensors": b"s",
    "tokens/k-3/markers/abc.json": b"{}",
    "tokens/k-3/shards/abc.parquet": b"k",
    ".leases/x.json": b"{}",
}


def test_what_must_be_the_same_is_what_lasts() -> None:
    assert set(outcome(FILES)) == {"artifact dataset/d-1", "dataset/d-1/shards/a.parquet", "tokens/k-3/shards/abc.parquet"}
    other = FILES | {"tokens/k-3/shards/abc.parquet": b"K"}
    assert differing(outcome(FILES), outcome(other)) == ["tokens/k-3/shards/abc.parquet"]
    assert differing(outcome(FILES), {}) == sorted(outcome(FILES))


def test_work_done_again_shows_only_where_it_had_been_kept() -> None:
    before = kept(FILES)
    assert before == {"artifact dataset/d-1", "shard tokens/k-3/abc", *(f"step tokenizer/t-2 {i}" for i in range(1, 5))}
    assert twice(before, ["step tokenizer/t-2 5", "step tokenizer/t-2 6", "shard tokens/k-3/abd"]) == []
    assert twice(before, ["step tokenizer/t-2 4", "shard tokens/k-3/abc", "step dataset/d-1 1"]) == [
        "shard tokens/k-3/abc",
        "step dataset/d-1 1",
        "step tokenizer/t-2 4",
    ]


def test_a_record_written_again_and_a_training_from_too_early_show() -> None:
    after = FILES | {"tokenizer/t-2/record.json": json.dumps({"metrics": {"resumed_from": 4}}).encode()}
    assert rewritten(FILES, after) == []
    assert resumed_early(FILES, after) == []
    after = FILES | {"dataset/d-1/record.json": b"[]", "tokenizer/t-2/record.json": json.dumps({"metrics": {"resumed_from": 2}}).encode()}
    assert rewritten(FILES, after) == ["dataset/d-1/record.json"]
    assert resumed_early(FILES, after) == ["tokenizer/t-2"]


def test_a_step_that_two_runs_say_to_have_done_shows() -> None:
    said = "extract: ran in 2.0 s  tokens/k-3\nextract: cached  tokens/k-3\ntrain_tokenizer: ran in 1 min 2 s  tokenizer/t-2\n"
    assert repeated(said) == []
    assert repeated(f"{said}extract: ran in 0.1 s  tokens/k-3\n") == ["artifact tokens/k-3"]


def test_versions_are_counted_in_the_registry(tmp_path: Path) -> None:
    assert versions(tmp_path / "none.db") == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("create table model_versions (name text)")
        connection.executemany("insert into model_versions values (?)", [("a",), ("a",)])
    assert versions(tmp_path / "mlflow.db") == 2


def test_flips_hit_what_is_read_again() -> None:
    assert [category(path) for path in FILES] == ["record", "image shard", "checkpoint", "checkpoint", "marker", "token shard", ""]


def row(**given: object) -> dict[str, object]:
    base = {"level": "short", "kind": "kill", "where": "local", "seed": 0, "first": "killed", "detail": "at 1 s", "lost": [], "twice": []}
    return {**base, "unnamed": [], "problem": "", "ok": True, **given}


def test_the_page_counts_each_fault_once_and_leaves_out_what_hit_nothing() -> None:
    rows = [row(lost=["x"], ok=False), row(), row(seed=1, first="error"), row(seed=2, detail=f"at 3 s{ENDED}")]
    rows.append(row(kind="flip", detail="record: byte 1 of a", first="done"))
    assert [r["seed"] for r in latest(rows)] == [0, 1, 0]
    text = page(rows)
    assert "| kill | short | local | 2 | 1 | 1 | 0 | 0 | 0 |" in text
    assert "| **all** |  |  | 3 | 2 | 1 | 0 | 0 | 0 |" in text
    assert "| record | 1 | 1 | 1 |" in text
    assert "| kill | short | local | 2 | 1 | 1 | 1 | 1 | 0 |" in page([*rows, row(lost=["x"], problem="never done", ok=False)])


@pytest.mark.parametrize("where", [pytest.param("local", marks=pytest.mark.long), "s3"])
def test_one_fault_of_each_cheap_kind(where: str, tmp_path: Path) -> None:
    pytest.importorskip("moto")
    kinds = ["kill", "flip"] if where == "local" else ["cut"]
    results = tmp_path / "results.jsonl"
    command = [
        sys.executable,
        "-m",
        "benchmarks.faults",
        "--where",
        where,
        "--seed",
        "1",
        "--folder",
        str(tmp_path),
        "--results",
        str(results),
    ]
    for kind in kinds:
        command += ["--kind", kind]
    # Named here, since a safe path (which other tests may have set) leaves out the working directory.
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted(r["kind"] for r in rows) == sorted(kinds)
    assert all(r["ok"] for r in rows), done.stdout
    assert all("--seed 1" in line for line in done.stdout.splitlines() if line.startswith("ok"))
