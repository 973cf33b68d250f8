"""MLflow and Prefect on PostgreSQL, as ``infra/compose.yaml`` sets them up: a real server on loopback, if one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokenloom.flows import prefect_api
from tokenloom.tasks.tracking.registry import is_registered, tags_of
from tokenloom.tasks.tracking.tracker import Tracker

INFRA = Path(__file__).parents[2] / "infra"
WORD = "a-word"
pytestmark = [pytest.mark.long, pytest.mark.slow]


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that has run ``infra/postgres.sql``."""

    port: int

    def url(self, driver: str, database: str, word: bool = True) -> str:
        return f"postgresql{driver}://tokenloom{f':{WORD}' if word else ''}@127.0.0.1:{self.port}/{database}"

    def rows(self, database: str, query: str) -> list[Any]:
        import psycopg

        with psycopg.connect(self.url("", database)) as connection:
            return connection.execute(query).fetchall()


def _nobody() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    account = pwd.getpwnam("nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    import psycopg

    programs = {name: shutil.which(name) for name in ("initdb", "postgres")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"PostgreSQL is not installed: no {' and no '.join(missing)} on the path")
    folder = Path(tempfile.mkdtemp(prefix="tl-pg-", dir="/tmp"))
    try:
        who = _nobody()
        (folder / "word").write_text(WORD)
        for path in (folder, folder / "word"):
            if who:
                os.chown(path, who["user"], who["group"])
        data, port = folder / "data", prefect_api.free_port()
        words = [
            "--username=tokenloom",
            f"--pwfile={folder / 'word'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]
        made = subprocess.run([programs["initdb"], "--pgdata", data, *words], capture_output=True, text=True, cwd=folder, **who)
        assert made.returncode == 0, made.stderr
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(folder / "log.txt", "wb") as log:
            running = subprocess.Popen([programs["postgres"], "-D", data, *options], stdout=log, stderr=log, cwd=folder, **who)
        try:
            server = Server(port)
            _until_it_answers(server, running, folder / "log.txt")
            with psycopg.connect(server.url("", "postgres"), autocommit=True) as connection:
                text = "".join(line for line in (INFRA / "postgres.sql").read_text().splitlines() if not line.startswith("--"))
                for statement in filter(None, text.split(";")):
                    connection.execute(statement)
            yield server
        finally:
            running.terminate()
            running.wait(30)
    finally:
        shutil.rmtree(folder)


def _until_it_answers(server: Server, running: subprocess.Popen[bytes], log: Path) -> None:
    import time

    import psycopg

    for _ in range(200):
        assert running.poll() is None, log.read_text()
        try:
            psycopg.connect(server.url("", "postgres")).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_a_password_is_asked_for(postgres: Server) -> None:
    import psycopg

    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.url("", "mlflow").replace(WORD, "another"))


def test_mlflow_for_several_users(postgres: Server, tmp_path: Path) -> None:
    """Two people's runs at once, and a champion that planning finds, all in PostgreSQL."""
    port, log = prefect_api.free_port(), str(tmp_path / "mlflow.log")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", postgres.url("+psycopg", "mlflow", word=False), "--artifacts-destination", str(tmp_path / "files")]
    uri = f"http://127.0.0.1:{port}"
    environment = {"PGPASSWORD": WORD, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with prefect_api.process(command, log, environment) as server:
        prefect_api.wait_for(f"{uri}/health", server, "MLflow", log)
        assert tags_of(uri, "toy", "champion") is None
        people = [Tracker(uri, tmp_path / name, "toy") for name in ("ada", "ben")]
        people[0].client.create_experiment("toy")

        def log_some(person: Tracker, value: float) -> None:
            (experiment,) = person.client.search_experiments(filter_string="name = 'toy'")
            run = person.client.create_run(experiment.experiment_id).info.run_id
            for step in range(20):
                person.client.log_metric(run, "loss", value, step=step)

        threads = [threading.Thread(target=log_some, args=(person, float(i))) for i, person in enumerate(people)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        client = people[1].client
        client.create_registered_model("toy")
        run = client.search_runs([client.get_experiment_by_name("toy").experiment_id])[0].info
        tags = {"tokenloom.fingerprint": "abc", "tokenloom.generator": "toy-1"}
        client.create_model_version("toy", f"{run.artifact_uri}/model", run_id=run.run_id, tags=tags)
        assert tags_of(uri, "toy", "champion") == {}
        client.set_registered_model_alias("toy", "champion", "1")
        assert tags_of(uri, "toy", "champion") == tags
        assert is_registered(uri, "toy", "abc") is True
        assert is_registered(uri, "toy", "xyz") is False
    assert postgres.rows("mlflow", "select value, count(*) from metrics group by value order by value") == [(0.0, 20), (1.0, 20)]
    assert postgres.rows("mlflow", "select alias, version from registered_model_aliases") == [("champion", 1)]
    assert WORD not in " ".join(command)


def test_prefect_plans_runs_in_postgres(postgres: Server, tmp_path: Path) -> None:
    from prefect_checks import LISTS, check_schedule, post

    port, log = prefect_api.free_port(), str(tmp_path / "prefect.log")
    environment = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_DATABASE_CONNECTION_URL": postgres.url("+asyncpg", "prefect"),
    }
    api = f"http://127.0.0.1:{port}/api"
    with prefect_api.process(prefect_api.server_command(port), log, environment) as server:
        prefect_api.wait_for(f"{api}/health", server, "Prefect server", log)
        for name in LISTS:
            assert post(f"{api}/{name}/filter")[0] == 200, name
        check_schedule(api)
    assert postgres.rows("prefect", "select name from deployment") == [("toy",)]
    assert postgres.rows("prefect", "select count(*) from flow_run")[0][0] >= 2
    assert not list((tmp_path / "prefect").rglob("*.db"))
