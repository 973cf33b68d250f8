"""An S3 server on loopback that survives being killed: moto's, with every object also in a folder before its writer hears of it.

    python -m benchmarks.faults.s3server --port 5000 --folder /tmp/objects --bucket loom-store

While ``<folder>.fault.json`` (``{"status": 503, "share": 0.5}``) is there, that share of the requests is answered with the status.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def file_of(folder: Path, key: str) -> Path:
    """The file that holds an object."""
    return folder / urllib.parse.quote(key, safe="")


def objects(folder: Path) -> dict[str, bytes]:
    """All objects by key; the ``directories`` that clients make have keys that end with a slash and are left out."""
    found = {urllib.parse.unquote(p.name): p.read_bytes() for p in folder.iterdir() if not p.name.startswith("tmp~")}
    return {key: data for key, data in found.items() if not key.endswith("/")}


class Durable:
    """WSGI: moto's application, whose objects are written through to a folder."""

    def __init__(self, application: Application, folder: Path, bucket: str) -> None:
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        self._application, self._folder, self._bucket = application, folder, bucket
        self._fault = folder.with_name(folder.name + ".fault.json")
        self._lock = threading.Lock()
        self._draw = random.Random(0)
        self._backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.create_bucket(bucket, "us-east-1")
        for file in folder.iterdir():
            if file.name.startswith("tmp~"):
                file.unlink()
            else:
                self._backend.put_object(bucket, urllib.parse.unquote(file.name), file.read_bytes())

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if status := self._refused():
            start_response(f"{status} Fault", [("Content-Type", "application/xml"), ("Connection", "close")])
            return [b"<?xml version='1.0'?><Error><Code>ServiceUnavailable</Code><Message>on purpose</Message></Error>"]
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._application(environ, start_response)
        with self._lock:
            answer = list(self._application(environ, start_response))
            self._keep(urllib.parse.unquote(environ.get("PATH_INFO", "")).strip("/").partition("/")[2])
            return answer

    def _refused(self) -> int:
        try:
            fault = json.loads(self._fault.read_text())
        except (OSError, ValueError):
            return 0
        return int(fault["status"]) if self._draw.random() < fault["share"] else 0

    def _keep(self, key: str) -> None:
        here = self._backend.buckets[self._bucket].keys
        # A request without a key (delete many) may have touched anything.
        for each in [key] if key else [urllib.parse.unquote(p.name) for p in self._folder.iterdir()]:
            file, kept = file_of(self._folder, each), here.get(each)
            if kept is None:
                file.unlink(missing_ok=True)
            else:
                temporary = self._folder / f"tmp~{threading.get_ident()}"
                temporary.write_bytes(kept.value)
                os.replace(temporary, file)


def serve(port: int, folder: Path, bucket: str) -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections are kept, as S3 does
    WSGIRequestHandler.disable_nagle_algorithm = True
    make_server("127.0.0.1", port, Durable(DomainDispatcherApplication(create_backend_app), folder, bucket), threaded=True).serve_forever()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--bucket", default="loom-store")
    arguments = parser.parse_args()
    serve(arguments.port, arguments.folder, arguments.bucket)


if __name__ == "__main__":
    main()
