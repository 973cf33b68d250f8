"""The table of mutations: of each method what defines it, a change of the code that takes it away, and a test that then fails.

``python tests/support/mutations.py [METHOD …]`` applies each row to a copy of the code and runs its one test; the long test of the table
does the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutation:
    """``method`` loses ``mechanism`` where ``before``, which stands once in ``file``, is ``after``; then the test ``node`` fails."""

    method: str
    mechanism: str
    file: str
    before: str
    after: str
    node: str


_ORDERS = "tests/generators/test_discrete_orders.py::"
_METHODS = "tests/generators/test_discrete_methods.py::"
_MORE = "tests/generators/test_discrete_more.py::"
_OWN = "tests/generators/test_discrete_own.py::"
_SCALES = "tests/generators/test_discrete_scales.py::"
_STATES = "tests/generators/test_discrete_states.py::"
_BANDS = "tests/generators/test_scales_and_bands.py::"
_ZOO = "models/zoo/generators/"

TABLE = (
    Mutation(
        "raster",
        "tokens in storage order",
        "models/parts/orders/fixed.py",
        "return Plan(torch.arange(layout.length)[None], (1,) * layout.length)",
        "return Plan(torch.arange(layout.length).flip(0)[None], (1,) * layout.length)",
        "tests/models/test_orders.py::test_raster_mask_is_lower_triangular",
    ),
    Mutation(
        "rar",
        "random orders anneal to raster",
        "models/parts/orders/random.py",
        "return 0.0 if progress >= self.end else",
        "return 1.0 if progress >= self.end else",
        _ORDERS + "test_rar_anneals_from_random_orders_to_raster",
    ),
    Mutation(
        "par",
        "distant tokens in parallel after a sequential start",
        "models/parts/orders/fixed.py",
        "return (offset, region if offset == 0 else 0)",
        "return (offset, region)",
        _ORDERS + "test_par_takes_distant_tokens_together",
    ),
    Mutation(
        "npp",
        "patches are means of tokens",
        "models/parts/feeds/shifted.py",
        ".mean(2)[:, :-1]",
        ".sum(2)[:, :-1]",
        _METHODS + "test_npp_is_given_averages_and_predicts_whole_patches",
    ),
    Mutation(
        "nar",
        "each position is read from its left and its upper neighbour",
        _ZOO + "nar/feed.py",
        "slot[row, column - 1], slot[row - 1, column]",
        "slot[row, column - 1], slot[row, column - 1]",
        _METHODS + "test_nar_mask_and_neighbours",
    ),
    Mutation(
        "sigma_gpt",
        "a group is predicted from known tokens alone",
        "models/parts/feeds/double_position.py",
        "queries = 2 * known_BL - 1",
        "queries = 2 * known_BL + 1",
        _MORE + "test_a_group_is_predicted_from_known_tokens_alone",
    ),
    Mutation(
        "maskgit",
        "the surest tokens are kept",
        "models/sampling/session.py",
        "index = sure.topk(self.plan.sizes[proposal.group], dim=1).indices",
        "index = sure.topk(self.plan.sizes[proposal.group], dim=1, largest=False).indices",
        _METHODS + "test_maskgit_keeps_what_it_is_surest_of",
    ),
    Mutation(
        "maskgit",
        "training masks the share of the curve",
        "models/parts/orders/masked.py",
        "known_BL = draws.permutation(layout.length) >= mine[:, None]",
        "known_BL = draws.permutation(layout.length) < mine[:, None]",
        _ORDERS + "test_masked_share_follows_the_curve",
    ),
    Mutation(
        "halton_maskgit",
        "tokens are spread along a Halton sequence",
        "models/parts/orders/visits.py",
        "return torch.tensor([list(found)])",
        "return torch.tensor([sorted(found)])",
        _ORDERS + "test_any_prefix_of_halton_is_even",
    ),
    Mutation(
        "halton_maskgit",
        "mask ratios of training follow an arccosine",
        _ZOO + "halton_maskgit.py",
        "order=Masked(curve=Arccos(), decoding",
        "order=Masked(decoding",
        _ORDERS + "test_halton_trains_on_an_arccosine_and_may_start_anywhere_in_its_sequence",
    ),
    Mutation(
        "token_shuffle",
        "the tokens of a window are fused",
        _ZOO + "token_shuffle/feed.py",
        "self.down(token).unflatten(1, (-1, self.share)).flatten(2)",
        "self.down(token).unflatten(1, (-1, self.share)).mean(2, keepdim=True).expand(-1, -1, self.share, -1).flatten(2)",
        _MORE + "test_the_tokens_of_a_window_are_fused_and_not_averaged",
    ),
    Mutation(
        "coarse_to_fine",
        "a code has mass under its own label alone",
        _ZOO + "coarse_to_fine/module.py",
        "return logits_BLV.masked_fill(self.label_V != label_BL.unsqueeze(-1), -torch.inf)",
        "return logits_BLV",
        _OWN + "test_labels_and_codes_have_a_likelihood_that_sums_to_one",
    ),
    Mutation(
        "oar",
        "training ends on orders that the model finds",
        _ZOO + "oar/objective.py",
        "if draws.progress < self.config.start:",
        "if draws.progress >= 0:",
        _OWN + "test_training_ends_on_the_orders_that_were_found",
    ),
    Mutation(
        "heptapod",
        "every state predicts all positions to come",
        _ZOO + "heptapod/objective.py",
        'return {"loss": first + self.config.later * later,',
        'return {"loss": first + 0 * later,',
        _OWN + "test_the_first_state_learns_the_whole_image",
    ),
    Mutation(
        "vq_ddm",
        "the share of kept tokens is a cosine of the noise",
        "models/parts/orders/sizes.py",
        "return 1 - math.cos(math.pi / 2 * (1 - t))",
        "return math.cos(math.pi / 2 * t)",
        _STATES + "test_the_forward_process_of_vq_ddm_keeps_a_cosine_of_the_noise",
    ),
    Mutation(
        "var",
        "a group is a whole scale",
        "models/parts/orders/fixed.py",
        "return grouped([(t, s) for t, s, _, _ in layout.positions.tolist()], self.window)",
        "return grouped([(t, 0) for t, s, _, _ in layout.positions.tolist()], self.window)",
        "tests/models/test_orders.py::test_scales_mask_is_block_causal_by_scale",
    ),
    Mutation(
        "var_vq",
        "each scale codes what the smaller ones left over",
        "models/parts/quantizers/multiscale.py",
        "f_hats.append(h_BCHW if scale == 0 else f_hats[-1] + h_BCHW)",
        "f_hats.append(h_BCHW)",
        _BANDS + "test_band_inputs_equal_incremental_inputs",
    ),
    Mutation(
        "hmar",
        "the second tower decodes the later steps of a scale",
        _ZOO + "hmar/module.py",
        "found = self.refiner if self._feed.later(plan, group) else",
        "found = self.refiner if False else",
        _SCALES + "test_the_steps_of_a_scale_change_without_training",
    ),
    Mutation(
        "hmar",
        "the second tower starts as a copy of the trained first one",
        _ZOO + "hmar/module.py",
        'cast(Tower, self.refiner["net"]).copy()',
        'cast(Tower, self.refiner["net"]).eval().train()',
        _SCALES + "test_training_learns_whole_scales_then_copies_and_refines_masked_ones",
    ),
    Mutation(
        "hmar",
        "a scale sees itself alone",
        _ZOO + "hmar/order.py",
        "whole = Plan(torch.arange(layout.length)[None], sizes, window=0)",
        "whole = Plan(torch.arange(layout.length)[None], sizes)",
        _SCALES + "test_a_scale_sees_the_slots_of_its_own_alone",
    ),
    Mutation(
        "srdd",
        "a scale is predicted again from the refined sum",
        _ZOO + "srdd/head.py",
        "predict(self._feed[0].refined(ids, sure_Bn))",
        "predict(0 * self._feed[0].refined(ids, sure_Bn))",
        _SCALES + "test_a_round_predicts_the_scale_from_the_sum_with_its_likely_tokens_in_it",
    ),
    Mutation(
        "srdd",
        "one model takes fewer scales",
        _ZOO + "srdd/feed.py",
        "scales = [*self.scales_of(plan), len(self.layout.grids) - 1]",
        "scales = [*range(plan.groups), len(self.layout.grids) - 1]",
        _SCALES + "test_fewer_scales_of_one_model_are_tokens_that_the_tokenizer_decodes",
    ),
    Mutation(
        "flexvar",
        "training draws its sequence of grids",
        _ZOO + "flexvar/order.py",
        "found |= set(sorted(inside, key=rank.__getitem__)[:count])",
        "found |= set(inside[:count])",
        _ORDERS + "test_flexvar_draws_its_sequence_of_grids",
    ),
    Mutation(
        "nfig",
        "a scale holds frequencies up to its cut-off",
        "models/zoo/tokenizers/nfig/quantizer.py",
        "return low_pass(super()._up(scale, z_BChw), self.cutoff(scale))",
        "return super()._up(scale, z_BChw)",
        _BANDS + "test_bands_lie_below_their_cutoffs",
    ),
    Mutation(
        "infinity",
        "bits are flipped, and later ones mend them",
        "models/parts/quantizers/self_correction.py",
        "bit_BPD = bit_BPD ^ flips[scale]",
        "bit_BPD = bit_BPD ^ False",
        "tests/generators/test_self_correction.py::test_what_is_said_mends_what_was_flipped",
    ),
    Mutation(
        "mar",
        "masked positions are rounded up",
        "models/parts/orders/masked.py",
        'whole = math.ceil if self.rounded == "up" else round',
        "whole = round",
        _ORDERS + "test_mar_and_its_relatives_mask_one_ratio_a_batch_rounded_up",
    ),
    Mutation(
        "aaren",
        "runs of slots are merged by an associative scan",
        _ZOO + "aaren/net.py",
        "return highest, a * earlier[1] + b * later[1], a * earlier[2] + b * later[2]",
        "return highest, b * later[1], b * later[2]",
        "tests/models/test_linear_nets.py::test_nothing_is_seen_of_later_slots_and_all_of_earlier_ones",
    ),
    Mutation(
        "vir",
        "heads forget with distance",
        _ZOO + "vir/net.py",
        "weight = torch.where(apart >= 0, _power(log_decay_H, apart.clamp(min=0), q), 0.0)",
        "weight = torch.where(apart >= 0, _power(0 * log_decay_H, apart.clamp(min=0), q), 0.0)",
        "tests/models/test_linear_nets.py::test_recurrent_form_equals_parallel_form",
    ),
    Mutation(
        "aim",
        "the gate of a Mamba-2 mixer",
        "models/parts/nets/mamba2.py",
        "return self.out(self.norm(y * F.silu(gate)))",
        "return self.out(self.norm(y * gate))",
        "tests/models/test_mamba.py::test_a_mixer_gives_the_reference_s_numbers",
    ),
    Mutation(
        "arflow",
        "images see those before them through a decaying state",
        _ZOO + "arflow/net.py",
        "state = state * kept[:, :, i, None, None] + added[:, :, i]",
        "state = state + added[:, :, i]",
        "tests/generators/test_arflow.py::test_chunks_and_the_recurrence_are_one_computation",
    ),
    Mutation(
        "open_magvit2",
        "a sub-token depends on the ones before",
        "models/parts/heads/chained.py",
        "known = [self.known(q, ids_MQ[:, q]) for q in range(len(self.out) - 1)]",
        "known = [self.known(q, 0 * ids_MQ[:, q]) for q in range(len(self.out) - 1)]",
        _METHODS + "test_factorised_tokens_depend_on_the_ones_before",
    ),
)
#: Generators that no row names yet.
UNNAMED = (
    *("acdit", "arinar", "arpg", "bins_ar", "discrete_interpolants", "ear", "far_frequency", "far_shortcut", "flowar", "himar", "ibq_ar"),
    *("mvar", "nextstep", "nfig_ar", "patch_ar", "randar", "starflow", "titok_imagebert", "titok_uvitbert", "tokenbridge_ar", "xar"),
)


def copied(folder: Path) -> None:
    """The code and its tests, importable from this folder."""
    for name in ("flows", "tasks", "models", "configs"):
        shutil.copytree(ROOT / name, folder / "tokenloom" / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / name).symlink_to(folder / "tokenloom" / name)
    for name in ("tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def fails(mutation: Mutation, folder: Path) -> tuple[bool, str]:
    """Whether the row's test fails on the changed code and passes no other way of ending, and what pytest said; the code is put back."""
    path = folder / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.before, mutation.after))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", "-m", "", mutation.node]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    finally:
        path.write_text(text)
    return done.returncode == 1, done.stdout[-2000:] + done.stderr[-1000:]


def main() -> int:
    chosen = [row for row in TABLE if len(sys.argv) < 2 or row.method in sys.argv[1:]]
    green = 0
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder))
        for row in chosen:
            red, said = fails(row, Path(folder))
            green += not red
            print(f"{'red' if red else 'NOT RED'}: {row.method}: {row.mechanism}{'' if red else chr(10) + said}", flush=True)
    return int(green > 0)


if __name__ == "__main__":
    raise SystemExit(main())
