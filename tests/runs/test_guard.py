"""The parent of a run: what it says and leaves when the run ends by itself, and when it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parents[2]
START = "import os, signal, subprocess, sys, time; from tokenloom.flows.guard import ending, guard; guard(); "


def guarded(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60, cwd=HERE, check=False)


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_that_ends_by_itself_is_not_spoken_for(code: int) -> None:
    done = guarded(f"ending(); sys.exit({code})")
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    ("end", "code", "how"), [("os._exit(3)", 3, "exit code 3"), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL, "SIGKILL")]
)
def test_a_run_that_ends_without_a_word_is_spoken_for(end: str, code: int, how: str) -> None:
    done = guarded(end)
    assert done.returncode == code
    assert done.stderr.startswith("tokenloom: the run ended without a word")
    assert how in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("code", [0, 3])
def test_a_launcher_that_ignores_its_children_changes_nothing(code: int) -> None:
    ignoring = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    command = [sys.executable, "-c", f"{ignoring}{START}ending(); sys.exit({code})"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HERE, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_what_such_a_run_has_started_ends_with_it(tmp_path: Path) -> None:
    note, sleeps = tmp_path / "pid", "[sys.executable, '-c', 'import time; time.sleep(300)']"
    quiet = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    guarded(f"open({str(note)!r}, 'w').write(str(subprocess.Popen({sleeps}, {quiet}).pid)); os._exit(1)")
    pid, deadline = int(note.read_text()), time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    if alive(pid):
        os.kill(pid, signal.SIGKILL)
        pytest.fail("it runs on")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
