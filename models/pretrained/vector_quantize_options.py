"""What becomes of each setting of vector-quantize-pytorch's classes (lucidrains, MIT); the defaults are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.models.pretrained.options import Option, Options, inert, only, used

_LAYOUT = "recorded vectors are (B, n, d)"
_DRAWN = "what it does is drawn at random, and draws differ"
_UNBUILT = "not built: no method of the zoo uses it"
_STEP = "nothing here takes optimizer steps inside a forward pass"
_SINGLE = "float32 throughout"


def _off(*names: str, why: str, value: Any = False) -> dict[str, Option]:
    """Switches that stay off."""
    return {name: only(value, why=why) for name in names}


def _idle(*names: str, why: str) -> dict[str, Option]:
    return {name: inert(why) for name in names}


_CODEBOOK: dict[str, Option] = {
    "dim": used("channels of the vectors"),
    "codebook_size": used("codes"),
    "codebook_dim": used("channels of a code; other than `dim`: maps into and out of the codebook", default=None),
    "decay": used("of the averages", default=0.8),
    "eps": used("of Laplace's smoothing", default=1e-5),
    "freeze_codebook": used("fixed codes", True, False, default=False),
    "use_cosine_sim": used("cosine metric", True, False, default=False),
    "commitment_weight": used(default=1.0),
    "commitment_use_cross_entropy_loss": used("of distances, in place of the squared distance", True, False, default=False),
    "rotation_trick": used("else straight through", True, False, None, default=None),
    "ema_update": used("else fixed codes", True, False, None, default=None),
    "learnable_codebook": used("the codebook is a parameter", True, False, None, default=None),
    **_idle("kmeans_init", "kmeans_iters", why="only how fresh codes start"),
    **_idle("sync_kmeans", "sync_codebook", why="one process here; ours agrees over workers"),
    **_idle("affine_param_batch_decay", "affine_param_codebook_decay", "sync_affine_param", why="without `affine_param`"),
    **_idle("codebook_diversity_temperature", "orthogonal_reg_active_codes_only", "orthogonal_reg_max_codes", why="without its loss"),
    **_idle("sample_codebook_temp", why="codes are not sampled"),
    **_idle("directional_reparam_variance", why="without `directional_reparam`"),
    **_idle("return_zeros_for_masked_padding", why="no masks"),
    **_off("accept_image_fmap", "accept_3d_fmap", why=_LAYOUT),
    **_off("channel_last", "route_gradients_to_input", value=True, why=_LAYOUT),
    **_off("stochastic_sample_codes", "directional_reparam", why=_DRAWN),
    **_off("threshold_ema_dead_code", value=0, why=_DRAWN),
    **_off("straight_through", "affine_param", why=_UNBUILT),
    **_off("sync_update_v", "orthogonal_reg_weight", "codebook_diversity_loss_weight", value=0, why=_UNBUILT),
    **_off("vq_bridge", value=None, why=_UNBUILT),
    **_off("manual_ema_update", "manual_in_place_optimizer_update", why=_STEP),
    **_off("in_place_codebook_optimizer", value=None, why=_STEP),
}
_DROPOUT = {
    "quantize_dropout": used("stages left out in training", True, False, default=False),
    "quantize_dropout_cutoff_index": used("the first stage that may be the last", default=0),
    "quantize_dropout_multiple_of": used("stages are kept in groups of so many", default=1),
}
_FSQ = {
    "levels": used("of each channel"),
    "dim": used("other than channels of all codebooks: maps into and out of them", default=None),
    **_idle("scale", why="upstream does not read it"),
    **_idle("allowed_dtypes", "force_quantization_f32", why=_SINGLE),
    **_off("return_indices", value=True, why="ids are recorded"),
    **_off("noise_dropout", value=0, why=_DRAWN),
    **_off("orthogonal_rotation", why=_DRAWN),
}
_MAPPED = {"projection_has_bias": used("of the maps", True, False, default=True)}
_BOOKS = {
    "num_codebooks": used("side by side on equal shares of the channels", default=1),
    "keep_num_codebooks_dim": used("an axis of one codebook is kept", True, False, None, default=None),
}

CLASSES = {
    "VectorQuantize": Options(
        _CODEBOOK,
        heads=used("side by side on equal shares of the channels", default=1),
        separate_codebook_per_head=used("else one codebook for all heads", True, False, default=False),
        layernorm_after_project_in=used("after the map into the codebook", True, False, default=False),
    ),
    "ResidualVQ": Options(
        _CODEBOOK,
        _DROPOUT,
        num_quantizers=used("stages"),
        shared_codebook=used("one for all stages", True, False, default=False),
        heads=only(1, why="upstream refuses others"),
        quant_grad_frac=only(0, why=_UNBUILT),
        beam_size=only(None, 1, why=_UNBUILT),
        eval_beam_size=only(None, 1, why=_UNBUILT),
        beam_score_quantizer_weights=inert("without beams"),
        implicit_neural_codebook=only(False, why=_UNBUILT),
        mlp_kwargs=inert("without `implicit_neural_codebook`"),
    ),
    "FSQ": Options(
        _FSQ,
        _MAPPED,
        _BOOKS,
        preserve_symmetry=used("levels spread evenly over [-1, 1]", True, False, default=False),
        bound_hard_clamp=used("in place of tanh; only with `preserve_symmetry`", True, False, default=False),
        channel_first=only(False, why=_LAYOUT),
    ),
    "ResidualFSQ": Options(
        _FSQ,
        _DROPOUT,
        num_quantizers=used("stages"),
        bound_hard_clamp=used("of an input that is bounded smoothly before; else tanh in every stage", True, False, default=True),
        soft_clamp_input_value=used("bound of the input, without `bound_hard_clamp`", default=None),
        is_channel_first=only(False, why=_LAYOUT),
        num_codebooks=only(1, why=_UNBUILT),
        implicit_neural_codebook=only(False, why=_UNBUILT),
        mlp_kwargs=inert("without `implicit_neural_codebook`"),
    ),
    "LFQ": Options(
        _MAPPED,
        _BOOKS,
        dim=used("other than the bits of all codebooks: maps into and out of them", default=None),
        codebook_size=used("codes, a power of two", default=None),
        codebook_scale=used("absolute value of a code's entries", default=1.0),
        spherical=used("vectors and codes at unit length (BSQ)", True, False, default=False),
        soft_clamp_input_value=used("bound of the input", default=None),
        entropy_loss_weight=used(default=0.1),
        diversity_gamma=used("weight of the second entropy in it", default=1.0),
        commitment_loss_weight=used(default=0.0),
        has_projections=used("maps even where the channels fit", True, False, None, default=None),
        cosine_sim_project_in=used("the map in takes cosines", True, False, default=False),
        cosine_sim_project_in_scale=used("times this", default=None),
        force_quantization_f32=inert(_SINGLE),
        entropy_loss_offset=inert("without the softplus"),
        channel_first=only(None, False, why=_LAYOUT),
        frac_per_sample_entropy=only(1, why=_DRAWN),
        experimental_softplus_entropy_loss=only(False, why=_UNBUILT),
        straight_through_activation=only(None, why=_UNBUILT),
    ),
    "SimVQ": Options(
        dim=used("channels of the vectors"),
        codebook_size=used("codes"),
        rotation_trick=used("else straight through", True, False, default=True),
        commitment_weight=used("of both losses", default=1.0),
        input_to_quantize_commit_loss_weight=used("of the second beside the first", default=0.25),
        frozen_codebook_dim=used("channels of the table that is mapped", default=None),
        init_fn=inert("only how the fixed table starts"),
        codebook_transform=only(None, why="a module, which settings do not hold"),
        channel_first=only(False, why=_LAYOUT),
    ),
}
#: Settings of the recording, around those of the class.
OPTIONS = Options(
    cls=used("the class", *CLASSES),
    kw=used("its settings, see below"),
    n=used("vectors of a row"),
    dim=used("channels, where the class is given none", default=None),
    seed=inert("weights are recorded"),
    rand_quantize_dropout_fixed_seed=used("draw of the stages that are left out", default=None),
)


def settings(info: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class and its settings, with the defaults of those that are not given.

    Raises:
        ConfigError: no such class, or a setting that it has not or that is refused.
    """
    c = OPTIONS.read(info)
    kw = CLASSES[c["cls"]].read({"config": c["kw"]})
    if kw.get("bound_hard_clamp") and c["cls"] == "FSQ" and not kw["preserve_symmetry"]:
        raise ConfigError("config.bound_hard_clamp=True: only with preserve_symmetry=True, as in residual FSQ")
    if kw.get("commitment_use_cross_entropy_loss") and kw["learnable_codebook"]:
        raise ConfigError("config.commitment_use_cross_entropy_loss=True: not built with learnable_codebook")
    return c["cls"], kw
