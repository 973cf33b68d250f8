"""Runs as jobs of AWS Batch, against a server that speaks its API; and what the nodes of a job do, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from tokenloom.configs.load import load_cluster, load_run
from tokenloom.flows import batch_node, planning
from tokenloom.flows.batch_node import Place
from tokenloom.flows.cli.main import code_of
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.batch import Job, Submission, job_name
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.storage import Storage

STORE = "s3://loom/store"
OPTIONS = ["--store", STORE, "--queue", "loom", "--job-definition", "tokenloom"]
ROLE = "arn:aws:iam::123456789012:role/x"
NODE = {"image": "tokenloom", "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "2048"}]}


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENLOOM_ROOT", str(tmp_path / "own"))
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A queue and two job definitions; jobs stay queued. What is written into the store is kept in ``client.written``."""
    with mock_aws(config={"batch": {"use_docker": False}}):
        boto3.client("iam").create_role(RoleName="x", AssumeRolePolicyDocument="{}")
        made = boto3.client("batch", region_name="us-east-1")
        place = made.create_compute_environment(computeEnvironmentName="loom", type="UNMANAGED", state="ENABLED", serviceRole=ROLE)[
            "computeEnvironmentArn"
        ]
        order = [{"order": 1, "computeEnvironment": place}]
        made.create_job_queue(jobQueueName="loom", state="ENABLED", priority=1, computeEnvironmentOrder=order)
        made.register_job_definition(jobDefinitionName="tokenloom", type="container", containerProperties=NODE)
        made.written = {}
        monkeypatch.setattr(Storage, "write", lambda self, path, data: made.written.__setitem__(self.uri(path), data))
        yield made


