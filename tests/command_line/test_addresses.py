"""Where runs are tracked: one answer for all commands; a login in the address is sent, and never shown."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tokenloom.configs.load import load_cluster, load_run
from tokenloom.configs.schema import ClusterConfig
from tokenloom.flows import prefect_api, results
from tokenloom.flows.cli.main import code_of
from tokenloom.flows.cli.options import workspace
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.tracking import addresses
from tokenloom.tasks.tracking.registry import FINGERPRINT, is_registered, tags_of
from tokenloom.tasks.tracking.runs import KIND, NOTE
from tokenloom.tasks.tracking.tracker import Tracker

WORD = "hunter2"
LOGIN = f"me:{WORD}%2Fx"  # a password with a slash in it
VERSION = {"name": "digits", "version": "3", "tags": [{"key": FINGERPRINT, "value": "0123456789ab"}]}
ANSWERS = {
    "model-versions/search": {"model_versions": [VERSION]},
    "model-versions/get": {"model_version": VERSION},
    "registered-models/get": {"registered_model": {"name": "digits", "aliases": [{"alias": "champion", "version": "3"}]}},
    "registered-models/search": {"registered_models": []},
    "experiments/get-by-name": {"experiment": {"experiment_id": "7", "name": "digits", "lifecycle_stage": "active"}},
}


class Guarded(BaseHTTPRequestHandler):
    """MLflow's interface, as far as it is asked here, behind a login."""

    posted: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        self.posted.append((self._what, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    @property
    def _what(self) -> str:
        return self.path.partition("?")[0].removeprefix("/api/2.0/mlflow/")

    def _answer(self) -> None:
        known = self.headers.get("Authorization") == "Basic " + base64.b64encode(f"me:{WORD}/x".encode()).decode()
        body = json.dumps(ANSWERS.get(self._what, {})).encode() if known else b"who are you?"
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENLOOM_ROOT", str(tmp_path / "root"))
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING_")] + ["TOKENLOOM_STORE"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place() -> Iterator[str]:
    """Host and port of a server that wants a login."""
    Guarded.posted.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host/x", "https://host/x"),
        ("http://me:se@cret@host:5000", "http://host:5000"),
        ("postgresql://me:secret@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql:///mlflow?password=secret", "postgresql:///mlflow"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
    ],
)
def test_addresses_are_shown_without_logins(address: str, shown: str) -> None:
    assert addresses.shown(address) == shown


def test_logins_are_cut_off() -> None:
    assert addresses.split(f"https://{LOGIN}@host:1/a/b") == ("https://host:1/a/b", "me", f"{WORD}/x")
    assert addresses.split("http://host:1/a") == ("http://host:1/a", "", "")
    assert addresses.split("postgresql://me:secret@db/mlflow") == ("postgresql://me:secret@db/mlflow", "", "")  # its driver wants it there
    for wrong in (f"http://me:{WORD}/x@host:1", f"http://me:{WORD}#x@host", f"http://{WORD}@host", f"http://:{WORD}@host", "http://host:0"):
        with pytest.raises(ConfigError, match="tracking address") as refused:
            addresses.split(wrong)
        assert WORD not in str(refused.value)


def test_the_registry_is_asked_with_the_login_of_the_address(place: str) -> None:
    fingerprint = VERSION["tags"][0]["value"]  # type: ignore[index]
    assert is_registered(f"http://{LOGIN}@{place}", "digits", fingerprint) is True
    assert is_registered(f"http://{LOGIN}@{place}", "digits", "another") is False
    assert tags_of(f"http://{LOGIN}@{place}", "digits", "champion") == {FINGERPRINT: fingerprint}
    assert is_registered(f"http://{place}", "digits", fingerprint) is None
    assert is_registered(f"http://me:wrong@{place}", "digits", fingerprint) is None


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_mlflow_gets_the_login_apart_from_the_address(by: str, place: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://{LOGIN}@{place}"
    if by == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    tracker = Tracker(address if by == "argument" else None, root, "digits")
    assert tracker.uri == tracker.shown == f"http://{place}"
    assert tracker.experiment_id() == "7"  # by MLflow's own client
    told = [one for what, one in Guarded.posted if what == "experiments/set-experiment-tag"]
    assert {(one["experiment_id"], one["key"]) for one in told} == {("7", KIND), ("7", NOTE)}
    assert is_registered(tracker.uri, "digits", "0123456789ab") is True
    assert WORD not in os.environ.get("MLFLOW_TRACKING_URI", "")


def test_a_server_that_is_away_is_named_without_its_login(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(f"http://{LOGIN}@127.0.0.1:{prefect_api.free_port()}", root, "digits")
    with caplog.at_level(logging.DEBUG):
        assert tracker.attempt(lambda: tracker.client) is False
    assert "is away" in caplog.text
    assert WORD not in caplog.text


@pytest.mark.parametrize("by", ["environment", "cluster"])
@pytest.mark.parametrize(("login", "code", "says"), [(LOGIN, 0, "answers"), (f"me:{WORD}", 1, "wants a login"), ("", 1, "wants a login")])
def test_doctor_asks_with_the_login_and_does_not_print_it(
    by: str,
    login: str,
    code: int,
    says: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more, address = [], f"http://{login}{'@' if login else ''}{place}"
    if by == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    else:
        (tmp_path / "there.yaml").write_text(f"tracking_uri: {address}")
        more = ["--cluster", str(tmp_path / "there.yaml")]
    assert code_of(["doctor", "--json", *more]) == code
    said = capsys.readouterr()
    (row,) = [row for row in json.loads(said.out)["checks"] if row["check"] == "tracking"]
    assert row["ok"] is (code == 0)
    assert f"http://{place}" in row["found"]
    assert says in row["found"]
    assert WORD not in said.out + said.err


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_no_page_and_no_parameter_of_a_flow_holds_the_login(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenloom.flows import pages

    written: list[Any] = []
    for name in ("markdown", "link", "image", "table"):
        monkeypatch.setattr(pages, f"create_{name}_artifact", lambda *given, **named: written.append((given, named)))
    cluster = ClusterConfig(tracking_uri=f"{scheme}://{LOGIN}@host:1/x")
    work = workspace("digits", str(tmp_path / "root"), None, cluster)
    assert work.tracker.shown == f"{scheme}://host:1/x"
    assert results.where(work, None)["MLflow"] == work.tracker.shown
    pages.results(load_run("smoke_var"), work)
    assert len(written) == (2 if scheme == "http" else 1)
    assert f"{scheme}://host:1/x" in str(written)
    assert WORD not in str(written)
    assert WORD not in work.cluster.model_dump_json()  # what a flow is given, and Prefect shows
    again = workspace("digits", str(tmp_path / "root"), None, work.cluster)  # as the flow opens it
    assert again.tracker.uri == work.tracker.uri
    assert (WORD in again.tracker.uri) is (scheme == "postgresql")


@pytest.mark.parametrize("cluster", [None, "http://127.0.0.1:1"])
@pytest.mark.parametrize("environment", [None, "http://127.0.0.1:2", "sqlite:////tmp/elsewhere.db"])
def test_runs_plan_doctor_and_ui_agree_on_where_tracking_is(
    cluster: str | None, environment: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenloom.flows import planning
    from tokenloom.flows.cli import ui as commands_ui

    here = f"sqlite:///{tmp_path / 'root' / 'mlflow.db'}"
    wanted = cluster or environment or here
    (tmp_path / "there.yaml").write_text(json.dumps({"tracking_uri": cluster}))
    where = ["--cluster", str(tmp_path / "there.yaml"), "--json"]
    if environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    asked: list[str | None] = []
    started: dict[str, Any] = {}

    @contextlib.contextmanager
    def process(command: list[str], _log: str, variables: dict[str, str] | None = None) -> Iterator[None]:
        started[command[2]] = variables
        yield

    def plan(_config: Any, _store: Any, tracking: str | None = None) -> tuple[()]:
        asked.append(tracking)
        return ()

    monkeypatch.setattr(planning, "plan", plan)
    monkeypatch.setattr(prefect_api, "process", process)
    monkeypatch.setattr(prefect_api, "wait_for", lambda *_: None)
    monkeypatch.setattr(commands_ui, "_watch", lambda *_: None)
    assert code_of(["plan", "smoke_var", *where]) == 0
    assert asked == [wanted]
    capsys.readouterr()
    code_of(["doctor", *where])
    (row,) = [row for row in json.loads(capsys.readouterr().out)["checks"] if row["check"] == "tracking"]
    assert row["found"].startswith(wanted)
    assert code_of(["ui", *where]) == 0
    page = json.loads(capsys.readouterr().out)["mlflow"]
    if wanted.startswith("http"):
        assert page == wanted
        assert started.keys() == {"prefect"}
    else:
        assert page.startswith("http://127.0.0.1:")
        assert started["mlflow"] == {"MLFLOW_BACKEND_STORE_URI": wanted}


def test_samples_are_drawn_from_the_registry_of_the_cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def sample_model(_model: str, _store: Any, tracker: Tracker, **_: Any) -> dict[str, Any]:
        asked.append(tracker.uri)
        return {}

    monkeypatch.setattr("tokenloom.tasks.evaluation.sample.sample_model", sample_model)
    (tmp_path / "there.yaml").write_text("tracking_uri: http://mlflow:5000")
    assert code_of(["sample", "models:/digits@champion", "--out", "x.png", "--cluster", "there.yaml"]) == 0
    assert asked == ["http://mlflow:5000"]


@pytest.mark.parametrize(
    ("cluster", "sets", "there", "code", "says"),
    [
        ("laptop", [], 0, 0, "none requested"),
        ("gpu", [], 0, 1, "0 here, the cluster file wants 1"),
        ("gpu", [], 1, 0, "1 here, 1 requested"),
        ("gpu", ["execution.workers=4"], 2, 1, "2 here, the cluster file wants 4"),
        ("gpu", ["gpus_per_worker=0"], 0, 1, "0 here, the cluster file wants 1"),  # device: cuda
        ("ray_cluster", [], 0, 0, "8 of the Ray cluster at auto"),
    ],
)
def test_doctor_counts_gpus(
    cluster: str,
    sets: list[str],
    there: int,
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    made = load_cluster(cluster, [f"cluster.{each}" for each in sets])
    (tmp_path / "there.yaml").write_text(made.model_dump_json())
    assert code_of(["doctor", "--json", "--cluster", "there.yaml"]) == code
    (row,) = [row for row in json.loads(capsys.readouterr().out)["checks"] if row["check"] == "gpus"]
    assert row["found"].startswith(says)
