"""A TCP proxy on loopback whose connections can be cut or held up from outside."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


class Proxy:
    """Passes connections of ``port`` on to ``target``; one thread a connection.

    While ``cut`` every connection is reset and none is accepted for longer than it takes to reset it; while ``held`` nothing
    passes, in either direction.
    """

    def __init__(self, target: int) -> None:
        self.target, self.cuts = target, 0
        self._cut, self._held, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(0.1)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Reset all connections, and those that come, for the length of a block."""
        self._cut.set()
        try:
            yield
        finally:
            self._cut.clear()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing pass for the length of a block."""
        self._held.set()
        try:
            yield
        finally:
            self._held.clear()

    def close(self) -> None:
        """End the proxy and its connections."""
        self._ended.set()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._pass_on, args=(client,), name="proxied", daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self._cut.is_set():
                self._reset(client)
                return
            with socket.create_connection(("127.0.0.1", self.target), timeout=10) as server, selectors.DefaultSelector() as both:
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                both.register(client, selectors.EVENT_READ, server)
                both.register(server, selectors.EVENT_READ, client)
                while not self._ended.is_set():
                    ready = both.select(timeout=0.1)
                    if self._cut.is_set():
                        self._reset(client)
                        return
                    while self._held.is_set() and not self._ended.is_set():
                        time.sleep(0.02)
                    for key, _ in ready:
                        source = key.fileobj
                        assert isinstance(source, socket.socket)
                        data = source.recv(_CHUNK)
                        if not data:
                            return
                        key.data.sendall(data)

    def _reset(self, client: socket.socket) -> None:
        self.cuts += 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class ProxyProcess:
    """A ``Proxy`` in a process of its own, so that this one stays without threads and may fork."""

    def __init__(self, target: int) -> None:
        commands, self._commands = os.pipe()
        answers, said = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._commands)
            os.close(answers)
            self._obey(target, commands, said)
        os.close(commands)
        os.close(said)
        self._answers = answers
        self.port = int(self._line())

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """``cut`` or ``held`` for the length of a block."""
        self._tell(what)
        try:
            yield
        finally:
            self._tell("pass")

    def close(self) -> None:
        """End the process."""
        os.close(self._commands)
        os.close(self._answers)
        os.kill(self._pid, signal.SIGKILL)  # a process forked later holds the other end of the pipe too
        os.waitpid(self._pid, 0)

    def _tell(self, what: str) -> None:
        os.write(self._commands, f"{what}\n".encode())
        self._line()

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._answers, 1)
        return line.decode().strip()

    @staticmethod
    def _obey(target: int, commands: int, said: int) -> None:
        proxy = Proxy(target)
        os.write(said, f"{proxy.port}\n".encode())
        with os.fdopen(commands) as lines, contextlib.ExitStack() as fault:
            for line in lines:
                fault.close()
                if (what := line.strip()) != "pass":
                    fault.enter_context(proxy.cut() if what == "cut" else proxy.held())
                os.write(said, b"done\n")
        os._exit(0)
