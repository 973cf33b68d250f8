"""A model over HTTP for many at once: each answer is what it is alone, passes are shared, and nothing is lost when somebody goes."""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from make_fixture_store import FIXTURE, roles
from PIL import Image
from small_generators import grid, small
from torch import Tensor
from words import TEXTS, model, noisy, spec

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Tokens
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.modalities.image.served.draw import sample_shards
from tokenloom.tasks.modalities.image.served.http import app, pictures
from tokenloom.tasks.serving.many.queue import Desk, FullError, StoppingError
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.store.artifacts import Store

CLASSES = ("cat", "dog", "owl")


class Painter(torch.nn.Module):
    """Stands for a tokenizer: a picture of the tokens' numbers."""

    def decode(self, tokens: Tokens) -> Tensor:
        return (tokens.ids.view(-1, 1, 4, 4).double() / 8 - 1).clamp(-1, 1)


def pair(name: str = "raster") -> Pair:
    # In double precision, so that the size of a batch does not decide which token is drawn.
    generator = small(name, grid(), scale=0.3).double()
    return Pair(generator, Painter(), Sampler(), ConditionSpec(("class",), CLASSES), "image", (1, 4, 4))  # type: ignore[arg-type]


@contextmanager
def served(one: Pair, rows: int = 16, waiting: int = 64) -> Iterator[tuple[str, Any, uvicorn.Server]]:
    """Address, queue and server of a real server in a thread."""
    made = app(one, "a model", rows, waiting)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    server = uvicorn.Server(uvicorn.Config(made, log_level="warning", timeout_graceful_shutdown=30, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", made.state.desk, server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def image_of(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_two_hundred_requests_of_sixteen_clients() -> None:
    """The same images as one by one, in less than a third of the passes."""
    one = pair()
    asked = [{"prompt": CLASSES[i % 3], "n": 1 + i % 2, "seed": i, "guidance": float(i % 4 == 0), "top_k": 8 * (i % 2)} for i in range(200)]
    with served(one, rows=32) as (address, _, _), httpx.Client(timeout=120, limits=httpx.Limits(max_connections=16)) as client:
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda body: client.post(f"{address}/v1/images/generations", json=body), asked))
        assert [answer.status_code for answer in answers] == [200] * 200
        numbers = client.get(f"{address}/health").json()
        text = client.get(f"{address}/metrics").text
    alone = 200 * 16
    assert numbers["passes"] * 3 <= alone, numbers
    assert numbers["requests_answered"] == 200
    assert 'tokenloom_requests_total{end="answered"} 200.0' in text
    assert 'quantile="0.95"' in text
    for body, answer in list(zip(asked, answers))[::7]:
        changes = {"guidance": body["guidance"], "top_k": body["top_k"]}
        wanted = sample_shards(one.edited(**changes), np.full(body["n"], CLASSES.index(body["prompt"])), body["seed"])  # type: ignore[call-overload, arg-type]
        drawn = [image_of(each["b64_json"]) for each in answer.json()["data"]]
        np.testing.assert_array_equal(np.stack(drawn), wanted[..., 0])


