"""Keeps a signal that is sent to a whole process group (Ctrl-C in a terminal, SIGTERM of a batch system) from hitting servers.

Ray's and Prefect's local servers are our children. Were they ended at the same moment as the run, it could neither save its
state nor say that it has stopped. So the work goes on in a child with a session of its own, and its parent, which alone stays
in the terminal's group, hands each signal to it once. Where the child ends without a word (out of memory; Ray ends the process
that has lost its daemon), the parent says so, and ends what the child has left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_writers: list[int] = []  # in the child: where it says that it ends by itself


def guard() -> None:
    """Return in a child process, which calls ``ending`` at its end; the parent never returns, it ends with the child's exit code.

    The child dies with its parent, so that killing this command always ends the work. Call it before threads are started.
    """
    if not hasattr(os, "fork"):
        return
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # Held until the handlers stand, so that no signal falls between.
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where a launcher ignores it, nobody would learn how the child has ended
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _writers.append(writer)
        os.setsid()
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        return

    def hand_on(number: int, _frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM if number == signal.SIGHUP else number)

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    os.set_blocking(reader, False)  # processes that the child has left may hold the other end open
    os.close(writer)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(BlockingIOError):
        if os.read(reader, 1):
            os._exit(code if code >= 0 else 128 - code)
    how = f"exit code {code}" if code >= 0 else f"{signal.Signals(-code).name}, as when memory runs out"
    sys.stderr.write(
        f"tokenloom: the run ended without a word ({how}): it was killed, or lost a Ray process that it needs. "
        "What is finished is kept: the same command goes on\n"
    )
    sys.stderr.flush()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGTERM)
    os._exit(code if code >= 0 else 128 - code)


def ending() -> None:
    """In the child: what there was to say is said, so the parent need not say anything."""
    if _writers:
        os.write(_writers[0], b".")


def _die_with(parent: int) -> None:
    """Have this process killed when its parent ends, also when that has happened already."""
    end_with_parent()
    if os.getppid() != parent:  # it ended before the call
        os._exit(128 + signal.SIGKILL)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """In a child process: have the kernel send this signal when the parent ends (Linux; elsewhere nothing happens)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
