"""What a process finds around it: where it stands, proxies, temporary folders, variables.

``settle`` puts right what can be put right, for this process and all that it starts; ``check`` refuses the rest before work starts.
Nothing here imports more than the standard library, so that it can come first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tokenloom.models.core.config import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Characters of the folder below which Ray puts its sockets: their paths, some 66 characters longer, must stay below 108 (unix(7)).
LONGEST_TEMPORARY = 36
#: Bytes that a temporary folder has to have free: Ray's logs and sockets, and a model on its way into the registry.
LEAST_TEMPORARY = 64 << 20
#: Bytes that the root folder has to have free: databases and logs.
LEAST_ROOT = 16 << 20
#: Bytes of a root's path: SQLite takes 512 for a database and its journal.
LONGEST_ROOT = 400
_SHORT = "/tmp"
_PATHS = (
    *("TMPDIR", "TEMP", "TMP", "RAY_TMPDIR", "TOKENLOOM_NODE_ROOT", "PREFECT_HOME", "PREFECT_PROFILES_PATH", "HF_HOME"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "AWS_CONFIG_FILE"),
    *("AWS_SHARED_CREDENTIALS_FILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"),
)  # variables that hold one path, which children must not read from elsewhere
#: Other programs' settings of one run of theirs, which would be taken for settings of ours.
_FOREIGN = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI")


def settle() -> None:
    """See that nothing is imported from where a person stands, and that loopback is reached without a proxy; may be called again."""
    os.environ["PYTHONSAFEPATH"] = "1"  # of the children: this process is past it
    if given := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(_whole(each) for each in given.split(os.pathsep) if each not in ("", ".", "./"))
    bypass_loopback()
    for name in _FOREIGN:
        os.environ.pop(name, None)
    drop_socks()
    os.environ["MPLBACKEND"] = "agg"  # the only one that draws here; a notebook leaves the name of its own
    for name in _PATHS:
        if (path := os.environ.get(name)) and not path.startswith("~"):
            os.environ[name] = _whole(path)


def _whole(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # nobody knows where we stand; ``check_here`` says so
        return path


def check_here() -> None:
    """Refuse to work where a person stands if that folder is gone: libraries ask for it at any moment.

    Raises:
        ConfigError: it is.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError("the folder where you stand is gone (removed, or its disk is away): cd somewhere else first") from error


def leave_here() -> None:
    """Import nothing more from where a person stands (``python -m`` puts that first), unless ``PYTHONPATH`` names it in full."""
    with contextlib.suppress(OSError):  # the folder may be gone
        here = os.getcwd()
        if here not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
            sys.path[:] = [each for each in sys.path if each and os.path.abspath(each) != here]


def open_streams() -> None:
    """Give standard streams that were closed a place to go: else the next file that is opened gets their number, and what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115 - it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of names that the terminal's encoding has no letters for


def bypass_loopback() -> None:
    """Add loopback to what is reached without a proxy, in both spellings of the variable."""
    names = ("no_proxy", "NO_PROXY")
    either = next((os.environ[name] for name in names if os.environ.get(name)), "")  # the small letters win, as everywhere
    for name in names:
        given = [each.strip() for each in (os.environ.get(name) or either).split(",") if each.strip()]
        known = [*given, *(each for each in LOOPBACK if each not in given)]
        os.environ[name] = "*" if "*" in given else ",".join(known)  # Python knows a lone star only


def drop_socks() -> None:
    """Forget a SOCKS proxy for everything (``ALL_PROXY``) that Prefect's client cannot speak to: it would not even reach loopback."""
    for name in ("all_proxy", "ALL_PROXY"):
        scheme = os.environ.get(name, "").partition("://")[0].lower()
        if scheme == "socks" or (scheme.startswith("socks") and importlib.util.find_spec("socksio") is None):
            del os.environ[name]


def proxied(address: str) -> str:
    """What a message adds on a server that is reached through a proxy: the proxy, and the variables; empty where there is none."""
    parts = urlsplit(address)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    where = proxy.rpartition("@")[2]  # without a login
    return f", through the proxy {where} ({parts.scheme}_proxy); if it is reached without one, add {parts.hostname} to no_proxy"


