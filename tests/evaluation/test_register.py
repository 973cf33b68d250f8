"""Registration: a version that can be served, aliases by the gate, nothing twice, and a lost database filled again."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from databases import empty_database
from stand_ins import FEW, copy_store, draw_here, judge_inline, world, write_generator

from tokenloom.configs.schema import RegisterConfig
from tokenloom.flows.cli.main import code_of
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation import gate
from tokenloom.tasks.evaluation.sample import sample_model
from tokenloom.tasks.modalities.image.served import draw
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.serving import bundle
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store
from tokenloom.tasks.tracking import champion
from tokenloom.tasks.tracking.register import lost, plan_register, register
from tokenloom.tasks.tracking.registry import Registry
from tokenloom.tasks.tracking.tracker import Tracker


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A copy of the evaluated store in which nothing is registered."""
    return copy_store(world().store, tmp_path, "registration")


def new_tracker(store: Store, name: str = "mlflow.db") -> Tracker:
    store.root.mkdir(parents=True, exist_ok=True)
    (store.root / name).write_bytes(empty_database())
    return Tracker(f"sqlite:///{store.root / name}", store.root, "digits-var")


@pytest.fixture
def tracker(store: Store) -> Tracker:
    return new_tracker(store)


def plan(store: Store, evaluation: Artifact, **config) -> StepSpec:
    inputs = store.record(evaluation).inputs
    return plan_register("digits-var", RegisterConfig(**config), evaluation, {role: inputs[role] for role in ("generator", "tokenizer")})


def again(store: Store, name: str, seed: int, numbers: dict[str, float]) -> Artifact:
    """Another generator's evaluation whose numbers are these."""
    inputs = store.record(world().var).inputs
    codec, data, judge = (inputs[r] for r in ("tokenizer", "dataset", "features"))
    made = judge_inline(store, name, write_generator(store, data, codec, name, seed=seed), codec, data, judge)
    record = store.record(made)
    store.storage.write(f"{made.folder}/record.json", replace(record, metrics={**record.metrics, **numbers}).to_bytes())
    return made


def test_a_version_is_made_once_with_card_tags_and_aliases(store, tracker):
    step = plan(store, world().var, floor={"precision": 0.0})
    first, second = register(step, store, tracker), register(step, store, tracker)
    assert (first.status, second.status) == ("ran", "cached")
    assert first.metrics | {"version": 1, "promoted": True, "aliases": ["challenger", "champion"]} == first.metrics
    versions = tracker.client.search_model_versions("name='digits-var'")
    assert len(versions) == 1
    registry = Registry(tracker)
    champion, challenger = registry.alias("digits-var", "champion"), registry.alias("digits-var", "challenger")
    assert champion == challenger
    assert champion.tags["tokenloom.fingerprint"] == step.fingerprint
    assert champion.tags["tokenloom.generator"] == step.inputs["generator"].id
    assert champion.tags["tokenloom.dataset"] == world().dataset.id
    card = (store.fetch(first.artifact) / "README.md").read_text()
    assert versions[0].description == card
    for part in (
        step.inputs["generator"].id,
        world().dataset.id,
        "## Limits",
        "arXiv 2404.02905",
        "`digits`, 300 train + 100 validation images, fitted by `pad`",
        "mlflow models serve",
        "| precision |",
    ):
        assert part in card


def test_the_logged_model_has_interface_example_and_pinned_requirements(store, tracker):
    import yaml

    register(plan(store, world().var), store, tracker)
    folder = Registry(tracker).download("models:/digits-var@champion")
    model = yaml.safe_load((folder / "MLmodel").read_text())
    assert json.loads(model["signature"]["inputs"]) == [{"type": "long", "name": "class_id", "required": True}]
    assert json.loads(model["signature"]["outputs"]) == [{"type": "string", "name": "png_base64", "required": True}]
    params = {p["name"]: (p["type"], p["default"]) for p in json.loads(model["signature"]["params"])}
    assert params.items() >= {"seed": ("long", 0), "guidance": ("double", 1.5), "temperature": ("double", 1.0)}.items()
    assert params.items() >= {"steps": ("long", 0), "top_k": ("long", 900), "top_p": ("double", 0.96), "order": ("string", "")}.items()
    assert (folder / "input_example.json").is_file()
    required = (folder / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in required} == {"mlflow", "torch", "numpy", "pandas", "safetensors", "pillow"}
    assert all("==" in line and "+" not in line for line in required)
    assert (folder / "code" / "tokenloom" / "models" / "core" / "protocols.py").is_file()
    assert not list(folder.rglob("*.pkl"))
    assert (folder / "artifacts" / "bundle" / "samples.png").is_file()


