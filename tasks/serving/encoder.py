"""Frozen text encoders of the library ``transformers``, an optional extra: captions to features.

Shapes: N texts, T pieces of text, F feature width.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.requests import TextFeatures

_MISSING = "text encoder {!r}: needs the package transformers; install tokenloom[text]"


@dataclass(frozen=True)
class FrozenEncoder:
    """The last hidden states of a text model (T5, BERT, CLIP's text side, …) for texts of at most ``length`` pieces.

    ``name`` is a folder or a name on the Hugging Face hub; without a network only what is on this machine is looked at, unless
    ``HF_HUB_OFFLINE=0`` is set.  Each text is encoded alone, so that its features do not depend on the others.
    """

    name: str
    length: int
    features: int
    padding: Literal["right", "left"] = "right"  # the side on which shorter texts are padded

    def check(self) -> None:
        """Refuse, without opening it, an encoder that cannot work.

        Raises:
            ConfigError: the package is not installed, or ``name`` is a folder that is not there or not written in full.
        """
        if importlib.util.find_spec("transformers") is None:
            raise ConfigError(_MISSING.format(self.name))
        folder = Path(self.name)
        if (folder.is_dir() and not folder.is_absolute()) or (not folder.is_dir() and self.name.startswith((".", "~", "/"))):
            raise ConfigError(f"text encoder {self.name!r}: give a hub name, or the whole path of a folder that all nodes have")

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        """Features (N, ``length``, F) float32, zero where they are padded, and their mask; the empty text has none at all.

        Raises:
            ConfigError: the encoder cannot be had or is of another width, or a text that is too long, naming it.
        """
        feature = torch.zeros(len(texts), self.length, self.features)
        mask = torch.zeros(len(texts), self.length, dtype=torch.bool)
        if any(texts):
            split, model, width = _opened(self.name)
            if width != self.features:
                raise ConfigError(f"condition.features={self.features}: the encoder {self.name!r} has features of width {width}")
            for row, text in enumerate(texts):
                if text:
                    pieces = split(text, return_tensors="pt")
                    count = pieces["input_ids"].shape[1]
                    if count > self.length:
                        raise ConfigError(f"text {text!r}: {count} pieces, this model takes at most {self.length} (condition.length)")
                    place = slice(0, count) if self.padding == "right" else slice(self.length - count, self.length)
                    feature[row, place] = model(**pieces).last_hidden_state[0].float()
                    mask[row, place] = True
        return TextFeatures(feature, mask)

    def digest(self) -> str:
        """Hash of the encoder's files (for a hub name: of its name) and of the settings here."""
        folder, seen = Path(self.name), hashlib.sha256(f"{self.length}\0{self.features}".encode())
        if self.padding != "right":
            seen.update(self.padding.encode())
        if folder.is_dir():
            seen.update(_hash_of(folder, _stamp(folder)).encode())
        else:
            seen.update(self.name.encode())
        return seen.hexdigest()


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir()) if f.is_file())


@cache
def _hash_of(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    seen = hashlib.sha256()
    for name, _, _ in stamp:
        with open(folder / name, "rb") as file:
            seen.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return seen.hexdigest()


@cache
def _opened(name: str) -> tuple[Any, Any, int]:
    """Splitter into pieces, model and feature width."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(_MISSING.format(name)) from error
    alone = os.environ.get("HF_HUB_OFFLINE", "1") != "0"
    try:
        settings = transformers.AutoConfig.from_pretrained(name, local_files_only=alone)
        split = transformers.AutoTokenizer.from_pretrained(name, local_files_only=alone)
        if settings.model_type.startswith("clip"):
            kind: Any = transformers.CLIPTextModel
        elif type(settings) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:  # of T5 and its like the encoder alone
            kind = transformers.AutoModelForTextEncoding
        else:
            kind = transformers.AutoModel
        model, report = kind.from_pretrained(name, local_files_only=alone, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"text encoder {name!r}: cannot be opened ({str(error).splitlines()[0]}); give its folder") from error
    if absent := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise ConfigError(f"text encoder {name!r}: its files lack weights, {absent[0]} is the first of {len(absent)}")
    return split, model.float().eval(), int(model.config.hidden_size)
