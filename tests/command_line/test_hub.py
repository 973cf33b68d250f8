"""Weights by an address of the Hugging Face hub: a server on loopback stands for it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.store.hub import HubFile, weights_file
from tokenloom.tasks.store.official import read_weights

constants = pytest.importorskip("huggingface_constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of what the repository someone/model holds; whoever asks is sent to the server that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, whole: bool) -> None:
            file = folder / self.path.rpartition("/")[2]
            found = self.path.startswith("/someone/model/resolve/main/") and file.is_file()
            body = file.read_bytes() if found else b"not here"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if whole:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once_and_then_found_without_a_network(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": {"w": torch.ones(3)}}, files / "weights.pth")
    path = weights_file("hf:someone/model", "weights.pth")
    assert torch.equal(read_weights(path)["w"], torch.ones(3))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights_file("hf:someone/model/weights.pth") == path
    with pytest.raises(ConfigError, match=r"hf:someone/model/other.pth@main: not in this machine's cache.*set HF_HUB_OFFLINE=0"):
        weights_file("hf:someone/model/other.pth")


def test_what_the_hub_has_not_is_one_clear_error(files: Path) -> None:
    with pytest.raises(ConfigError, match=r"--weights hf:someone/model/none.pth@main: cannot be had \(\w+: "):
        weights_file("hf:someone/model/none.pth")


@pytest.mark.parametrize(
    ("address", "default", "expected"),
    [
        ("hf:a/b", "c.pth", HubFile("a/b", "c.pth")),
        ("hf:a/b/c/d.pth", "e.pth", HubFile("a/b", "c/d.pth")),
        ("hf:a-1/b.2@v1", "c.pth", HubFile("a-1/b.2", "c.pth", "v1")),
        ("hf:a/b/c.pth@refs/pr/3", "", HubFile("a/b", "c.pth", "refs/pr/3")),
    ],
)
def test_addresses(address: str, default: str, expected: HubFile) -> None:
    assert HubFile.parse(address, default) == expected


@pytest.mark.parametrize(
    ("address", "message"), [("hf:a", "write hf:OWNER/NAME"), ("hf:a/b", "says no file"), ("none.pth", "no such file")]
)
def test_what_is_no_address(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights_file(address)


def test_the_command_says_where_a_checkpoint_is_kept(tmp_path: Path) -> None:
    from tokenloom.flows.cli.main import main

    result = CliRunner().invoke(main, ["import", "rar-b", "--root", str(tmp_path)])
    assert result.exit_code == 2
    assert "hf:yucornetto/RAR" in result.output
