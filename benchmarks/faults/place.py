"""Where a trial happens: a store on local disk or on S3 behind a proxy, roots, and how the bytes are seen and changed from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from benchmarks.faults.proxy import ProxyProcess
from benchmarks.faults.s3server import file_of, objects, serve

BUCKET = "loom-store"
#: The server reads the service from it and checks nothing.
_HEADERS = {
    "Content-Type": "application/octet-stream",
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none",
}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """The S3 server in a process of its own: killed and started again at will."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._pid = 0

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._pid = os.fork()
        if self._pid == 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            try:
                serve(self.port, self.folder, BUCKET)
            finally:
                os._exit(1)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise SystemExit("the S3 server does not start")

    def kill(self) -> None:
        """SIGKILL."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


class Place:
    """The surroundings of one trial.

    Args:
        folder: an empty folder, removed with the place.
        where: ``local`` or ``s3``.
        small: bytes of the disk that holds the roots (and a local store), 0 for the folder's own disk; needs root's rights.
    """

    def __init__(self, folder: Path, where: str, small: int = 0) -> None:
        self.folder, self.where = folder, where
        folder.mkdir(parents=True)
        self.disk = folder / "disk"
        self.disk.mkdir()
        self._mounted = bool(small)
        if small:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={small}", "tmpfs", str(self.disk)], check=True)
        self.server: Server | None = None
        self.proxy: ProxyProcess | None = None
        self.environment: dict[str, str] = {}
        if where == "s3":
            self.server = Server(folder / "objects")
            self.server.start()
            self.proxy = ProxyProcess(self.server.port)
            self.environment = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            self.uri = f"s3://{BUCKET}/store"
        else:
            self.uri = str(self.disk / "store")

    def root(self, name: str = "root") -> Path:
        """A root folder."""
        return self.disk / name

    def files(self) -> dict[str, bytes]:
        """All files of the store as they are now, by path."""
        if self.server is not None:
            there = objects(self.server.folder) if self.server.folder.is_dir() else {}
            return {key.removeprefix("store/"): data for key, data in there.items()}
        base = Path(self.uri)
        return {p.relative_to(base).as_posix(): p.read_bytes() for p in base.rglob("*") if p.is_file() and not p.name.endswith(".tmp")}

    def put(self, path: str, data: bytes | None) -> None:
        """Change a file behind the back of the store; None removes it."""
        if self.server is not None:
            address = f"http://127.0.0.1:{self.server.port}/{BUCKET}/store/{path}"
            request = urllib.request.Request(address, data=data, method="DELETE" if data is None else "PUT", headers=_HEADERS)
            urllib.request.urlopen(request, timeout=10).close()
            if data is not None and file_of(self.server.folder, f"store/{path}").read_bytes() != data:
                raise SystemExit(f"the S3 server holds something else than was put at {path}")
        elif data is None:
            (Path(self.uri) / path).unlink(missing_ok=True)
        else:
            (Path(self.uri) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(self.uri) / path).write_bytes(data)

    def fill(self) -> Path:
        """Write until the small disk is full; the file to remove."""
        ballast = self.disk / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            for block in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * block)
        return ballast

    def close(self) -> None:
        """Stop everything and remove the folder."""
        if self.proxy is not None:
            self.proxy.close()
        if self.server is not None:
            self.server.kill()
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
