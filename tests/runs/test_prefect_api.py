"""Guards two pins: with fastapi 0.151 or newer Prefect's server does not start or its lists answer 422, and with
SQLAlchemy 2.1 or newer its scheduler fails, so that ``tokenloom serve`` would never run anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from prefect_checks import LISTS, check_schedule, post

from tokenloom.flows import prefect_api
from tokenloom.tasks.runtime.errors import StepError


def _check_automation(api: str, home: Path) -> None:
    """The automation for runs without a heartbeat is made once, and judges our flows alone."""
    import subprocess
    import sys

    twice = "from tokenloom.flows.prefect_api import watch_heartbeats as watch; print(watch(), watch())"
    environment = os.environ | {"PREFECT_API_URL": api, "PREFECT_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", twice], env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["True", "False"], done.stderr[-2000:]
    _, (automation,) = post(f"{api}/automations/filter")
    assert automation["name"] == prefect_api.HEARTBEAT
    assert automation["enabled"] is True
    assert automation["trigger"]["within"] == prefect_api.MISSED * prefect_api.HEARTBEAT_SECONDS
    assert automation["trigger"]["match_related"]["prefect.resource.name"] == list(prefect_api.FLOWS)
    assert [action["state"] for action in automation["actions"]] == ["CRASHED"]


@pytest.mark.long
@pytest.mark.slow
def test_the_api_starts_and_its_lists_answer(tmp_path: Path) -> None:
    port, log = prefect_api.free_port(), tmp_path / "server.log"
    environment = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with prefect_api.process(prefect_api.server_command(port), str(log), environment) as server:
        prefect_api.wait_for(f"http://127.0.0.1:{port}/api/health", server, "Prefect server", str(log))
        for name in LISTS:
            assert post(f"http://127.0.0.1:{port}/api/{name}/filter") == (200, []), name
        check_schedule(f"http://127.0.0.1:{port}/api")
        _check_automation(f"http://127.0.0.1:{port}/api", tmp_path / "client")
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


def test_an_api_that_cannot_be_used_costs_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import prefect.client.orchestration

    def broken(**_: Any) -> Any:
        raise RuntimeError("Failed to reach API\nand more")

    monkeypatch.setattr(prefect.client.orchestration, "get_client", broken)
    said: list[str] = []
    assert prefect_api.reachable(said.append, tmp_path) is False
    assert said == ["Prefect's API cannot be used (Failed to reach API); the run goes on without it (--no-prefect)."]
