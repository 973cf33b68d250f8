"""A model of images over HTTP: an images endpoint in OpenAI's form, MLflow's, a health page and metrics, over a queue of requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.modalities.image.served.draw import column_of, png_base64, to_uint8
from tokenloom.tasks.modalities.image.served.options import OTHERS, changes, parameters
from tokenloom.tasks.serving.many.queue import Desk, FullError, StoppingError, Ticket
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.serving.request import ConditionSpec, Request

MOST_IMAGES = 1024  # of one request
MOST_MESSAGE = 4000  # characters of what a client is told
MOST_BYTES = 32 << 20  # of its body: columns of the data are images
#: Seconds after which a client of a full queue may ask again.
AGAIN = 1
#: How often it is looked whether a client is still there, seconds.
LOOK = 0.2


def pictures(pair: Pair, made: Any) -> list[str]:
    """Finished tokens (or the images of a density, (N, C, H, W)) as PNG in base64 text."""
    images = made if pair.tokenizer is None else pair.tokenizer.decode(made)
    return [png_base64(image) for image in to_uint8(images)]


class _HttpError(Exception):
    def __init__(self, status: int, message: str, field: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.field, self.headers = status, field, dict(headers or {})


def app(pair: Pair, title: str, rows: int, waiting: int) -> Starlette:
    """The server's application; its queue ends with it, once what was taken is answered."""
    desk = Desk(pair, pictures, rows, waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.stop)

    async def generations(http: HttpRequest) -> Response:
        body = await _body(http)
        request, settings, seed = _openai(pair, body)
        images = await _answer(http, desk.ask(request, seed, **settings))
        return JSONResponse({"created": int(time.time()), "data": [{"b64_json": image} for image in images]})

    async def invocations(http: HttpRequest) -> Response:
        request, given = _mlflow(pair, await _body(http))
        images = await _answer(http, desk.ask(request, _seed(given), **_settings(pair, given)))
        return JSONResponse({"predictions": [{"png_base64": image} for image in images]})

    async def health(_: HttpRequest) -> Response:
        numbers = {name: round(value, 6) for name, value in desk.numbers().items()}
        state = "stopping" if desk.stopping else "ready"
        about = {"status": state, "model": title, "rows": rows, "queue": waiting, "passes_shared": desk.apart is None}
        if desk.apart is not None:
            about["why_not"] = desk.apart
        return JSONResponse(about | numbers, 503 if desk.stopping else 200)

    async def metrics(_: HttpRequest) -> Response:
        return Response(exposition(desk.numbers()), media_type="text/plain; version=0.0.4")

    async def failed(_: HttpRequest, error: Exception) -> Response:
        return _refused(error)

    routes = [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/invocations", invocations, methods=["POST"]),
        Route("/health", health),
        Route("/ping", health),
        Route("/metrics", metrics),
    ]
    handlers = dict.fromkeys((ConfigError, FullError, StoppingError, _HttpError, HTTPException, Exception), failed)
    made = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    made.state.desk = desk
    return made