def test_models_of_a_moved_root_are_found_and_new_ones_are_made_in_it(store, tracker, tmp_path):
    register(plan(store, world().var), store, tracker)
    root = tmp_path / "co#pied 20%"
    store.root.rename(root)
    shutil.rmtree(root / "cache", ignore_errors=True)
    moved = Tracker(None, root, "digits-var")
    assert (Registry(moved).download("models:/digits-var@champion") / "MLmodel").is_file()
    run = moved.client.create_run(moved.experiment_id())
    moved.client.log_text(run.info.run_id, "here", "note.txt")
    assert (root / "mlruns" / "digits-var" / run.info.run_id / "artifacts" / "note.txt").is_file()
    assert not store.root.exists()


def test_registered_model_draws_what_the_artifact_draws(store, tracker, tmp_path):
    register(plan(store, world().var), store, tracker)
    for name, reference in (("a", "models:/digits-var@champion"), ("b", "models:/digits-var/1"), ("c", world().var.id)):
        sample_model(reference, store, tracker, total=12, seed=4, out=tmp_path / f"{name}.npz")
    images = [np.load(tmp_path / f"{name}.npz")["images"] for name in "abc"]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


@pytest.mark.parametrize("reference", ["models:/digits-var@nobody", "models:/nobody@champion", "models:/digits-var/99"])
def test_unknown_versions_are_one_clear_error(store, tracker, tmp_path, reference):
    register(plan(store, world().var), store, tracker)
    with pytest.raises(ConfigError, match=r"not found|does not exist|No "):
        sample_model(reference, store, tracker, out=tmp_path / "x.npz")


def test_a_worse_challenger_does_not_become_champion_and_a_better_one_does(store, tracker):
    fd = store.record(world().var).metrics["fd_classifier"]
    register(plan(store, world().var), store, tracker)
    worse = register(plan(store, again(store, "worse", 5, {"fd_classifier": fd + 1})), store, tracker)
    registry = Registry(tracker)
    assert worse.metrics["promoted"] is False
    assert "fd_classifier is" in worse.metrics["reason"]
    assert (registry.alias("digits-var", "champion").number, registry.alias("digits-var", "challenger").number) == ("1", "2")
    better = register(plan(store, again(store, "better", 6, {"fd_classifier": fd - 1})), store, tracker)
    assert better.metrics["promoted"] is True
    assert (registry.alias("digits-var", "champion").number, registry.alias("digits-var", "challenger").number) == ("3", "3")


def test_the_first_champion_must_hold_the_floors(store, tracker):
    outcome = register(plan(store, world().var, floor={"recognition": 0.9, "precision": 0.0}), store, tracker)
    assert outcome.metrics["aliases"] == ["challenger"]
    assert "recognition is" in outcome.metrics["reason"]
    assert "at least 0.9" in outcome.metrics["reason"]
    assert Registry(tracker).alias("digits-var", "champion") is None


def test_a_champion_of_another_protocol_is_judged_again_under_this_one(store, tracker):
    register(plan(store, world().var), store, tracker)
    inputs = store.record(world().raster).inputs
    strict = FEW.model_copy(update={"components": 8})
    other = judge_inline(store, "strict", *[inputs[r] for r in ("generator", "tokenizer", "dataset", "features")], config=strict)
    with mock.patch("tokenloom.tasks.modalities.image.judging.sampling_actor._finished", draw_here):
        outcome = register(plan(store, other), store, tracker)
    fd = store.record(other).metrics["fd_classifier"], store.record(world().var).metrics["fd_classifier"]
    assert outcome.metrics["promoted"] is (fd[0] <= fd[1])
    assert outcome.metrics["reason"].startswith("fd_classifier is")
    judged = [r for r in store.records("evaluation") if r.artifact.name == "digits-var.champion"]
    assert [r.notes["protocol"]["manifold"]["components"] for r in judged] == [8]


def test_a_champion_that_cannot_be_judged_again_stays(store, tracker):
    register(plan(store, world().var), store, tracker)
    inputs = store.record(world().raster).inputs
    strict = FEW.model_copy(update={"components": 8})
    other = judge_inline(store, "strict", *[inputs[r] for r in ("generator", "tokenizer", "dataset", "features")], config=strict)
    store.storage.delete(store.record(world().var).inputs["generator"].folder)
    outcome = register(plan(store, other), store, tracker)
    assert outcome.metrics["promoted"] is False
    assert "cannot be judged under this protocol" in outcome.metrics["reason"]


