"""Files of published checkpoints on the Hugging Face hub: ``hf:OWNER/NAME``, ``hf:OWNER/NAME/FILE``, either with ``@REVISION``.

Without a network only the hub's cache on this machine is looked at, unless ``HF_HUB_OFFLINE=0`` is set.  ``HF_ENDPOINT`` names another hub.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenloom.models.core.config import ConfigError

PREFIX = "hf:"
_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([\w./-]+))?")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at a revision (a branch, tag or commit)."""

    repository: str
    file: str
    revision: str = "main"
    argument: str = "--weights"  # how a person gave it

    @classmethod
    def parse(cls, address: str, default: str = "", argument: str = "--weights") -> HubFile:
        """The file of an address; ``default`` is the one that a repository alone means.

        Raises:
            ConfigError: no such address, or it names no file and nothing else does.
        """
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise ConfigError(f"{argument} {address!r}: write hf:OWNER/NAME, hf:OWNER/NAME/FILE, or either with @REVISION")
        if not (file := match[2] or default):
            raise ConfigError(f"{argument} {address!r}: says no file, and no published name does; write {address.partition('@')[0]}/FILE")
        return cls(match[1], file, match[3] or "main", argument)

    def fetch(self) -> Path:
        """The file on this machine, downloaded into the hub's cache where it is not there.

        Raises:
            ConfigError: the package is missing, the file is not here and the network is not to be used, or the hub has no such file.
        """
        where = f"{self.argument} hf:{self.repository}/{self.file}@{self.revision}"
        try:
            import huggingface_hub
            from huggingface_hub.errors import LocalEntryNotFoundError
        except ImportError as error:
            raise ConfigError(f"{where}: needs the package huggingface_hub; install tokenloom[hub], or give a file") from error
        alone = os.environ.get("HF_HUB_OFFLINE", "1") != "0"
        asked: Any = {"revision": self.revision, "local_files_only": alone, "endpoint": os.environ.get("HF_ENDPOINT")}
        try:
            return Path(huggingface_hub.hf_hub_download(self.repository, self.file, **asked))
        except LocalEntryNotFoundError as error:
            if alone:
                raise ConfigError(f"{where}: not in this machine's cache of the hub; set HF_HUB_OFFLINE=0 to fetch it") from error
            raise ConfigError(f"{where}: the hub cannot be reached: {' '.join(str(error).split())[:200]}") from error
        except (OSError, ValueError) as error:  # no such repository, revision or file; or one that needs a login
            raise ConfigError(f"{where}: cannot be had ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error


def weights_file(given: str | Path, default: str = "", argument: str = "--weights") -> Path:
    """The checkpoint file behind an ``argument``: a path, or an address of the hub.

    Raises:
        ConfigError: no such file, or see ``HubFile``.
    """
    if str(given).startswith(PREFIX):
        return HubFile.parse(str(given), default, argument).fetch()
    path = Path(given)
    if not path.is_file():
        raise ConfigError(f"{argument} {str(given)!r}: there is no such file; give a file, or hf:OWNER/NAME")
    return path