def _refused(error: Exception) -> Response:
    """What a client is told: in OpenAI's form, with MLflow's ``message`` beside it."""
    status, kind, headers, field = 500, "server_error", dict[str, str](), None
    if isinstance(error, ConfigError):
        status, kind = 400, "invalid_request_error"
    elif isinstance(error, _HttpError):
        status, kind, headers, field = error.status, "invalid_request_error", error.headers, error.field
    elif isinstance(error, HTTPException):  # no such address, or another method than it takes
        status, kind, headers = error.status_code, "invalid_request_error", dict(error.headers or {})
    elif isinstance(error, FullError):
        status, kind, headers = 429, "rate_limit_exceeded", {"Retry-After": str(AGAIN)}
    elif isinstance(error, StoppingError):
        status, kind = 503, "server_stopping"
    message = f"the model failed on it: {type(error).__name__}: {error}" if status == 500 else getattr(error, "detail", str(error))
    message, field = _sayable(message), None if field is None else _sayable(field[:100])
    message = message if len(message) <= MOST_MESSAGE else message[: MOST_MESSAGE // 2] + "…" + message[-MOST_MESSAGE // 2 :]
    told = {"message": message, "type": kind, "param": field, "code": None}
    return JSONResponse({"error": told, "message": message}, status, headers)


def _sayable(text: str) -> str:
    """Text of the client may stand in it, with halves of characters, which UTF-8 has not."""
    return text.encode(errors="backslashreplace").decode()


async def _body(http: HttpRequest) -> dict[str, Any]:
    """The JSON object of a request, of a bounded size."""
    raw = bytearray()
    async for chunk in http.stream():
        raw += chunk
        if len(raw) > MOST_BYTES:
            raise _HttpError(413, f"the body has more than {MOST_BYTES >> 20} MiB")
    try:
        body = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _HttpError(400, f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise _HttpError(400, f"the body is JSON of type {type(body).__name__}: write an object")
    return body


async def _answer(http: HttpRequest, ticket: Ticket) -> list[Any]:
    """The images; a client that goes away has its request dropped."""
    future = asyncio.wrap_future(ticket.future)
    try:
        while not (await asyncio.wait([future], timeout=LOOK))[0]:
            if await http.is_disconnected():
                raise _HttpError(499, "the client has gone")
        return future.result()
    except asyncio.CancelledError:
        raise StoppingError("this server was stopped before the request was answered") from None
    finally:
        if not future.done():
            ticket.leave()


# --- requests


def _openai(pair: Pair, body: Mapping[str, Any]) -> tuple[Request, dict[str, Any], int]:
    """``prompt`` (a class by name or number, or a text), ``n``, ``size``, and the parameters of the sampler.

    Raises:
        ConfigError, _HttpError: a field that is missing, unknown or of another kind, naming it.
    """
    known = {"prompt", "n", "size", "response_format", "model", "user", "class", "columns", *parameters(pair)} - {
        "inpaint",
        "mask",
        "prefix",
    }
    if unknown := sorted(set(body) - known):
        raise _HttpError(400, f"{unknown[0]}: is no field of this endpoint; it has {', '.join(sorted(known))}", unknown[0])
    n = body.get("n", 1)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST_IMAGES:
        raise _HttpError(400, f"n={n!r}: write a whole number from 1 to {MOST_IMAGES}", "n")
    if body.get("response_format", "b64_json") != "b64_json":
        raise _HttpError(400, f"response_format={body['response_format']!r}: this server answers with b64_json", "response_format")
    own = "x".join(map(str, reversed(pair.shape[1:])))
    if pair.shape and body.get("size") not in (None, "", "auto", own):
        raise _HttpError(400, f"size={body['size']!r}: this server draws images of {own} (width x height)", "size")
    spec, prompt = pair.condition_spec, body.get("prompt")
    kind = body.get("class", prompt)
    for field, needed in ("prompt", spec.texted), ("class", spec.labelled and spec.texted):
        if needed and body.get(field) is None:
            raise _HttpError(400, f"{field}: is missing", field)
    columns = {} if body.get("columns") is None else body["columns"]
    if not isinstance(columns, dict) or not set(columns) <= set(spec.columns):
        there = ", ".join(spec.columns) or "none"
        raise _HttpError(400, f"columns={columns!r}: write an object; the columns of this model: {there}", "columns")
    request = Request(
        np.full(n, _class(spec, kind), dtype=np.int64) if spec.labelled else None,
        [_text("prompt", prompt)] * n if spec.texted else None,
        {name: column_of(name, [columns.get(name)] * n, shape) for name, shape in spec.columns.items()},
    )
    given = {name: body[name] for name in parameters(pair) if name in body and name != "size"}
    return request, _settings(pair, given), _seed(given)


_CLASSES = range(1 << 31)  # numbers that a class may have at all: whether the model has it, ``ConditionSpec.check`` says


def _class(spec: ConditionSpec, given: Any) -> int:
    if not spec.classes and given is None:
        return 0
    if isinstance(given, str) and given in spec.classes:
        return spec.classes.index(given)
    if not isinstance(given, bool):
        with contextlib.suppress(TypeError, ValueError):
            if (isinstance(given, int) or str(given).strip().isdecimal()) and int(given) in _CLASSES:
                return int(given)
    some = ", ".join(spec.classes[:10]) + (", …" if len(spec.classes) > 10 else "")
    raise _HttpError(400, f"prompt={given!r}: this model draws classes; name one of {some}, or its number", "prompt")


def _text(field: str, given: Any) -> str:
    if not isinstance(given, str) or given.encode(errors="replace").decode() != given:  # halves of characters are none
        raise _HttpError(400, f"{field}={given!r}: write text", field)
    return given


def _mlflow(pair: Pair, body: Mapping[str, Any]) -> tuple[Request, Mapping[str, Any]]:
    """MLflow's scoring protocol: ``dataframe_split``, ``dataframe_records`` or ``inputs`` (a list a column), and ``params``."""
    split, records, inputs = (body.get(name) for name in ("dataframe_split", "dataframe_records", "inputs"))
    try:
        if split is not None:
            table = {name: [row[i] for row in split["data"]] for i, name in enumerate(split["columns"])}
        elif records is not None:
            table = {name: [row[name] for row in records] for name in (records[0] if records else ())}
        elif inputs is not None:
            table = {name: list(values) for name, values in inputs.items()}
        else:
            raise _HttpError(400, "the body has no dataframe_split, dataframe_records or inputs")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise _HttpError(400, f"the rows cannot be read: {type(error).__name__}: {error}") from error
    if len({len(values) for values in table.values()}) > 1:
        raise _HttpError(400, f"the columns are of different lengths: {', '.join(f'{k} {len(v)}' for k, v in table.items())}")
    if not isinstance(params := body.get("params") or {}, dict):
        raise _HttpError(400, f"params={params!r}: write an object", "params")
    spec = pair.condition_spec
    for name in spec.inputs:
        if name not in table:
            raise _HttpError(400, f"this model takes the column {name!r}, got {', '.join(table)}", name)
    if not 1 <= len(next(iter(table.values()), [])) <= MOST_IMAGES:
        raise _HttpError(400, f"{len(next(iter(table.values()), []))} rows: ask for 1 to {MOST_IMAGES} images at once")
    if spec.labelled and any(isinstance(k, bool) or not isinstance(k, int) or k not in _CLASSES for k in table["class_id"]):
        raise _HttpError(400, "class_id: write whole numbers, the classes of this model", "class_id")
    request = Request(
        np.array(table["class_id"], dtype=np.int64) if spec.labelled else None,
        [_text("text", text) for text in table["text"]] if spec.texted else None,
        {name: column_of(name, table[name], shape) for name, shape in spec.columns.items()},
    )
    return request, params


def _seed(given: Mapping[str, Any]) -> int:
    seed = given.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(1 << 63) <= seed < 1 << 63:
        raise _HttpError(400, f"seed={seed!r}: write a whole number", "seed")
    return seed


def _settings(pair: Pair, given: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of the sampler; what needs a request of its own is refused."""
    for name in OTHERS:
        if name != "seed" and given.get(name):
            raise _HttpError(400, f"{name}: is not offered by this server; use `tokenloom sample`, or MLflow's", name)
    return changes(pair, given)


# --- metrics


def exposition(numbers: Mapping[str, float]) -> bytes:
    """The numbers of a queue as Prometheus reads them."""

    class Collector:
        def collect(self) -> Any:
            ends = CounterMetricFamily("tokenloom_requests", "Requests by their end", labels=["end"])
            for end in ("answered", "refused", "failed", "left"):
                ends.add_metric([end], numbers[f"requests_{end}"])
            yield ends
            for name in ("samples", "tokens", "passes"):
                yield CounterMetricFamily(f"tokenloom_{name}", f"{name.capitalize()} since the start", value=numbers[name])
            for name in ("requests_open", "running", "tokens_per_second", "seconds_up"):
                yield GaugeMetricFamily(f"tokenloom_{name}", name.replace("_", " "), value=numbers[name])
            quantiles = GaugeMetricFamily("tokenloom_answer_seconds", "Seconds to an answer, of the newest 1000", labels=["quantile"])
            for p in (50, 95, 99):
                quantiles.add_metric([str(p / 100)], numbers[f"seconds_p{p}"])
            yield quantiles

    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry)
