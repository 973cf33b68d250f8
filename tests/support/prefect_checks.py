"""Checks of a Prefect server through its API."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

LISTS = ("flows", "flow_runs", "deployments", "work_pools", "artifacts", "task_runs")


def post(url: str, body: Any = None) -> tuple[int, Any]:
    data = json.dumps(body or {}).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, json.load(answer)


def check_schedule(api: str) -> None:
    """A deployment with a cron schedule gets its flow runs planned."""
    _, flow = post(f"{api}/flows/", {"name": "toy"})
    schedule = {"schedule": {"cron": "0 3 * * *", "timezone": "UTC"}, "active": True}
    _, deployment = post(f"{api}/deployments/", {"name": "toy", "flow_id": flow["id"], "schedules": [schedule]})
    post(f"{api}/deployments/{deployment['id']}/schedule", {"min_runs": 2})
    _, runs = post(f"{api}/flow_runs/filter")
    assert len(runs) >= 2
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
