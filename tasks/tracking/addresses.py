"""Where runs are tracked, and the login that an address may carry: it goes its own way, and nothing prints it.

MLflow prints the address of each run that ends, names it in errors and takes it apart nowhere; so MLflow is given an address
without a login, and the login in the variables that it reads (``MLFLOW_TRACKING_USERNAME``, ``MLFLOW_TRACKING_PASSWORD``).
"""

from __future__ import annotations

import base64
import os
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tokenloom.models.core.config import ConfigError

VARIABLE = "MLFLOW_TRACKING_URI"
_USER, _PASSWORD, _TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
_HTTP = ("http://", "https://")
_SQLITE = "sqlite:///"
_DATABASES = ("postgresql", "mysql", "mssql")  # others that MLflow can keep its tables in


def tracking(given: str | None, root: Path) -> str:
    """The address of tracking: the one of the cluster file, else ``MLFLOW_TRACKING_URI``, else SQLite under the root.

    A login in the address of a server is moved into MLflow's variables: every library of this process and its children finds it there.

    Raises:
        ConfigError: an address that cannot be one, or of a kind that is not supported.
    """
    address = given or os.environ.get(VARIABLE) or f"sqlite:///{Path(root).absolute() / 'mlflow.db'}"
    address = supported(address, "cluster.tracking_uri" if given else VARIABLE)
    plain, user, password = split(address)
    if user:
        os.environ |= {_USER: user, _PASSWORD: password}
        if given is None:
            os.environ[VARIABLE] = plain
    return plain


def supported(address: str, where: str) -> str:
    """The address, with the whole path of a file.

    Raises:
        ConfigError: neither a server nor a database.
    """
    scheme = address.partition("://")[0].lower() if "://" in address else ""
    if address.startswith(_HTTP) or scheme.partition("+")[0] in _DATABASES:
        return address
    if not address.startswith(_SQLITE) or "?" in address or not (path := address.removeprefix(_SQLITE)):
        raise ConfigError(
            f"{where}: {shown(address)!r} is no address of tracking; give http(s)://HOST:PORT of an MLflow server, "
            "sqlite:////WHOLE/PATH/mlflow.db, or leave it out (SQLite under the root)"
        )
    return f"{_SQLITE}{Path(path).absolute()}"


def is_own(address: str, root: Path) -> bool:
    """Whether an address is the database below a root, by whatever path."""
    path, own = Path(address.removeprefix(_SQLITE)), Path(root) / "mlflow.db"
    return address.startswith(_SQLITE) and (path == own or (path.is_file() and own.is_file() and path.samefile(own)))


def check(address: str) -> None:
    """See that the file of an SQLite address can be a database and be written.

    Raises:
        ConfigError: what is wrong with it.
    """
    if not address.startswith(_SQLITE):
        return
    path = Path(address.removeprefix(_SQLITE))
    advice = "give another address of tracking (tracking_uri of the cluster file, MLFLOW_TRACKING_URI), or put it right"
    if not path.parent.is_dir():
        raise ConfigError(f"tracking {address}: there is no folder {str(path.parent)!r}; {advice}")
    if not path.exists():
        return
    try:
        with open(path, "r+b") as file:
            head = file.read(16)
    except OSError as error:
        raise ConfigError(f"tracking {address}: cannot be written: {error.strerror}; {advice}") from error
    if head and head != b"SQLite format 3\0":
        raise ConfigError(f"tracking {address}: the file is no SQLite database; {advice}")


def split(address: str) -> tuple[str, str, str]:
    """A server's address without its login, and the user and password in it, empty where there is none; other addresses stay whole.

    Raises:
        ConfigError: no host and port, or half a login.
    """
    if not address.startswith(_HTTP):
        return address, "", ""
    try:
        parts = urlsplit(address)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        # The address itself is not shown: what is wrong with it may be its password.
        raise ConfigError("the tracking address is no http://host:port; in a password write %2F for /, %40 for @, %3A for :, %23 for #")
    if "@" not in parts.netloc:
        return address, "", ""
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user or not password:
        raise ConfigError(f"the tracking address {shown(address)}: the login in it is not USER:PASSWORD")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), user, password


def shown(address: str) -> str:
    """An address for people: without a login, and without a query, which may hold one too."""
    scheme, mark, rest = address.partition("://")
    if not mark or scheme in ("sqlite", "file"):
        return address
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def unnamed(address: str | None) -> str | None:
    """The address of a cluster file as it may be passed on and kept: one with a login goes by the environment alone.

    Prefect shows the parameters of a flow to everybody, a cluster file among them.
    """
    if address is None or shown(address) == address:
        return address
    os.environ[VARIABLE] = address
    return None


def request(address: str, path: str) -> urllib.request.Request:
    """A request to a server, with the login that MLflow's own client would send: the address's, else that of its variables."""
    plain, user, password = split(address)
    made = urllib.request.Request(f"{plain.rstrip('/')}/{path}")
    user, password = (user, password) if user else (os.environ.get(_USER, ""), os.environ.get(_PASSWORD, ""))
    if user and password:
        made.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
    elif token := os.environ.get(_TOKEN):
        made.add_header("Authorization", f"Bearer {token}")
    return made