@pytest.mark.parametrize("config", [{"floor": {"niceness": 1.0}}, {"gate": "niceness"}])
def test_a_gate_on_no_metric_is_refused_before_work(store, config):
    with pytest.raises(ConfigError, match=r"register\.(floor\.niceness|gate): no metric is named 'niceness'; there are: .*\bfd\b"):
        plan(store, world().var, **config)


def test_a_gate_on_what_is_not_measured_is_refused_before_work():
    with pytest.raises(
        ConfigError, match=r"register\.floor\.recall: 'recall' is not measured; add 'precision_recall' to evaluate\.metrics"
    ):
        gate.check_names({"recall": 0.4}, "fd", ["fd"])
    gate.check_names(
        {"recall": 0.4, "parameters": 1.0, "codebook_use_scale_0": 0.1}, "fd_classifier", ["fd", "precision_recall", "reconstruction"]
    )


def test_gate_knows_which_way_is_better():
    assert gate.floors({"fd_classifier": 3.0}, {"fd": 4.0}).promoted
    assert not gate.floors({"fd_classifier": 5.0}, {"fd": 4.0}).promoted
    assert gate.against({"precision": 0.9}, {"precision": 0.9}, "precision").promoted
    assert not gate.against({"precision": 0.8}, {"precision": 0.9}, "precision").promoted
    with pytest.raises(StepError, match="'kid' was not measured"):
        gate.floors({"fd_classifier": 3.0}, {"kid": 4.0})


def test_a_killed_registration_does_not_make_a_second_version(store, tracker):
    step = plan(store, world().var)
    with mock.patch("tokenloom.tasks.tracking.register._decide", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        register(step, store, tracker)
    assert register(step, store, tracker).metrics["version"] == 1
    assert len(tracker.client.search_model_versions("name='digits-var'")) == 1


def test_a_lost_database_is_filled_again(store, tracker):
    step = plan(store, world().var)
    made = register(step, store, tracker).artifact
    worse = register(plan(store, again(store, "worse", 5, {"fd_classifier": 1e9})), store, tracker).artifact
    assert not lost(store, made, tracker.uri)
    missing = f"sqlite:///{store.root / 'missing.db'}"
    assert lost(store, made, missing)
    assert not (store.root / "missing.db").exists()
    fresh = new_tracker(store, "fresh.db")  # another file: this process still holds the first one open
    assert lost(store, made, fresh.uri)
    assert register(step, store, fresh).status == "ran"
    assert not lost(store, made, fresh.uri)
    assert not lost(store, worse, fresh.uri)
    registry = Registry(fresh)
    assert registry.alias("digits-var", "champion").tags["tokenloom.fingerprint"] == made.fingerprint
    assert registry.alias("digits-var", "challenger").tags["tokenloom.fingerprint"] == worse.fingerprint
    run = fresh.client.get_run(fresh.run_id(step.inputs["generator"].fingerprint))
    assert [m.value for m in fresh.client.get_metric_history(run.info.run_id, "loss")] == [2.0, 1.0]
    evaluated = fresh.client.get_run(fresh.run_id(world().var.fingerprint))
    pictures = {Path(f.path).stem for f in fresh.client.list_artifacts(evaluated.info.run_id, "pictures")}
    assert pictures == {"samples", "nearest", "reconstructions", "codebook", "curves"}
    assert evaluated.data.metrics["fd_classifier"] == store.record(world().var).metrics["fd_classifier"]
    assert register(step, store, fresh).status == "cached"


def test_a_person_promotes_and_goes_back_with_who_and_why_in_the_registry(store, tracker, monkeypatch, capsys):
    register(plan(store, world().var), store, tracker)
    register(plan(store, again(store, "worse", 5, {"fd_classifier": 1e9})), store, tracker)
    registry = Registry(tracker)
    with pytest.raises(ConfigError, match="first champion: there is none before it"):
        champion.rollback(registry, store, "digits-var", "it is bad")
    with pytest.raises(ConfigError, match=r"models:/digits-var/9: no such version; it has: 1, 2"):
        champion.promote(registry, store, "digits-var", "9", "why not")
    with pytest.raises(ConfigError, match="say why"):
        champion.promote(registry, store, "digits-var", "2", " ")
    move = champion.promote(registry, store, "digits-var", "2", "people like it", "ada")
    assert {key: move[key] for key in ("version", "before", "who", "why")} == {
        "version": "2",
        "before": "1",
        "who": "ada",
        "why": "people like it",
    }
    assert registry.alias("digits-var", "champion").number == "2"
    assert registry.alias("digits-var", "champion").tags["tokenloom.decision"] == "promoted by ada: people like it"
    with pytest.raises(ConfigError, match="is the champion already"):
        champion.promote(registry, store, "digits-var", "2", "again")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    there = ["--root", str(store.root), "--store", store.uri]
    assert code_of(["rollback", "digits-var", "--why", "it repeats itself", "--who", "grace", *there]) == 0
    assert "models:/digits-var/1 is champion in place of version 2: it repeats itself (grace," in capsys.readouterr().out
    assert registry.alias("digits-var", "champion").number == "1"
    assert [(one["version"], one["who"]) for one in champion.moves(registry, "digits-var")] == [("2", "ada"), ("1", "grace")]
    assert code_of(["promote", "digits-var", "--why", "x", *there]) == 2


def test_registration_fails_clearly_when_the_server_is_away(store):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    away = Tracker(f"http://127.0.0.1:{port}", store.root, "digits-var")
    step = plan(store, world().var)
    with mock.patch.dict(os.environ, {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}):
        with pytest.raises(StepError, match=r"is away.*Everything else is in the store: start it and run again"):
            register(step, store, away)
        assert store.find(step) is None
    made = register(step, store, new_tracker(store))
    assert made.status == "ran"
    assert not lost(store, made.artifact, away.uri)  # nobody knows: nothing is done about it


def test_the_bundle_opens_where_only_its_code_is(tmp_path):
    """The code that travels is enough: no other module of the project is imported."""
    inputs = world().store.record(world().var).inputs
    bundle.write_bundle(
        tmp_path / "bundle", world().store, {role: inputs[role] for role in ("generator", "tokenizer")}, list("0123456789"), {}
    )
    bundle.write_code(tmp_path / "code", [Path(draw.__file__).parent])
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'code')\n"
        "import numpy as np\nfrom tokenloom.tasks.serving.predict import open_bundle\n"
        "from tokenloom.tasks.modalities.image.served.draw import sample_shards\n"
        "images = sample_shards(open_bundle(Path('bundle')), np.arange(4), seed=1)\n"
        "here = {m: sys.modules[m].__file__ for m in sys.modules if m.startswith('tokenloom.')}\n"
        "assert all(str(f).startswith(str(Path('code').resolve())) for f in here.values()), here\n"
        "print(images.shape, 'mlflow' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 32, 32, 1) False False"


