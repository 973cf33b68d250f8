"""What ``infra/`` says fits what the code offers: commands, options, files, flows and names. Nothing here is run in a cloud."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tokenloom.configs.load import build, load_run
from tokenloom.configs.schema import ClusterConfig
from tokenloom.flows import prefect_api
from tokenloom.flows.cli.main import cli, code_of

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
TERRAFORM = INFRA / "terraform"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((INFRA / name).read_text()))


def check_command(words: list[str]) -> None:
    """A ``tokenloom`` command line whose options exist and whose run file is there."""
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, words
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert {word for word in words if word.startswith("--")} <= options, words
    if words[0] == "run":
        load_run(words[1])


def test_the_ray_job_runs_a_command_that_there_is() -> None:
    config, job = documents("kuberay/rayjob.yaml")
    words = job["spec"]["entrypoint"].split()
    assert words[0] == "tokenloom"
    check_command(words[1:])
    cluster = build(ClusterConfig, yaml.safe_load(config["data"]["cluster.yaml"]), (), "cluster.yaml")
    assert cluster.address == "auto"
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert sum(group.get("replicas", 0) for group in groups) == cluster.execution.workers
    for group in groups:
        pod = group["template"]["spec"]
        assert words[words.index("--cluster") + 1] == "/etc/tokenloom/cluster.yaml"
        assert {"name": "config", "mountPath": "/etc/tokenloom", "readOnly": True} in pod["containers"][0]["volumeMounts"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}


def test_the_versions_are_those_that_are_tested() -> None:
    pins = dict(re.findall(r"^([a-z0-9_.-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.M | re.I))
    assert documents("kuberay/rayjob.yaml")[1]["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    tags = re.findall(r"tokenloom:(\d[\w.]*)", "".join(path.read_text() for path in INFRA.rglob("*.yaml")))
    assert len(tags) >= 4
    assert set(tags) == {version[1]}


def test_deployments_name_flows_and_runs_that_there_are() -> None:
    (document,) = documents("prefect.yaml")
    assert {d["work_pool"]["name"] for d in document["deployments"]} == {"local", "kubernetes"}
    for deployment in document["deployments"]:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert flow.name in prefect_api.FLOWS
        parameters = deployment["parameters"]
        flow.validate_parameters(parameters)
        run = load_run(parameters["run"], parameters["sets"])
        assert run.tokenizer.pinned
        assert run.generator is not None
        assert run.generator.warm_start == "champion"
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        every = deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
        assert int(every) == prefect_api.HEARTBEAT_SECONDS


def test_the_automation_judges_every_flow_that_is_scheduled() -> None:
    from tokenloom.flows import pipeline

    assert {pipeline.pipeline.name, pipeline.retrain.name} == set(prefect_api.FLOWS)


def test_servers_listen_on_loopback_and_passwords_are_files() -> None:
    (compose,) = documents("compose.yaml")
    services = compose["services"]
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "postgres-password" in service["secrets"]
        assert not re.search(r"password\s*[:=]\s*\w", str(service.get("environment", "")), re.I)
    assert "ports" not in services["postgres"]
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}  # MLflow itself reads and writes its artifacts
    assert {name for name, value in services["mlflow"]["environment"].items() if value == f"${{{name}:-}}"} == keys
    assert set(compose["secrets"]) == {secret for service in services.values() for secret in service["secrets"]}
    databases = set(re.findall(r"^CREATE DATABASE (\w+);", (INFRA / "postgres.sql").read_text(), re.M))
    assert databases == set(re.findall(r"@postgres:5432/(\w+)", str(compose)))
    for secret in compose["secrets"].values():
        ignored = subprocess.run(["git", "check-ignore", "-q", INFRA / secret["file"]], cwd=ROOT)
        assert ignored.returncode == 0, secret


def test_servers_write_into_folders_that_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings.models.server.ui import ServerUISettings

    (compose,) = documents("compose.yaml")
    service = compose["services"]["prefect"]
    assert service["read_only"] is True
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    pages = Path(ServerUISettings().static_directory or "/the/package")  # to which Prefect copies its pages when it starts
    for folder in (pages, Path(service["environment"]["PREFECT_HOME"])):
        assert any(folder.is_relative_to(place) for place in service["tmpfs"]), folder


def test_the_image_holds_what_is_copied_and_starts_the_command() -> None:
    text = (INFRA / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / source).exists() for source in sources.split())
    # Prefect's Kubernetes worker puts its own command into the container's arguments: an entry point would swallow it.
    assert not re.search(r"^ENTRYPOINT", text, re.M)
    assert 'CMD ["tokenloom", "--help"]' in text
    assert re.search(r"^USER loom$", text, re.M)


def test_jobs_are_submitted_as_the_definitions_expect() -> None:
    text = "".join(path.read_text() for path in sorted(TERRAFORM.glob("*.tf")))
    assert re.search(r"^ +command += \[\"tokenloom\", ", text, re.M)  # the image has no entry point
    assert cli.get_command(click.Context(cli), "node") is not None
    asked = set(re.findall(r"\bvar\.(\w+)", text))
    assert asked == set(re.findall(r'^variable "(\w+)"', text, re.M))
    made = set(re.findall(r'^resource "(\w+)" "(\w+)"', text, re.M))
    for kind, name in re.findall(r"(?<![\w.])(aws_\w+)\.(\w+)", re.sub(r"#.*", "", text)):
        assert (kind, name) in made, f"{kind}.{name}"
    # The job's own role reaches the store and nothing else.
    job = re.search(r'data "aws_iam_policy_document" "job" \{(.*?)^\}', text, re.S | re.M)
    assert job is not None
    assert set(re.findall(r'"(\w+):\w+"', job[1])) == {"s3"}
    assert '"*"' not in job[1]


def submissions() -> list[str]:
    """Every command that submits a run and is shown somewhere, with what Terraform puts into it and without an ellipsis."""
    from tokenloom.flows.cli.cloud import submit

    terraform = (TERRAFORM / "outputs.tf").read_text().replace("${var.nodes}", "2")
    shown = re.findall(r'"tokenloom (submit [^\n]*)"\n', re.sub(r"\$\{.*?\}", "x", terraform))
    shown += re.findall(r"`tokenloom (submit [^`]+)`", (ROOT / "docs" / "operate.md").read_text())
    shown += re.findall(r"tokenloom (submit .+)", (submit.epilog or "").replace("\\\n", " "))
    return [re.sub(r"RUN|my_run.yaml", "smoke_var", line).replace("…", "x") for line in shown]


@pytest.mark.parametrize("line", submissions())
def test_commands_that_submit_would_be_taken(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENLOOM_ROOT", str(tmp_path))
    monkeypatch.delenv("TOKENLOOM_STORE", raising=False)
    assert code_of([*line.split(), *([] if "--dry-run" in line else ["--dry-run"])]) == 0
    shown = json.loads(capsys.readouterr().out)
    cluster = build(ClusterConfig, shown["submission"]["cluster"], (), "cluster")
    nodes = shown["request"].get("nodeOverrides", {"numNodes": 1})["numNodes"]
    # One GPU each: more would wait for machines that never come.
    assert max(cluster.execution.workers, cluster.extract_actors) * cluster.gpus_per_worker <= nodes
    assert nodes == 1 or cluster.execution.workers == nodes


def test_commands_of_terraform_are_there() -> None:
    lines = submissions()
    assert len(lines) >= 6
    assert sum("--cluster gpu" in line for line in lines) == 1
    assert len([line for line in lines if "--nodes" in line]) == 3


def test_terraform_takes_the_files(tmp_path: Path) -> None:
    """``fmt`` reads every file; ``validate`` needs the provider of AWS, which has to be downloaded or mirrored."""
    terraform = shutil.which("terraform")
    if terraform is None:
        pytest.skip("terraform is not installed")
    formatted = subprocess.run([terraform, "fmt", "-check", "-diff", TERRAFORM], capture_output=True, text=True)
    assert formatted.returncode == 0, formatted.stdout + formatted.stderr
    there = shutil.copytree(TERRAFORM, tmp_path / "terraform", ignore=shutil.ignore_patterns(".terraform*"))
    ready = subprocess.run([terraform, "init", "-backend=false", "-input=false"], cwd=there, capture_output=True, text=True, timeout=120)
    if ready.returncode != 0:
        pytest.skip("terraform validate: the provider hashicorp/aws is neither mirrored nor downloadable here")
    valid = subprocess.run([terraform, "validate"], cwd=there, capture_output=True, text=True, timeout=120)
    assert valid.returncode == 0, valid.stdout + valid.stderr


def test_the_page_shows_commands_that_there_are_and_its_picture_is_drawn_by_its_code() -> None:
    import runpy

    page = (ROOT / "docs" / "operate.md").read_text()
    shown = re.findall(r"^tokenloom (.+)$", page, re.M) + re.findall(r"`tokenloom ((?:run|submit|serve) [^`]+)`", page)
    assert len(shown) >= 4
    for line in shown:
        check_command([word for word in line.split() if not word.startswith('"')])
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
    drawn = runpy.run_path(str(ROOT / "docs" / "operate_picture.py"))["picture"]()
    assert drawn == (ROOT / "docs" / "pictures" / "operate.svg").read_text()