def test_both_endpoints_say_what_is_wrong() -> None:
    with served(pair()) as (address, _, _), httpx.Client(base_url=address, timeout=60) as client:
        for body, message in (
            ({"prompt": "cow"}, "name one of cat, dog, owl"),
            ({"prompt": "7"}, "class_id 7: this model has the classes 0 to 2"),
            ({"prompt": "cat", "n": 0}, "n=0: write a whole number from 1"),
            ({"prompt": "cat", "n": True}, "n=True"),
            ({"prompt": "cat", "size": "256x256"}, "this server draws images of 4x4"),
            ({"prompt": "cat", "response_format": "url"}, "answers with b64_json"),
            ({"prompt": "cat", "warmth": 1}, "warmth: is no field"),
            ({"prompt": "cat", "seed": "x"}, "seed='x'"),
            ({"prompt": "cat", "temperature": -1.0}, "sample.temperature=-1.0"),
            ({"prompt": "cat", "temperature": "hot"}, "temperature"),
            ({"prompt": "cat", "decoder": "jacobi"}, "cannot share passes"),
            ({"prompt": 10**30}, "name one of cat, dog, owl"),
            ({"prompt": "9" * 5000}, "name one of cat, dog, owl"),
            ({"prompt": "cat", "guidance": 10**400}, "guidance: write a number of at most 63 bits"),
            ({"prompt": "cat", "columns": {"edges": ""}}, "the columns of this model: none"),
            ([1], "write an object"),
        ):
            answer = client.post("/v1/images/generations", json=body)
            assert answer.status_code == 400, (body, answer.text)
            assert message in answer.json()["error"]["message"], (body, answer.text)
        for raw in (b"{", b"\xff", b"[" * 100_000, b'{"\\ud800": 1}'):
            assert client.post("/v1/images/generations", content=raw).status_code == 400, raw[:20]
        for answer, status in (client.get("/invocations"), 405), (client.get("/v1/models"), 404):
            assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
        rows = {"dataframe_split": {"columns": ["class_id"], "data": [[0], [2]]}, "params": {"seed": 3}}
        split = client.post("/invocations", json=rows).json()["predictions"]
        records = client.post("/invocations", json={"dataframe_records": [{"class_id": 0}, {"class_id": 2}], "params": {"seed": 3}})
        assert len(split) == 2
        assert records.json()["predictions"] == split
        for body, message in (
            ({}, "dataframe_split"),
            ({"inputs": {"text": ["a"]}}, "takes the column 'class_id'"),
            ({"inputs": {"class_id": []}}, "0 rows"),
            ({"inputs": {"class_id": [0.5]}}, "whole numbers"),
            ({"inputs": {"class_id": [10**30]}}, "whole numbers"),
            ({"inputs": {"class_id": [0, 1], "name": ["a"]}}, "of different lengths: class_id 2, name 1"),
            ({"inputs": {"class_id": [0]}, "params": [1]}, "params=[1]: write an object"),
            ({"dataframe_split": {"columns": ["class_id"], "data": [[]]}}, "cannot be read"),
            ({"inputs": {"class_id": [0]}, "params": {"inpaint": "x"}}, "inpaint: is not offered"),
            ({"inputs": {"class_id": [0]}, "params": {"warmth": 1}}, "parameter 'warmth'"),
        ):
            answer = client.post("/invocations", json=body)
            assert answer.status_code == 400, (body, answer.text)
            assert message in answer.json()["message"], (body, answer.text)


def test_words_are_asked_as_they_are() -> None:
    built = noisy(model(None)).double()
    painted = Painter()
    painted.decode = lambda tokens: (tokens.ids[:, :1, None, None] / 2 - 1).expand(-1, 1, 8, 8).double()  # type: ignore[method-assign]
    one = Pair(built, painted, Sampler(), ConditionSpec.of(spec(None), ("no", "yes"), TEXTS), "image", (1, 8, 8))  # type: ignore[arg-type]
    with served(one) as (address, _, _), httpx.Client(base_url=address, timeout=60) as client:
        answers = [client.post("/v1/images/generations", json={"prompt": text, "n": 3, "seed": 5}).json() for text in TEXTS]
        assert "prompt: is missing" in client.post("/v1/images/generations", json={"n": 3}).text
        for odd in (5, ["no"], "\ud800"):
            assert "write text" in client.post("/v1/images/generations", content=json.dumps({"prompt": odd})).text
            assert "write text" in client.post("/invocations", content=json.dumps({"inputs": {"text": [odd]}})).text
        long = client.post("/v1/images/generations", json={"prompt": "x" * 500})
    assert long.status_code == 400
    assert "this model takes at most" in long.json()["error"]["message"]
    for text, answer in zip(TEXTS, answers):
        wanted = sample_shards(one, [text] * 3, 5)
        np.testing.assert_array_equal(np.stack([image_of(each["b64_json"]) for each in answer["data"]]), wanted[..., 0])