@contextlib.contextmanager
def neutral(root: Path) -> Iterator[Path]:
    """Stand in an empty folder of the root while something is started: it goes by files, and imports, from where it stands."""
    folder = neutral_folder(root)
    try:
        before = os.getcwd()
    except OSError:  # it is gone
        before = str(folder)
    os.chdir(folder)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            os.chdir(before)


def neutral_folder(root: Path) -> Path:
    """The empty folder of a root in which servers and workers start."""
    folder = Path(root).absolute() / "logs" / "empty"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shorten_temporary() -> None:
    """Give Ray another folder where ``TMPDIR`` is too long for its sockets, or has characters that its command lines break at.

    Raises:
        ConfigError: there is no other.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(name)
        if not folder:
            continue
        if len(folder) <= LONGEST_TEMPORARY and re.fullmatch(r"/[\w.,+=@~/-]*", folder, re.ASCII):
            return
        if name == "RAY_TMPDIR" or not os.access(_SHORT, os.W_OK | os.X_OK):
            raise ConfigError(
                f"{name}={folder!r}: Ray's sockets need a folder of at most {LONGEST_TEMPORARY} characters without blanks or the like; "
                "set RAY_TMPDIR to one"
            )
        os.environ["RAY_TMPDIR"] = _SHORT


def check(root: Path) -> None:
    """Refuse what a run would break at half-way: a folder that cannot be written or is full, certificates that are gone.

    Raises:
        ConfigError: names the folder or file, the variable that says so, and what to do.
    """
    check_root(root)
    check_temporary()
    check_certificates()


def check_root(root: Path) -> None:
    """The part of ``check`` that is about the root folder."""
    refuse_root(root)
    refuse_unwritable(root, f"--root {str(root)!r}", "choose another with --root or TOKENLOOM_ROOT", LEAST_ROOT)


def check_temporary() -> str:
    """The part of ``check`` that is about temporary folders; the one that Ray will use."""
    name = next((each for each in ("TMPDIR", "TEMP", "TMP") if os.environ.get(each)), None)
    folder = os.environ[name] if name else tempfile.gettempdir()
    what = f"{name}={folder!r}" if name else f"temporary folder {folder!r}"
    refuse_unwritable(Path(folder), what, f"make room there, or set {name or 'TMPDIR'} to another folder", LEAST_TEMPORARY)
    shorten_temporary()
    if short := os.environ.get("RAY_TMPDIR"):
        refuse_unwritable(
            Path(short), f"RAY_TMPDIR={short!r}", "make room there, or set RAY_TMPDIR to another short folder", LEAST_TEMPORARY
        )
    return short or os.environ.get("TMPDIR") or _SHORT


def check_certificates() -> None:
    """The part of ``check`` that is about certificates: no client can be made, not even one without TLS, where a variable names none."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if (path := os.environ.get(name)) and not os.path.exists(path):
            raise ConfigError(f"{name}={path!r}: there is no such {'folder' if name.endswith('DIR') else 'file'}; correct or unset it")


def refuse_root(root: Path) -> None:
    """A root that databases or their addresses cannot hold.

    Raises:
        ConfigError: names the character.
    """
    text = str(root)
    if (length := len(os.fsencode(text))) > LONGEST_ROOT:
        raise ConfigError(f"--root {text[:60]!r}…: its path has {length} bytes, a database's may have {LONGEST_ROOT}; choose a shorter one")
    if odd := next((each for each in text if each == "?" or not each.isprintable()), None):
        raise ConfigError(
            f"--root {text!r}: a database's address cannot hold {odd!r}; choose another with --root or TOKENLOOM_ROOT, or rename the folder"
        )


def refuse_unwritable(folder: Path, what: str, advice: str, least: int) -> None:
    """A folder that is missing, cannot be written, or has too little room.

    Raises:
        ConfigError: with ``what`` and ``advice``.
    """
    if not folder.is_dir():
        raise ConfigError(f"{what}: {'is not a folder' if folder.exists() else 'there is no such folder'}; {advice}")
    probe = folder / f".tokenloom-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_bytes(bytes(4096))
    except OSError as error:
        raise ConfigError(f"{what}: cannot be written: {error.strerror}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    if (free := shutil.disk_usage(folder).free) < least:
        raise ConfigError(f"{what}: {free / 1e6:.0f} MB are free there, {least / 1e6:.0f} MB are needed; {advice}")