def live(client: Any, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    """The stand-in ends each job at once: let it say that jobs have this status."""
    from moto.batch.models import batch_backends

    for backend in batch_backends["123456789012"].values():
        for job in backend._jobs.values():
            job.status = status


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert code_of(["submit", *arguments, *OPTIONS, "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_a_run_becomes_a_job(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = say(capsys, "smoke_var", "--set", "generator.args.depth=1")
    config = load_run("smoke_var", ["generator.args.depth=1"])
    assert made["name"] == f"smoke-var-{planning.fingerprint(config)}"
    assert made["submitted"] is True
    (job,) = client.describe_jobs(jobs=[made["job"]])["jobs"]
    assert job["jobName"] == made["name"]
    *command, address = job["container"]["command"]
    assert command == ["tokenloom", "node"]  # the image has no entry point
    written = json.loads(client.written[address])
    assert written["run"] == config.model_dump(mode="json", by_alias=True)
    assert written["store"] == STORE
    assert written["cluster"]["address"] == "local"


@pytest.mark.parametrize("status", ["RUNNABLE", "RUNNING"])
def test_a_job_that_is_not_over_is_found_and_not_doubled(
    status: str, client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = say(capsys, "smoke_var")
    live(client, monkeypatch, status)
    again = say(capsys, "smoke_var")
    assert again == {"job": first["job"], "name": first["name"], "status": status, "submitted": False}
    other = say(capsys, "smoke_var", "--set", "generator.args.depth=1")
    assert other["submitted"] is True
    assert other["name"] != first["name"]


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_a_job_that_is_over_does_not_stand_in_the_way(
    status: str, client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = say(capsys, "smoke_var")
    live(client, monkeypatch, status)
    again = say(capsys, "smoke_var")
    assert again["submitted"] is True
    assert again["job"] != first["job"]


def test_several_nodes_are_one_multi_node_job_that_aws_would_take(client: Any) -> None:
    from botocore.validate import validate_parameters

    request = Job("a-b", "loom", "tokenloom", ("tokenloom", "node", "s3://x/y"), 3, {"PREFECT_API_URL": "http://p/api"}).request()
    shape = client.meta.service_model.operation_model("SubmitJob").input_shape
    validate_parameters(request, shape)
    with pytest.raises(Exception, match="numNode"):
        validate_parameters({**request, "nodeOverrides": {"numNode": 3}}, shape)
    (override,) = request["nodeOverrides"]["nodePropertyOverrides"]
    assert request["nodeOverrides"]["numNodes"] == 3
    assert override["targetNodes"] == "0:"
    assert override["containerOverrides"]["command"] == ["tokenloom", "node", "s3://x/y"]
    assert override["containerOverrides"]["environment"] == [{"name": "PREFECT_API_URL", "value": "http://p/api"}]
    assert "containerOverrides" not in request


def test_a_preempted_job_comes_back_and_a_failed_one_does_not(client: Any) -> None:
    from tokenloom.flows.cli.options import EXIT_AGAIN

    strategy = Job("a", "q", "d", ()).request()["retryStrategy"]
    assert strategy["evaluateOnExit"][0] == {"onExitCode": str(EXIT_AGAIN), "action": "RETRY"}
    assert strategy["evaluateOnExit"][-1] == {"onReason": "*", "action": "EXIT"}  # the first match decides
    assert len(strategy["evaluateOnExit"]) <= 5  # AWS takes no more


def test_a_dry_run_prints_the_request_and_touches_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3, "client", lambda *_, **__: pytest.fail("AWS was asked"))
    monkeypatch.setattr(Storage, "write", lambda *_: pytest.fail("something was written"))
    assert code_of(["submit", "smoke_var", *OPTIONS, "--nodes", "2", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["request"]["nodeOverrides"]["numNodes"] == 2
    assert shown["submission"]["uri"].startswith(f"{STORE}/submissions/smoke-var-")
    assert shown["submission"]["run"]["name"] == "smoke-var"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--store", "here"], "here': a job's machine is not this one"),
        (["--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--nodes", "5"], "--nodes 5: cluster.execution.workers=2 leave some of them idle"),
        (["--set", "cluster.address=ray://x:1"], "cluster.address='ray://x:1': the job makes its own Ray cluster"),
        (["--set", "cluster.tracking_uri=http://me:secret@m"], "cluster.tracking_uri: holds a password"),
        (["--set", "generator.recipe=nonsense"], "unknown generator recipe 'nonsense'"),
        (["--set", "tokenizer.args.codes=1"], "at least 2 codes"),
        (["--set", "tokenizer={use: digits-var}", "--set", "generator.recipe=nonsense"], "unknown generator recipe 'nonsense'"),
        (["--set", "register.gate=nonsense"], "register.gate: no metric is named 'nonsense'"),
        (["--set", "data.source=digitz"], "data.source 'digitz' is unknown"),
        (["--queue", "nowhere"], "queue 'nowhere'"),
        (["--job-definition", "nothing"], "job definition 'nothing'"),
    ],
)
def test_what_cannot_work_is_said(more: list[str], message: str, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["submit", "smoke_var", *OPTIONS, *more]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "secret" not in said.replace("as a secret", "")
    assert not client.written or "--job-definition" in more  # AWS alone knows that one


@pytest.mark.parametrize("sets", [["tokenizer={use: digits-var}"], ["data.source=folder:/on/the/machine/of/the/job"]])
def test_what_only_the_job_can_see_is_left_to_it(sets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["submit", "smoke_var", *OPTIONS, "--dry-run", *(word for each in sets for word in ("--set", each))]) == 0
    assert json.loads(capsys.readouterr().out)["submission"]["run"]["name"] == "smoke-var"


def test_addresses_go_along_and_passwords_do_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://me:word@prefect/api")
    assert code_of(["submit", "smoke_var", *OPTIONS, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["request"]["containerOverrides"]["environment"] == [
        {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"}
    ]
    assert "word" not in shown


def test_names_that_aws_takes() -> None:
    assert job_name("my.run_1", "0123456789ab") == "my-run_1-0123456789ab"
    assert len(job_name("x" * 63, "0" * 12)) <= 128


# --- the nodes ------------------------------------------------------------------------------------------------


def submission(store: Path, name: str = "smoke_var", *sets: str) -> Submission:
    made = Submission(
        load_run(name, sets).model_dump(mode="json", by_alias=True), load_cluster("laptop").model_dump(mode="json"), str(store)
    )
    made.write()
    return made


def test_a_submission_is_named_by_its_content(tmp_path: Path) -> None:
    one, same, other = submission(tmp_path), submission(tmp_path), submission(tmp_path, "smoke_var", "sample.top_k=4")
    assert one.uri == same.uri != other.uri
    assert Submission.read(one.uri) == one
    with pytest.raises(ConfigError, match=r"gone\.json: no submission"):
        Submission.read(str(tmp_path / "submissions" / "gone.json"))
    (tmp_path / "submissions" / "odd.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"odd\.json: no submission"):
        Submission.read(str(tmp_path / "submissions" / "odd.json"))


def test_which_node_this_is() -> None:
    names = {"NODE_INDEX": "2", "MAIN_NODE_INDEX": "0", "NUM_NODES": "3", "MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.7"}
    names |= {"ID": "4f-1#2", "ATTEMPT": "2"}
    place = Place.of({f"AWS_BATCH_JOB_{name}": value for name, value in names.items()} | {"HOME": "/"})
    assert place == Place(2, 0, 3, "10.0.0.7", "4f-1", "2")
    assert not place.first
    assert place.meeting == "submissions/meetings/4f-1-2.json"
    assert Place.of({}) == Place()
    assert Place.of({}).first
    with pytest.raises(ConfigError, match=r"AWS_BATCH_JOB_\*.*many"):
        Place.of({"AWS_BATCH_JOB_NUM_NODES": "many"})


def test_one_node_is_a_plain_run_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        asked.append([*arguments, Path(arguments[1]).read_text()])
        return 75

    monkeypatch.setattr("tokenloom.flows.cli.main.code_of", run)
    given = submission(tmp_path / "store", "smoke_var", "sample.top_k=4")
    assert batch_node.work(given.uri, tmp_path / "root") == 75  # Batch brings it back
    assert load_run(str(_file(tmp_path, asked[0][-1]))) == load_run("smoke_var", ["sample.top_k=4"])
    assert asked[0][asked[0].index("--store") + 1] == str(tmp_path / "store")
    assert "--no-prefect" in asked[0]


def _file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_node_whose_main_node_stays_away_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_node, "JOIN_TIMEOUT", 0.1)
    monkeypatch.setenv("AWS_BATCH_JOB_NUM_NODES", "2")
    monkeypatch.setenv("AWS_BATCH_JOB_NODE_INDEX", "1")
    with pytest.raises(StepError, match="the main node has not published its address after 0 s"):
        batch_node.work(submission(tmp_path).uri, tmp_path / "root")


AT_WORK = """
import json, sys
from pathlib import Path
from tokenloom.flows import batch_node

def look(submission, root, cluster, options):
    import ray
    at = {"nodes": sum(n["Alive"] for n in ray.nodes()), "address": cluster["address"]}
    Path(root, "seen.json").write_text(json.dumps(at))
    return 75

batch_node._run = look
sys.exit(batch_node.work(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.mark.long
@pytest.mark.ray
def test_two_nodes_form_a_cluster_and_end_together(tmp_path: Path) -> None:
    """Two processes with the variables of a job: a real head, a real second raylet, and no word of the token in any file."""
    given = submission(tmp_path / "store")
    variables = {"NUM_NODES": "2", "MAIN_NODE_INDEX": "0", "MAIN_NODE_PRIVATE_IPV4_ADDRESS": "127.0.0.1", "ATTEMPT": "1"}
    common = os.environ | {f"AWS_BATCH_JOB_{name}": value for name, value in variables.items()}
    common.pop("RAY_AUTH_MODE", None)
    codes: dict[int, int] = {}
    errors: dict[int, str] = {}

    def node(index: int) -> None:
        root = tmp_path / f"node{index}"
        root.mkdir()
        environment = common | {"AWS_BATCH_JOB_NODE_INDEX": str(index), "AWS_BATCH_JOB_ID": f"j#{index}"}
        command = [sys.executable, "-c", AT_WORK, given.uri, str(root)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
        codes[index], errors[index] = done.returncode, done.stderr[-2000:]

    threads = [threading.Thread(target=node, args=(index,)) for index in (1, 0)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert codes == {0: 75, 1: 0}, errors
    seen = json.loads((tmp_path / "node0" / "seen.json").read_text())
    assert seen["nodes"] == 2
    assert seen["address"].startswith("127.0.0.1:")
    assert not list((tmp_path / "store" / "submissions" / "meetings").glob("*"))  # the token went with it
