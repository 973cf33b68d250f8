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


def tracking(given: str | None, root: Path) -> str:
    """The address of tracking: the one of the cluster file, else ``MLFLOW_TRACKING_URI``, else SQLite under the root.

    A login in the address of a server is moved into MLflow's variables: every library of this process and its children finds it there.

    Raises:
        ConfigError: an address of a server that cannot be one.
    """
    address = given or os.environ.get(VARIABLE) or f"sqlite:///{Path(root).absolute() / 'mlflow.db'}"
    plain, user, password = split(address)
    if user:
        os.environ |= {_USER: user, _PASSWORD: password}
        if given is None:
            os.environ[VARIABLE] = plain
    return plain


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
