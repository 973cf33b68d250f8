"""Guards the pin of fastapi: with 0.151 or newer Prefect's server does not start, or its list endpoints answer 422."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from flows import prefect_api
from tasks.errors import StepError

LISTS = ("flows", "flow_runs", "deployments", "work_pools", "artifacts", "task_runs")


def _post(url: str) -> tuple[int, Any]:
    request = urllib.request.Request(url, data=b"{}", headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, json.load(answer)


@pytest.mark.slow
def test_the_api_starts_and_its_lists_answer(tmp_path: Path) -> None:
    port, log = prefect_api.free_port(), tmp_path / "server.log"
    environment = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with prefect_api.process(prefect_api.server_command(port), str(log), environment) as server:
        prefect_api.wait_for(f"http://127.0.0.1:{port}/api/health", server, "Prefect server", str(log))
        for name in LISTS:
            assert _post(f"http://127.0.0.1:{port}/api/{name}/filter") == (200, []), name
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)  # nothing is left behind


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    import sys

    log = str(tmp_path / "server.log")
    with (
        prefect_api.process([sys.executable, "-c", "print('no'); raise SystemExit(3)"], log) as server,
        pytest.raises(StepError, match=r"ended with code 3; see .*server\.log"),
    ):
        prefect_api.wait_for("http://127.0.0.1:9/", server, "Prefect server", log)
    assert Path(log).read_text().strip() == "no"


def test_an_api_that_cannot_be_used_costs_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.client.orchestration

    def broken(**_: Any) -> Any:
        raise RuntimeError("Failed to reach API\nand more")

    monkeypatch.setattr(prefect.client.orchestration, "get_client", broken)
    said: list[str] = []
    assert prefect_api.reachable(said.append) is False
    assert said == ["Prefect's API cannot be used (Failed to reach API); the run goes on without it (--no-prefect)."]
