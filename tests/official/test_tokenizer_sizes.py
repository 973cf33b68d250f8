"""Published tokenizers: every size that is published is there with its numbers, or on the list of those that are absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenloom.models.core import registry
from tokenloom.models.parts.adversarial.patch import parameters

#: Family of the published tables to size to parameters, None where no source says.
PUBLISHED = json.loads((Path(__file__).parents[1] / "fixtures" / "published_tokenizers.json").read_text())
#: Recipes of each family.
FAMILIES = {
    "llamagen-vq": ("vq",),
    "taming-vqgan": ("vq",),
    "stable-diffusion-vae": ("vq", "kl"),
    "var-vqvae": ("var_vq",),
    "flexvar-vq": ("flexvar_vq",),
    "maskgit-vqgan": ("maskgit_vqgan",),
    "mar-kl16": ("kl",),
    "va-vae": ("kl",),
    "tokenbridge": ("tokenbridge",),
    "ibq": ("ibq",),
    "infinity-bsq": ("infinity_bsq",),
    "titok": ("titok", "titok_onestage"),
    "bsq-vit": ("bsq",),
    "open-magvit2": ("lfq",),
    "simvq": ("simvq",),
    "vit-vqgan": ("vit_vq",),
}
#: Beginnings of the names of published sizes that no recipe has, and why.
ABSENT = {
    "taming-vqgan": {"VQGAN OpenImages f8 Gumbel": "no quantizer samples its codes by Gumbel noise"},
    "var-vqvae": {"vaex": "a quantizer of one scale with a residual convolution, which no method of the zoo has"},
    "bsq-vit": {"L24SQ": "its codes are points of the Leech lattice, which no quantizer has"},
    "infinity-bsq": {"Infinity VAE d14 f8": "its tokens are cells of 2 x 2, which only the generator's side has"},
    "titok": {
        "TiTok-LL-32 VAE": "the recipe has codes",
        "TiTok-BL-64 VAE": "the recipe has codes",
        "TiTok-BL-128 VAE": "the recipe has codes",
        "TA-TiTok": "the decoder has no text",
    },
}
#: Families whose recipes are built otherwise, as their "Differs" lines say.
WITHOUT = {
    *("d-ar", "digit", "equivariant", "flextok", "gigatok", "larp", "layton", "nfig", "unitok"),
    "xq-gan",
}


def test_every_family_of_the_published_tables_is_looked_at() -> None:
    assert set(PUBLISHED) == set(FAMILIES) | WITHOUT


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_tokenizer_is_there_with_its_numbers(family: str) -> None:
    """That ours have these numbers is held beside those of the generators."""
    ours = {size.key: size for name in FAMILIES[family] for size in registry.get(name).sizes}
    for key, count in PUBLISHED[family].items():
        if key.startswith(tuple(ABSENT.get(family, {"\n": ""}))):
            assert key not in ours, "no longer absent: take it off the list"
            continue
        assert key in ours, key
        assert count is None or ours[key].parameters == count, key


def test_every_size_of_a_tokenizer_is_published() -> None:
    known = {key for sizes in PUBLISHED.values() for key in sizes}
    ours = {size.key for name in registry.names("tokenizer") for size in registry.get(name).sizes}
    assert ours <= known, ours - known


def test_a_published_training_has_an_optimizer_for_each_phase() -> None:
    """LlamaGen's discriminator is PatchGAN, starts at step 20,000 with Adam of its own, and outweighs nothing by itself."""
    recipe = registry.get("vq")
    size = next(size for size in recipe.sizes if size.name == "VQ-16")
    assert size.training is not None
    settings = size.training.settings
    assert (settings.batch, settings.epochs) == (128, 40)
    assert settings.of("discriminator").betas == (0.9, 0.95)
    assert settings.of("discriminator").weight_decay == settings.of("autoencoder").weight_decay == 0.0
    adversarial = recipe.config({"size": "VQ-16"}).adversarial  # type: ignore[attr-defined]
    assert (adversarial.start, adversarial.weight, adversarial.balance) == (20_000, 0.5, "constant")
    assert parameters(adversarial.discriminator) == 2_765_633


def test_published_losses_are_values() -> None:
    adversarial = registry.get("ibq").config({"size": "IBQ 16384"}).adversarial  # type: ignore[attr-defined]
    assert (adversarial.generator, adversarial.lecam.weight, adversarial.lecam.decay) == ("non_saturating", 0.05, 0.999)
    drops = next(size for size in registry.get("ibq").sizes if size.training).training.settings.optimizer.drops  # type: ignore[union-attr]
    assert [round(330 * share) for share, _ in drops] == [250, 300]
