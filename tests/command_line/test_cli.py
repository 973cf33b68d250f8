"""The command line: help that teaches, exit codes, one clear message for each mistake, JSON for programs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
from click.testing import CliRunner

from tokenloom.flows.cli import doctor, sample
from tokenloom.flows.cli import main as cli
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import Preempted, StepError
from tokenloom.tasks.store.artifacts import StepSpec, Store


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENLOOM_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("TOKENLOOM_STORE", raising=False)
    monkeypatch.delenv("TOKENLOOM_DEBUG", raising=False)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    code = cli.code_of(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"tokenloom {command}" in out
    if command not in ("methods", "decoders"):
        assert "--root" in out
    assert command == "serve" or command == "ui" or "--json" in out


def test_help_lists_all_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(f"\n  {command} " in out for command in cli.COMMANDS)
    assert "75" in out
    assert "130" in out
    assert call(capsys, "--version")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "unknown run 'nothing'"),
        (["plan", "smoke_var", "--set", "generator.train.stepz=1"], "did you mean 'steps'"),
        (["run", "smoke_var", "--set", "generator.train.steps=many"], "generator.train.steps: 'many' cannot be used"),
        (["run", "smoke_var", "--set", "generator.recipe=vra"], "unknown generator recipe 'vra'; there are: "),
        (["run", "smoke_var", "--set", "generator.args.dephts=3"], "dephts"),
        (["run", "smoke_var", "--set", "tokenizer.args.scales=[1, 2, 5]"], "the last scale must be the latent grid, which is 4x4"),
        (["run", "smoke_var", "--set", "tokenizer.args.codes=1"], "at least 2 codes"),
        (["run", "smoke_var", "--set", "generator.args.classes=3"], "classes"),
        (["run", "smoke_var", "--set", "data.source=folder:/does/not/exist"], "/does/not/exist"),
        (["run", "smoke_var", "--set", "data.source=digitz"], "digitz"),
        (["run", "smoke_var", "--set", "tokenizer={use: no-such}"], "tokenizer.use: "),
        (["run", "smoke_var", "--set", "evaluate.features=weights.pth"], "evaluate.features"),
        (["run", "smoke_var", "--cluster", "moon"], "unknown cluster 'moon'"),
        (["run", "smoke_var", "--set", "cluster.execution.workers=0"], "workers=0"),
        (["run", "smoke_var", "--store", "ftp://host/x"], "ftp"),
        (["run", "smoke_var", "--store", "s3:/bucket/x"], "two slashes"),
        (["run", "smoke_var", "--store", "s3://bucket/my#store"], "cannot hold '?' or '#'"),
        (["plan", "smoke_var", "--set", "register.name=my model/v1:x"], "register.name"),
        (["plan", "smoke_var", "--set", "cluster.execution.device=tpu"], "device"),
        (["run", "smoke_var", "--set", "generator.args.depth=0"], "generator"),
        (["run", "smoke_var", "--set", "generator.args.depth=-1"], "generator"),
        (
            ["run", "smoke_raster", "--set", "generator={recipe: token_shuffle, args: {depth: 2, side: 3}, train: {steps: 1}}"],
            "does not divide",
        ),
        (["plan", "smoke_var", "--set", "name=2020-13-45"], "not valid YAML"),
        (["run", "smoke_var", "--only", "dance"], "dance"),
        (["dance"], "No such command 'dance'"),
        (["sample", "x", "--out", "x.jpg"], "FILE.png"),
        (["sample", "x", "--out", "none/x.png"], "does not exist"),
        (["sample", "x", "--out", "x.png"], "'x'"),
        (["show", "x"], "'x'"),
        (["export", "x", "out"], "'x'"),
        (["import", "nofamily", __file__, "--settings", __file__], "unknown family"),
        (["serve", "smoke_var", "--cron", "at night"], "--cron 'at night'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_message_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2, err
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not list((tmp_path / "root").rglob("record.json"))  # nothing was begun


def test_a_root_that_is_a_file_is_a_clear_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    code, _, err = call(capsys, "runs", "--root", str(tmp_path / "taken"))
    assert code == 2
    assert "--root" in err
    assert "taken" in err


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (ConfigError("data.size=0: must be positive"), 2),
        (StepError("shards/a.parquet: cut short"), 1),
        (Preempted("taken back"), 75),
        (KeyboardInterrupt(), 130),
        (click.UsageError("wrong"), 2),
        (ZeroDivisionError("division by zero"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(problem: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(**_: Any) -> None:
        raise problem

    monkeypatch.setattr(cli.cli, "main", fail)
    got, out, err = call(capsys)
    assert got == code
    assert out == ""
    assert err.strip()
    assert "Traceback" not in err


def test_sigterm_asks_to_come_back() -> None:
    with pytest.raises(Preempted, match="goes on"):
        cli._terminated(signal.SIGTERM, None)


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "methods", "--json")
    assert (code, err) == (0, "")
    methods = {row["name"]: row for row in json.loads(out)["methods"]}
    assert {"kind", "paper", "order", "feed", "net", "head", "status"} <= methods["var"].keys()
    assert methods["var"]["kind"] == "generator"
    assert methods["var_vq"]["kind"] == "tokenizer"
    code, out, _ = call(capsys, "methods")
    assert code == 0
    assert "2404.02905" in out


def test_decoders(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "decoders", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert list(document) == ["decoders"]
    assert all(list(row) == ["name", "paper", "exact", "needs"] for row in document["decoders"])
    rows = {row["name"]: row for row in document["decoders"]}
    assert rows["jacobi"]["paper"] == "2410.01699"
    assert rows["jacobi"]["exact"] is True
    assert rows["rejection"]["exact"] is False
    assert "a draft model" in rows["draft_model"]["needs"]
    code, out, _ = call(capsys, "decoders")
    assert code == 0
    assert "2410.01699" in out


def test_fields_of_a_way_of_decoding() -> None:
    assert sample.decoder_of("jacobi", ()) == "jacobi"
    assert sample.decoder_of("jacobi", ("window=8",)) == {"jacobi": {"window": 8}}
    assert sample.decoder_of("{jacobi: {window: 8}}", ()) == {"jacobi": {"window": 8}}
    with pytest.raises(click.UsageError, match="--decode 'null'"):
        sample.decoder_of("null", ())
    for text, fields in ((None, ("window=8",)), ("jacobi", ("window",)), ("{jacobi: {}}", ("window=8",))):
        with pytest.raises(click.UsageError, match="--set"):
            sample.decoder_of(text, fields)


def test_plan_of_an_empty_store_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = call(capsys, "plan", "smoke_var", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [row["name"] for row in document["steps"]] == [
        "ingest", "train_tokenizer", "extract", "features", "train_generator", "evaluate", "register"
    ]  # fmt: skip
    assert document["steps"][0]["status"] == "run"
    assert not any(row["status"] == "cached" for row in document["steps"])
    assert not list((tmp_path / "root").rglob("*.parquet"))


def _artifact(root: Path) -> str:
    store = Store(str(root / "store"), root)
    made = store.execute(StepSpec("ingest", 1, "dataset", "toy", {"a": 1}), lambda work: work.put("note.txt", b"hello") and {"train": 3})
    return made.artifact.id


def test_runs_and_show(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "runs")
    assert code == 0
    assert "no runs yet" in out
    reference = _artifact(tmp_path / "root")
    code, out, _ = call(capsys, "runs", "--json")
    assert json.loads(out)["runs"][0]["artifacts"] == {"dataset": reference}
    for arguments in (["show", "toy"], ["show", reference], ["show", reference.rpartition("-")[2][:5]]):
        code, out, err = call(capsys, *arguments)
        assert code == 0, err
        assert f"dataset/{reference}" in out
        assert "complete" in out
    code, out, _ = call(capsys, "show", "toy", "--json")
    assert json.loads(out)["artifacts"][0]["metrics"] == {"train": 3}


def test_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    reference = _artifact(tmp_path / "root")
    code, out, _err = call(capsys, "doctor", "--json", "--verify")
    assert code == 0, out
    checks = {row["check"]: row for row in json.loads(out)["checks"]}
    assert checks.keys() == {
        "python",
        "libraries",
        "optional",
        "pins",
        "cores",
        "gpus",
        "disk",
        "root",
        "temporary",
        "proxies",
        "store",
        "tracking",
        "artifacts",
    }
    assert "1 complete, hashes verified" in checks["artifacts"]["found"]
    wanted = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra: [package] for extra, (package, _) in doctor.EXTRAS.items()} == {k: v for k, v in wanted.items() if k != "dev"}
    with mock.patch.dict(doctor.EXTRAS, {"hub": ("no-such-package", "the hub")}):
        assert "for the hub: pip install 'tokenloom[hub]'" in doctor._optional()
    file = tmp_path / "root" / "store" / "dataset" / reference / "note.txt"
    file.write_bytes(b"jello")  # the same size: only the hash tells
    assert call(capsys, "doctor")[0] == 0
    code, out, _ = call(capsys, "doctor", "--verify")
    assert code == 1
    assert "note.txt" in out


def test_doctor_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    from tokenloom.configs.load import schema_text

    assert call(capsys, "doctor", "--schema")[1] == schema_text()


def test_gc_lists_before_it_deletes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    half = tmp_path / "root" / "store" / "dataset" / "half-0123456789ab" / "shards" / "a.parquet"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x")
    reference = _artifact(tmp_path / "root")
    code, out, _err = call(capsys, "gc")
    assert code == 0
    assert "half-0123456789ab" in out
    assert reference not in out
    assert half.exists()
    assert call(capsys, "gc", "--delete")[0] == 0
    assert not half.exists()
    assert call(capsys, "show", reference)[0] == 0


def test_a_port_in_use_is_a_clear_message(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in ("--mlflow-port", "--prefect-port"):
            code, _, err = call(capsys, "ui", option, str(port))
            assert code == 2
            assert f"port {port} of 127.0.0.1 is in use" in err


def test_the_module_is_the_command_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tokenloom.flows.cli.main", "run", "nothing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tokenloom: unknown run 'nothing'")


#: What the help of one command does without, and what the list of all commands does without too.
HEAVY = ("torch", "numpy", "pyarrow", "prefect", "ray", "mlflow", "matplotlib", "sklearn", "datasets")
SLOW = ("pydantic", "rich", "yaml", "tokenloom.configs", "tokenloom.flows.workspace")


@pytest.mark.parametrize(("arguments", "without"), [(["run", "--help"], HEAVY), (["--help"], HEAVY + SLOW), (["--version"], HEAVY + SLOW)])
def test_help_imports_nothing_heavy(arguments: list[str], without: tuple[str, ...]) -> None:
    code = (
        f"import sys; from tokenloom.flows.cli.main import code_of; code_of({arguments});"
        f"heavy = {set(without)} & set(sys.modules); print(sorted(heavy), file=sys.stderr); sys.exit(1 if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0, done.stderr


def test_click_runner_sees_the_group() -> None:
    assert CliRunner().invoke(cli.cli, ["methods", "--json"]).exit_code == 0