@contextlib.contextmanager
def served(tracker: Tracker, uri: str, folder: Path) -> Iterator[str]:
    """``mlflow models serve`` on a free port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it executes uvicorn by name
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": tracker.uri, "MLFLOW_REGISTRY_URI": tracker.uri}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start:\n{(folder / 'server.log').read_text()[-3000:]}")
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def ask(address: str, classes: list[int], **params: float) -> list[np.ndarray]:
    from PIL import Image

    body = {"dataframe_split": {"columns": ["class_id"], "data": [[k] for k in classes]}, "params": params}
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        rows = json.load(answer)["predictions"]
    return [np.array(Image.open(io.BytesIO(base64.b64decode(row["png_base64"])))) for row in rows]


@pytest.mark.slow
def test_mlflow_serves_images_over_http(store, tracker, tmp_path):
    register(plan(store, world().var), store, tracker)
    with served(tracker, "models:/digits-var@champion", tmp_path) as address:
        images = ask(address, [3, 1, 4], seed=7)
        assert [image.shape for image in images] == [(32, 32)] * 3
        pair = bundle.open_bundle(Registry(tracker).download("models:/digits-var@champion") / "artifacts" / "bundle")
        from tokenloom.tasks.modalities.image.served.draw import sample_shards

        np.testing.assert_array_equal(np.stack(images), sample_shards(pair, np.array([3, 1, 4]), seed=7)[..., 0])
        assert any((a != b).any() for a, b in zip(images, ask(address, [3, 1, 4], seed=8)))
        for wrong, message in (([11], "class_id 11: this model has the classes 0 to 9"), ([0] * 2000, "ask for 1 to 1024 images")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(address, wrong)
            assert refused.value.code == 400
            assert message in refused.value.read().decode()
