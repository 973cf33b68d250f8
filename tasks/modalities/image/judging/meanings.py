"""What a reader should know about the numbers and pictures of images; light, as the room's interface imports it."""

from __future__ import annotations

from tokenloom.tasks.modalities.base import Comparison

#: What each entry of ``evaluate.metrics`` measures; the last one is always there.
MEASURED: dict[str, tuple[str, ...]] = {
    "fd": ("fd", "fid"),
    "sfid": ("sfid",),
    "kid": ("kid",),
    "is": ("is",),
    "precision_recall": ("precision", "recall"),
    "density_coverage": ("density", "coverage"),
    "nll": ("nll_bits_per_image", "nll_bits_per_dim", "bound_bits_per_dim"),
    "recognition": ("recognition",),
    "memorisation": ("memorisation_ratio", "copies"),
    "reconstruction": (
        "rfd",
        "rfid",
        "psnr",
        "ssim",
        "detail",
        "codebook_use",
        "codebook_perplexity",
        "bits_per_image",
        "tokens_per_image",
        "encoded_per_second",
        "decoded_per_second",
    ),
    "text": ("text", "text_accuracy"),
    "": ("images_per_second", "net_calls", "tokens_per_call"),
}
#: Metrics whose names begin so, which way is better, what it is.
MEANINGS = (
    ("fid_infinity", "lower", "Fréchet Inception distance extrapolated to infinitely many samples (Chong & Forsyth 2020)"),
    ("fid_low", "", "lower end of the 95 % interval of the Fréchet Inception distance, by bootstrap over the samples"),
    ("fid_high", "", "its upper end"),
    ("fd_", "lower", "Fréchet distance of the feature network's features to the held-out images (not FID: another network)"),
    ("fid_", "lower", "Fréchet Inception distance after another resize than the published evaluators'"),
    ("fid", "lower", "Fréchet Inception distance to the reference images"),
    ("sfid", "lower", "the Fréchet Inception distance of features by position, which see arrangement"),
    ("sfid_", "lower", "the same after another resize than the published evaluators'"),
    ("rfid_", "lower", "Fréchet Inception distance of reconstructions after another resize than the published evaluators'"),
    ("rfid", "lower", "Fréchet Inception distance of reconstructed to original held-out images"),
    ("kid_", "lower", "kernel distance to the held-out images, unbiased"),
    ("is_", "higher", "inception score with the feature network as the classifier"),
    ("kid", "lower", "kernel Inception distance to the reference images, unbiased"),
    ("is", "higher", "Inception score"),
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
    ("images_per_second", "higher", "samples a second of one worker"),
    ("net_calls", "lower", "calls of the net for one sample (a group a call, or a window of drafted tokens)"),
    ("draft_calls", "lower", "calls of the draft model for one sample"),
    ("tokens_per_call", "higher", "tokens of a sample that one call of the net decides on average"),
)
TITLES = {
    "samples": "Samples, one row a class",
    "nearest": "Samples (above) and their nearest training images (below)",
    "reconstructions": "Held-out images (above) through the tokenizer (below)",
    "text": "Drawn text (above) through the tokenizer (below)",
    "codebook": "Use of the codebook",
    "curves": "Training curves",
}
#: How a leaderboard of images shows its runs.
COMPARISON = Comparison(
    headline=("fid", "fid_", "fd_", "rfid", "rfid_", "rfd_"),
    columns=(
        "fid", "fid_", "sfid", "sfid_", "kid", "is", "rfid", "rfid_",
        "fd_", "kid_", "is_", "precision", "recall", "density", "coverage", "recognition", "memorisation_ratio",
        "nll_bits_per_image", "nll_bits_per_dim", "bound_bits_per_dim", "rfd_", "psnr",
        "ssim", "detail", "text", "codebook_use", "codebook_perplexity",
        "tokens_per_image", "bits_per_image", "encoded_per_second", "decoded_per_second", "images_per_second",
        "net_calls", "tokens_per_call", "parameters",
    ),
    within_tokenizer=("nll_bits_per_image", "nll_bits_per_dim"),
    of_samples=("samples", "class_balance", "seed", "shard", "manifold", "recognition", "memorisation"),
    speed="images_per_second",
    budget="bits_per_image",
)  # fmt: skip
#: Metrics of a model card, in order.
CARD = (
    "fid", "sfid", "kid", "is", "rfid",
    "fd_", "kid_", "is_", "precision", "recall", "density", "coverage", "recognition", "memorisation_ratio", "copies",
    "nll_bits_per_image", "nll_bits_per_dim", "bound_bits_per_dim",
    "rfd_", "psnr", "ssim", "codebook_use", "images_per_second", "net_calls", "tokens_per_call",
    "parameters",
)  # fmt: skip
