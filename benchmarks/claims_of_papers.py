"""The claim of each paper in one line, and the rule by which the leaderboard of generators checks it."""

from __future__ import annotations

from claims import Cheaper, Claim, Passes, Quality, Shown

#: "Near equal": a distance at most a tenth larger.
NEAR = 1.1

CLAIMS = {
    "rar": Claim("permuted orders annealed to raster beat raster trained as long", (Quality("raster"),)),
    "randar": Claim(
        "random order with parallel decoding: half the passes near raster's quality",
        (Passes(than="raster", fewer=2), Quality("raster", NEAR)),
    ),
    "arpg": Claim(
        "any order and group size; half the passes near raster's quality", (Passes(than="raster", fewer=2), Quality("raster", NEAR))
    ),
    "par": Claim(
        "distant tokens in parallel: fewer passes near raster's quality", (Passes(than="raster", fewer=2), Quality("raster", NEAR))
    ),
    "nar": Claim("near-to-far: 2n - 1 passes on an n x n grid, quality near raster's", (Passes(count=7), Quality("raster", NEAR))),
    "npp": Claim("patches first: 0.6 of the training cost, at equal cost better", (Cheaper("raster", 0.7), Quality("raster"))),
    "token_shuffle": Claim(
        "windows of s x s tokens a step: s^2 fewer passes near raster's quality", (Passes(count=4), Quality("raster", NEAR))
    ),
    "coarse_to_fine": Claim("coarse labels in sequence, all codes at once: better than raster", (Quality("raster"),)),
    "maskgit": Claim(
        "masked decoding by confidence: fewer passes at raster's quality or better", (Passes(than="raster", fewer=2), Quality("raster"))
    ),
    "halton_maskgit": Claim("a Halton sequence in place of confidence: better than MaskGIT", (Quality("maskgit"),)),
    "vq_ddm": Claim(
        "discrete diffusion over codes; in-painting without training", (Shown("test_inpainting_keeps_what_is_given_and_heeds_it"),)
    ),
    "discrete_interpolants": Claim(
        "masked and discrete-flow sampling are one design space; as good as MaskGIT", (Quality("maskgit", NEAR),)
    ),
    "sigma_gpt": Claim(
        "any order per sample, bursts with rejection keep the distribution", (Shown("test_bursts_are_distributed_as_one_by_one_decoding"),)
    ),
    "oar": Claim("orders found by likelihood beat raster", (Quality("raster"),)),
    "heptapod": Claim("every state predicts the whole rest of the grid: better than raster", (Quality("raster"),)),
    "aim": Claim(
        "a Mamba net: constant memory in decoding, quality near a transformer's",
        (Shown("test_the_state_does_not_grow"), Quality("raster", NEAR)),
    ),
    "vir": Claim("retention: recurrent form equals parallel form", (Shown("test_three_forms_of_retention_are_equal"),)),
    "aaren": Claim(
        "attention as a scan: constant memory, streaming equals parallel", (Shown("test_attention_by_scan_is_softmax_over_every_prefix"),)
    ),
    "var": Claim("next scale: passes by scale, better than raster", (Passes(count=4), Quality("raster"))),
    "hmar": Claim("the previous scale alone and masked steps inside a scale: at least VAR's quality", (Quality("var", NEAR),)),
    "srdd": Claim("a Markov mask read as diffusion: better than VAR", (Quality("var"),)),
    "mvar": Claim("linear between scales: cheaper than VAR at its quality", (Cheaper("var"), Quality("var", NEAR))),
    "flexvar": Claim(
        "no residuals: any size and number of steps, quality near VAR's",
        (Shown("test_flexvar_takes_other_grids_numbers_of_steps_and_aspects"), Quality("var", NEAR)),
    ),
    "nfig_ar": Claim("next frequency band: better than next scale", (Quality("var"),)),
    "infinity": Claim("bits in place of indices: better than an index of the same scales", (Quality("var"),)),
    "open_magvit2": Claim("a lookup-free codebook in two factors: at least raster's quality", (Quality("raster", NEAR),)),
    "tokenbridge_ar": Claim("levels of continuous features, one dimension after the other: better than a codebook", (Quality("raster"),)),
    "titok_imagebert": Claim("1-D tokens, masked: few passes near MaskGIT's quality", (Quality("maskgit", NEAR),)),
    "titok_uvitbert": Claim("the same with a U-ViT: better than the plain transformer", (Quality("titok_imagebert"),)),
}