class Slow(Painter):
    """Waits at each picture until it is let on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.on = threading.Event(), threading.Event()

    def decode(self, tokens: Tokens) -> Tensor:
        self.begun.set()
        assert self.on.wait(60)
        return super().decode(tokens)


class Held:
    """Keeps the engine from going on until it is let."""

    def __init__(self, desk: Desk) -> None:
        self.on, step = threading.Event(), desk.engine.step

        def held() -> Any:
            assert self.on.wait(60)
            return step()

        desk.engine.step = held


def test_a_full_queue_refuses_and_loses_nobody() -> None:
    desk = Desk(pair(), pictures, rows=2, waiting=2)
    held = Held(desk)
    first = desk.ask(np.array([0, 1]))
    deadline = time.monotonic() + 30
    while len(desk._parts) and time.monotonic() < deadline:  # until it has begun
        time.sleep(0.01)
    others = [first, desk.ask(np.array([2])), desk.ask(np.array([2]))]
    with pytest.raises(FullError, match="2 requests wait already"):
        desk.ask(np.array([2]))
    held.on.set()
    assert [len(ticket.future.result(60)) for ticket in others] == [2, 1, 1]
    assert desk.numbers()["requests_refused"] == 1
    assert desk.stop(60)


def test_a_client_that_leaves_gives_its_rows_back() -> None:
    desk = Desk(pair(), pictures, rows=4, waiting=8)
    held = Held(desk)
    gone, stays = desk.ask(np.zeros(4, np.int64)), desk.ask(np.array([1]))
    gone.leave()
    held.on.set()
    assert len(stays.future.result(60)) == 1
    assert desk.stop(60)
    assert desk.numbers()["requests_left"] == 1
    assert desk.engine.free == 4


def test_a_connection_that_closes_drops_its_request() -> None:
    with served(pair()) as (address, desk, _):
        held = Held(desk)
        host, port = address.removeprefix("http://").split(":")
        body = b'{"prompt": "cat", "n": 9}'
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + body)
            while desk.numbers()["requests_open"] < 1:
                time.sleep(0.01)
        deadline = time.monotonic() + 30
        while not any(ticket.gone for ticket in desk._tickets) and time.monotonic() < deadline:
            time.sleep(0.01)
        held.on.set()
        assert httpx.post(f"{address}/v1/images/generations", json={"prompt": "dog"}, timeout=60).status_code == 200
        assert desk.numbers()["requests_left"] == 1


def test_what_was_taken_is_answered_when_the_server_stops() -> None:
    slow = Slow()
    one = pair()
    waiting = Pair(one.generator, slow, one.sampler, one.condition_spec, "image", one.shape)  # type: ignore[arg-type]
    with served(waiting) as (address, desk, server), ThreadPoolExecutor(3) as clients:
        bodies = [{"prompt": "cat", "seed": i} for i in range(3)]
        asked = [clients.submit(httpx.post, f"{address}/v1/images/generations", json=body, timeout=60) for body in bodies]
        assert slow.begun.wait(60)
        while desk.numbers()["requests_open"] < 3:
            time.sleep(0.01)
        server.should_exit = True
        slow.on.set()
        assert [each.result().status_code for each in asked] == [200] * 3
    with pytest.raises(StoppingError):
        desk.ask(np.array([0]))


def test_a_request_that_fails_fails_alone() -> None:
    class Broken(Painter):
        def decode(self, tokens: Tokens) -> Tensor:
            if tokens.data.shape[0] == 2:
                raise RuntimeError("no such picture")
            return super().decode(tokens)

    one = pair()
    desk = Desk(Pair(one.generator, Broken(), one.sampler, one.condition_spec, "image", one.shape), pictures)  # type: ignore[arg-type]
    bad, good = desk.ask(np.array([0, 1])), desk.ask(np.array([2]))
    assert len(good.future.result(60)) == 1
    with pytest.raises(RuntimeError, match="no such picture"):
        bad.future.result(60)
    assert desk.numbers()["requests_failed"] == 1
    assert desk.stop(60)


def test_models_that_share_no_passes_answer_one_after_another() -> None:
    one = pair("aim")
    desk = Desk(one, lambda _, tokens: list(tokens.ids.numpy()), rows=2)
    assert "single slots" in str(desk.apart)
    tickets = [desk.ask(np.array([i % 3]), seed=i) for i in range(4)]
    assert [len(ticket.future.result(60)) for ticket in tickets] == [1] * 4
    assert desk.stop(60)
    with pytest.raises(ConfigError, match="queue=0"):
        Desk(one, pictures, waiting=0)


@pytest.mark.long
def test_the_command_serves_and_ends(tmp_path: Path) -> None:
    """A process of its own, a model of a store, SIGTERM while somebody waits."""
    shutil.copytree(FIXTURE / "store", tmp_path / "store")
    name = roles(Store(str(tmp_path / "store"), tmp_path / "root"))["generator"].id
    places = ["--root", str(tmp_path / "root"), "--store", str(tmp_path / "store")]
    command = [sys.executable, "-m", "tokenloom.flows.cli.main", "serve-model", name, "--port", "0", "--json", *places]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = iter(process.stdout.readline, "}\n")
    address = json.loads("".join(told) + "}")["address"]
    body = {"prompt": "0", "n": 64, "seed": 4}
    first = httpx.post(f"{address}/v1/images/generations", json=body, timeout=300)
    with ThreadPoolExecutor(1) as clients:
        second = clients.submit(httpx.post, f"{address}/v1/images/generations", json=body, timeout=300)
        while httpx.get(f"{address}/health").json()["requests_open"] < 1 and not second.done():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert second.result().json()["data"] == first.json()["data"]
    assert process.wait(60) == 0
