"""Data sets of the hub, from a server on loopback that answers as the hub does: revisions, configurations, splits, streaming."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from image_files import config, rows_of
from image_sources import rows_of_classes, write_parquet

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.ingest import ingest, scan
from tokenloom.tasks.store.artifacts import Store

pytestmark = pytest.mark.long  # the hub's library makes a table of its own of each
ROWS = rows_of_classes(cat=12, dog=12)
README = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
- config_name: other
  data_files:
  - {split: train, path: other/*}
---
"""


class Hub:
    """Repositories by commit; branches name commits."""

    def __init__(self) -> None:
        self.branches: dict[str, str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}

    def push(self, branch: str, folder: Path) -> str:
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.branches[branch], self.commits[commit] = commit, files
        return commit


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _json(self, value: Any, status: int = 200, **headers: str) -> None:
            self._send(json.dumps(value).encode(), status, **headers)

        def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            asked = self.rfile.read(length).decode() if length else ""
            path = self.path.partition("?")[0]
            api, files = path.startswith("/api/datasets/someone/pets"), path.startswith("/datasets/someone/pets/resolve/")
            if not api and not files:
                return self._json({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            parts = [part for part in path.partition("someone/pets")[2].split("/") if part]
            revision = parts[1] if len(parts) > 1 else "main"
            commit = found.branches.get(revision.replace("%2F", "/"), revision)
            if commit not in found.commits:
                return self._json({"error": "no revision"}, 404, X_Error_Code="RevisionNotFound")
            held = found.commits[commit]
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for name, data in held.items()
            ]
            folders = {name.rpartition("/")[0] for name in held} - {""}
            entries += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]
            if files:
                return self._file(held, "/".join(parts[2:]), commit)
            if parts and parts[0] == "paths-info":
                wanted = json.loads(asked)["paths"] if asked.startswith("{") else [p.partition("=")[2] for p in asked.split("&")]
                from urllib.parse import unquote_plus

                wanted = [unquote_plus(each) for each in wanted]
                return self._json([each for each in entries if each["path"] in wanted])
            if parts and parts[0] == "tree":
                inside = "/".join(parts[2:])
                return self._json([each for each in entries if each["path"].startswith(f"{inside}/" if inside else "")])
            siblings = [{"rfilename": name} for name in held]
            return self._json({"id": "someone/pets", "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

        do_HEAD = do_POST = do_GET

        def _file(self, held: dict[str, bytes], name: str, commit: str) -> None:
            if name not in held:
                return self._json({"error": "no file"}, 404, X_Error_Code="EntryNotFound")
            body, span = held[name], self.headers.get("Range")
            given = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            if span:
                first, _, last = span.removeprefix("bytes=").partition("-")
                stop = min(len(body), int(last) + 1 if last else len(body))
                return self._send(body[int(first) : stop], 206, Content_Range=f"bytes {first}-{stop - 1}/{len(body)}", **given)
            return self._send(body, 200, **given)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    import datasets
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("TOKENLOOM_NODE_ROOT", str(tmp_path / "node"))
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": address,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    for name, value in {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": False, "HF_DATASETS_CACHE": tmp_path / "tables"}.items():
        monkeypatch.setattr(datasets.config, name, value)
    datasets.disable_progress_bars()
    yield found
    server.shutdown()


def data_set(folder: Path, changed: bytes | None = None) -> Path:
    rows = ROWS if changed is None else [("cat-000", "cat", changed), *ROWS[1:]]
    for split, mine in (("train", rows[::2] + rows[1::4]), ("test", rows[3::4])):
        columns = {"image": [data for *_, data in mine], "label": [("cat", "dog").index(label) for _, label, _ in mine]}
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", columns, ["cat", "dog"])
    write_parquet(folder / "other" / "a.parquet", {"image": [data for *_, data in ROWS], "kind": [label for _, label, _ in ROWS]})
    (folder / "README.md").write_text(README)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_at_a_revision(hub: Hub, tmp_path: Path, store: Store, streaming: bool) -> None:
    from image_sources import png

    first = hub.push("main", data_set(tmp_path / "one"))
    given = config("hf://someone/pets", hub={"streaming": streaming}, test=0.1)
    made = ingest("pets", given, store)
    assert (made.metrics["test"], made.metrics["train"] + made.metrics["validation"]) == (6, 18)
    assert store.record(made.artifact).notes["classes"] == ["cat", "dog"]
    assert f"commit {first[:12]}" in made.told
    assert ingest("pets", given, store).status == "cached"
    hub.push("main", data_set(tmp_path / "two", png(4711)))
    assert "1 changed file" in scan(given, store).reason
    assert ingest("pets", given, store).artifact.fingerprint != made.artifact.fingerprint
    pinned = config(f"hf://someone/pets@{first}", hub={"streaming": streaming}, test=0.1)
    assert {row["image"] for row in rows_of(store, ingest("pets", pinned, store))} == {row["image"] for row in rows_of(store, made)}
    other = config("hf://someone/pets", hub={"config": "other", "split": "train", "streaming": streaming}, label_column="kind")
    assert ingest("pets", other, store).metrics["train"] > 10


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path, store: Store) -> None:
    hub.push("main", data_set(tmp_path / "one"))
    for source, options in (
        ("hf://someone/pets@nowhere", {}),
        ("hf://someone/cars", {}),
        ("hf://someone/pets", {"hub": {"config": "no"}}),
        ("hf://someone/pets", {"hub": {"split": "no"}}),
        ("hf://someone/pets", {"hub": {"split": "no", "streaming": True}}),
    ):
        with pytest.raises(ConfigError, match="hf://someone"):
            scan(config(source, **options), store)
    with pytest.raises(ConfigError, match="write hf://OWNER/NAME"):
        scan(config("hf://pets"), store)
