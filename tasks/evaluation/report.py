"""The report of an evaluation: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tokenloom.tasks import modalities

#: What a reader should know about a number: metrics whose names begin so, which way is better, what it is.
MEANING = (
    ("fd_", "lower", "Fréchet distance of the feature network's features to the held-out images (not FID: another network)"),
    ("kid_", "lower", "kernel distance to the held-out images, unbiased"),
    ("is_", "higher", "inception score with the feature network as the classifier"),
    ("precision", "higher", "share of samples on the manifold of real images"),
    ("recall", "higher", "share of real images on the manifold of the samples"),
    ("density", "higher", "how deep samples lie in the real manifold; 1 for equal distributions"),
    ("coverage", "higher", "share of real images with a sample in their neighbourhood"),
    ("recognition_ceiling", "", "the same machine on held-out real images: the most that can be expected"),
    ("recognition", "higher", "share of samples that an SVM trained on real images takes for their class"),
    (
        "memorisation_ratio",
        "near 1",
        "median distance of samples to the nearest training image over that of held-out images; low is copying",
    ),
    ("copies", "lower", "share of samples that are a training image, pixel for pixel"),
    ("nll_bits_per_image", "lower", "bits to code a held-out image's tokens; compares only within one tokenizer"),
    ("nll_bits_per_dim", "lower", "the same over the number of image values"),
    ("bound_bits_per_dim", "lower", "bits to code a value of a held-out image itself, at most: an upper bound of a density's"),
    ("rfd_", "lower", "Fréchet distance of reconstructed to original held-out images"),
    ("psnr", "higher", "peak signal-to-noise ratio of reconstructions, dB"),
    ("ssim", "higher", "structural similarity of reconstructions"),
    ("detail", "higher", "signal-to-noise ratio of reconstructed fine detail, dB; 0 is none of the original's detail"),
    ("text_accuracy", "higher", "share of drawn characters that an OCR program reads in reconstructions"),
    ("text_ceiling", "", "the same program on the originals: the most that can be expected"),
    ("text", "higher", "the first over the second: text that a reader loses nothing of has 1"),
    ("bits_per_image", "lower", "size of an image's tokens before entropy coding, bits; the budget within which tokenizers compare"),
    ("tokens_per_image", "lower", "positions of an image's token sequence"),
    ("encoded_per_second", "higher", "images encoded a second, in one process"),
    ("decoded_per_second", "higher", "images decoded a second, in one process"),
    ("codebook_use", "higher", "share of codes that occur in the held-out images"),
    ("codebook_perplexity", "higher", "effective number of codes"),
    ("images_per_second", "higher", "samples a second of one worker"),
    ("net_calls", "lower", "calls of the net for one sample (a group a call, or a window of drafted tokens)"),
    ("draft_calls", "lower", "calls of the draft model for one sample"),
    ("tokens_per_call", "higher", "tokens of a sample that one call of the net decides on average"),
    ("parameters", "", "trainable parameters"),
)
TITLES = {
    "samples": "Samples, one row a class",
    "nearest": "Samples (above) and their nearest training images (below)",
    "reconstructions": "Held-out images (above) through the tokenizer (below)",
    "text": "Drawn text (above) through the tokenizer (below)",
    "codebook": "Use of the codebook",
    "curves": "Training curves",
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "img{max-width:100%;height:auto;border:1px solid #ddd}table{border-collapse:collapse}"
    "td,th{text-align:left;padding:.15rem .8rem .15rem 0;border-bottom:1px solid #eee;vertical-align:top}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}pre{background:#f6f6f6;padding:.8rem;overflow:auto}"
)


def all_meanings() -> tuple[tuple[str, str, str], ...]:
    """What is known of metrics, those of every kind of signal included."""
    return (*MEANING, *(row for modality in modalities.kinds().values() for row in modality.meanings))


def meaning(name: str) -> tuple[str, str]:
    """(which way is better, what it is) of a metric; empty for one that is not known."""
    for prefix, better, text in all_meanings():
        if name.startswith(prefix):
            return better, text
    return "", ""


def number(value: Any) -> str:
    """A number for people: whole and large ones in full, others with four digits."""
    if isinstance(value, (int, float)) and abs(value) >= 1 and (float(value).is_integer() or 1e4 <= abs(value) < 1e12):
        value = round(value)
        return f"{int(value):,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def page(name: str, numbers: Mapping[str, Any], notes: Mapping[str, Any], lineage: Mapping[str, str], images: Mapping[str, bytes]) -> str:
    """The whole report; ``images`` are PNG bytes by name."""
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td class=n>{number(numbers[key])}</td><td>{escape(meaning(key)[0])}</td>"
        f"<td>{escape(meaning(key)[1])}</td></tr>"
        for key in sorted(numbers, key=_place)
        if not key.endswith("_deviation")
    )
    figures = "".join(
        f'<h2>{escape(TITLES.get(key, key))}</h2><img alt="{escape(TITLES.get(key, key))}" '
        f'src="data:image/png;base64,{base64.b64encode(images[key]).decode()}">'
        for key in sorted(images, key=lambda k: list(TITLES).index(k) if k in TITLES else len(TITLES))
    )
    made_of = "".join(f"<tr><td>{escape(role)}</td><td>{escape(artifact)}</td></tr>" for role, artifact in lineage.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation of {escape(name)}</title><style>{_STYLE}</style>'
        f"<h1>Evaluation of {escape(name)}</h1>"
        f"<table><tr><th>metric</th><th>value</th><th>better</th><th></th></tr>{rows}</table>{figures}"
        f"<h2>Made from</h2><table>{made_of}</table>"
        f"<h2>Protocol</h2><p>Numbers of two evaluations compare only under the same protocol.</p>"
        f"<pre>{escape(json.dumps(notes, indent=1, sort_keys=True))}</pre></html>\n"
    )


def _place(name: str) -> tuple[int, str]:
    for i, (prefix, _, _) in enumerate(MEANING):
        if name.startswith(prefix):
            return i, name
    return len(MEANING), name


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers are written as in reports, None is an empty cell."""

    def cell(value: Any) -> str:
        return "" if value is None else value if isinstance(value, str) else number(value)

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
