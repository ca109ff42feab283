"""Every golden value and gradient norm, in fp32; the same losses under autocast; the known wrong variants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import GOLDEN, gradients, inputs, near
from torch import Tensor, nn

from kdcli.losses.contrastive import least_wrong, view_contrast, view_table
from kdcli.losses.datafree import activation, information_entropy, one_hot, top_layer
from kdcli.losses.exits import early_exit, exit_features, exit_logits
from kdcli.losses.features import at, fitnets_hint, hint
from kdcli.losses.inversion import bn_statistics, competition, image_norm, total_variation
from kdcli.losses.logits import (
    cross_entropy,
    dkd,
    kl_divergence,
    kl_elements,
    lsr,
    soft_cross_entropy,
    tf_kd_regularisation,
)
from kdcli.losses.peers import dml, okddip, peer_attention, peer_targets
from kdcli.losses.relations import cc, darkrank, rkd_angle, rkd_distance, sp
from kdcli.losses.targets import ensemble_logits, kd_pt, kd_sim, kd_topk, rescaling_weight, smoothed
from kdcli.words import RampUp


def kl(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    return kl_divergence(s, t, temperature=temperature)


def tf_kd(x: Any, part: Tensor) -> Tensor:
    return 0.05 * cross_entropy(x.logits_s, x.target) + 0.95 * part


def okddip_parts(x: Any, detach: bool) -> Tensor:
    targets = peer_targets(x.peers, x.peer_feats, x.wq, x.wk, detach_targets=detach)
    labels = cross_entropy(x.peers.flatten(0, 1), x.target.repeat_interleave(3)) * 3
    taught = okddip(x.peers, targets, x.leader_logits, detach_targets=detach)
    return labels + cross_entropy(x.leader_logits, x.target) + taught


def dml_net(x: Any, logits: Tensor, others: Tensor, **keywords: Any) -> Tensor:
    return cross_entropy(logits, x.target) + dml(logits, others.detach(), **keywords)


def byot(x: Any) -> Tensor:
    deepest, total = x.exit_logits[0].detach(), cross_entropy(x.exit_logits[0], x.target)
    for z in x.exit_logits[1:]:
        total = total + 0.7 * cross_entropy(z, x.target) + 0.3 * exit_logits(z, deepest)
    parts = [exit_features(x.adapted[i], x.exit_feats[0].detach()) for i in (2, 3)]
    return total + 0.03 * sum(parts)


def byot_paper(x: Any) -> Tensor:
    deepest, total = x.exit_logits[0].detach(), cross_entropy(x.exit_logits[0], x.target)
    for z, f in zip(x.exit_logits[1:], x.exit_feats[1:]):
        total = total + 0.7 * cross_entropy(z, x.target) + 0.3 * exit_logits(z, deepest, reading="paper")
        total = total + 0.03 * exit_features(f, x.exit_feats[0].detach(), reading="paper")
    return total


def sskd(x: Any) -> dict[str, Tensor]:
    s, t = x.ss_logits_s.unflatten(0, (4, 4)), x.ss_logits_t.unflatten(0, (4, 4))
    table_s, table_t = (view_table(r.unflatten(0, (4, 4))) for r in (x.ss_rep_s, x.ss_rep_t))
    rows = torch.arange(4).repeat_interleave(3)
    kept = least_wrong(table_t, rows, ratio=0.75)
    turned = least_wrong(t[:, 1:].flatten(0, 1), x.ss_target.repeat_interleave(3), ratio=1.0)
    parts = {
        "ce": cross_entropy(s[:, 0], x.ss_target),
        "kd": kl(s[:, 0], t[:, 0], 4),
        "tf": kl(s[:, 1:].flatten(0, 1)[turned], t[:, 1:].flatten(0, 1)[turned], 4),
        "ss": kl(table_s[kept], table_t[kept], 0.5),
    }
    total = 0.1 * parts["ce"] + 0.9 * parts["kd"] + 2.7 * parts["tf"] + 10 * parts["ss"]
    return {**parts, "total": total, "kept": kept, "turned": turned, "row0": table_s[0]}


def dafl(x: Any, oh: float, ie: float, a: float) -> Tensor:
    parts = one_hot(x.logits_t), information_entropy(x.logits_t), activation(x.feat_t)
    return oh * parts[0] + ie * parts[1] + a * parts[2]


def virtual(classes: int) -> Tensor:
    return (smoothed(torch.tensor([0]), classes, 0.01) / 20).softmax(dim=1)[0, 0]


CASES: dict[str, Callable[[Any], Any]] = {
    # logits
    "kd_kl_T1": lambda x: kl(x.logits_s, x.logits_t, 1),
    "kd_kl_T4": lambda x: kl(x.logits_s, x.logits_t, 4),
    "kd_kl_T4_mdistiller": lambda x: kl(x.logits_s, x.logits_t, 4),
    "ce": lambda x: cross_entropy(x.logits_s, x.target),
    "kd_total_repdistiller": lambda x: (
        0.1 * cross_entropy(x.logits_s, x.target) + 0.9 * kl(x.logits_s, x.logits_t, 4)
    ),
    "kd_soft_ce_T4": lambda x: soft_cross_entropy(x.logits_s, x.logits_t, temperature=4, t_squared=True),
    "dkd_a1_b8_T4": lambda x: dkd(x.logits_s, x.logits_t, x.target),
    "tfkd_loss_kd_a0.95_T20": lambda x: tf_kd(x, kl_elements(x.logits_s, x.logits_t)),
    "tfkd_reg_mobilenetv2": lambda x: tf_kd(x, tf_kd_regularisation(x.logits_s, x.target, temperature=40)),
    "tfkd_reg_shufflenetv2": lambda x: tf_kd(x, tf_kd_regularisation(x.logits_s, x.target, temperature=10)),
    "lsr_tfkd_repo_a0.1": lambda x: lsr(x.logits_s, x.target),
    "lsr_torch_a0.1": lambda x: lsr(x.logits_s, x.target, reading="paper"),
    "tfkd_reg_paper_reading_T20": lambda x: tf_kd_regularisation(x.logits_s, x.target, reading="paper"),
    "tfkd_reg_teacher_prob_correct_T20_K10": lambda x: virtual(10),
    "tfkd_reg_teacher_prob_correct_T20_K100": lambda x: virtual(100),
    # targets
    "tang_kd_pt_softCE": lambda x: cross_entropy(x.logits_s, kd_pt(x.logits_t, x.target)),
    "tang_kd_sim_softCE": lambda x: cross_entropy(x.logits_s, kd_sim(x.w_cls, x.target)),
    "tang_kd_topk3_softCE": lambda x: cross_entropy(x.logits_s, kd_topk(x.logits_t, k=3)),
    "tang_rescale_lam0.5": lambda x: rescaling_weight(x.logits_s, x.logits_t, x.target),
    "ens_kd_probmean_T1": lambda x: kl(x.logits_s, ensemble_logits(x.peers, mean="probabilities"), 1),
    "ens_kd_probmean_T4": lambda x: kl(
        x.logits_s, ensemble_logits(x.peers, mean="probabilities", temperature=4), 4
    ),
    "ens_kd_logitmean_T4": lambda x: kl(x.logits_s, ensemble_logits(x.peers), 4),
    # relations
    "rkd_d_repdistiller": lambda x: rkd_distance(x.feat_s, x.feat_t),
    "rkd_d_official": lambda x: rkd_distance(x.feat_s, x.feat_t),
    "rkd_d_l2norm_mmrazor": lambda x: rkd_distance(x.feat_s, x.feat_t, normalize=True),
    "rkd_a_repdistiller": lambda x: rkd_angle(x.feat_s, x.feat_t),
    "rkd_a_official": lambda x: rkd_angle(x.feat_s, x.feat_t),
    "rkd_a_l2norm_mmrazor": lambda x: rkd_angle(x.feat_s, x.feat_t, normalize=True),
    "rkd_darkrank_hard": lambda x: darkrank(x.feat_s, x.feat_t),
    "feat_sp": lambda x: sp(x.map_s, x.map_t),
    "feat_cc": lambda x: cc(x.feat_s, x.feat_t),
    # features
    "rkd_at_official": lambda x: at(x.map_s, x.map_t),
    "feat_at_p2": lambda x: at(x.map_s, x.map_t),
    "fitnet_hint_mse": lambda x: hint(x.map_s, x.map_t),
    "fitnet_hint_official_scale": lambda x: fitnets_hint(x.map_s, x.map_t),
    "fitnet_convreg_same": lambda x: hint(x.regressed, x.map_t32),
    # peers
    "okddip_KL_T3": lambda x: kl(x.logits_s, x.logits_t, 3),
    "one_KL_T3": lambda x: kl(x.logits_s, x.logits_t.detach(), 3),
    "okddip_attention_sample0": lambda x: peer_attention(x.peer_feats, x.wq, x.wk)[0],
    "okddip_xm_sample0_peer0": lambda x: peer_targets(x.peers, x.peer_feats, x.wq, x.wk)[0, 0],
    "okddip_total_code": lambda x: okddip_parts(x, detach=False),
    "okddip_total_detached_targets": lambda x: okddip_parts(x, detach=True),
    "dml_M3_net0": lambda x: dml_net(x, x.peers[:, 0], x.peers[:, 1:]),
    "dml_M3_net0_official_tf_sum": lambda x: dml_net(x, x.peers[:, 0], x.peers[:, 1:], reduction="sum"),
    "dml_M2_net0": lambda x: dml_net(x, x.logits_s, x.logits_t[:, None]),
    "dml_M2_net1": lambda x: dml_net(x, x.logits_t, x.logits_s[:, None]),
    "dml_tf_kl": lambda x: dml(x.logits_s, x.logits_t[:, None]),
    "dml_ens_net0": lambda x: dml_net(
        x, x.peers[:, 0], ensemble_logits(x.peers[:, 1:])[:, None], temperature=3
    ),
    **{f"rampup80_e{e}": lambda x, e=e: RampUp(1.0, 80.0)(e) for e in (0, 20, 40, 79, 80)},
    # exits, the deepest first; early exit reads them the other way
    "byot_softCE_T3": lambda x: exit_logits(x.exit_logits[1], x.exit_logits[0]),
    "byot_alt_kd_T3": lambda x: soft_cross_entropy(
        x.exit_logits[1], x.exit_logits[0], temperature=3, t_squared=True
    ),
    "byot_feature_term_2of4": lambda x: exit_features(x.adapted[2], x.exit_feats[0]),
    "byot_total_official": byot,
    "byot_total_paper_reading": byot_paper,
    "early_exit_maxprob_0.5": lambda x: early_exit(x.exit_logits.flip(0), [0.5] * 4),
    # contrastive
    **{f"sskd_{part}": lambda x, part=part: sskd(x)[part] for part in ("ce", "kd", "tf", "ss", "total")},
    "sskd_ss_kept_indices": lambda x: sskd(x)["kept"].nonzero(),
    "sskd_simi_s_row0": lambda x: sskd(x)["row0"],
    "sskd_teacher_ssp_loss": lambda x: view_contrast(x.ss_rep_t.unflatten(0, (4, 4))),
    # without data
    "dafl_one_hot": lambda x: one_hot(x.logits_t),
    "dafl_activation": lambda x: activation(x.feat_t),
    "dafl_info_entropy_log10": lambda x: information_entropy(x.logits_t),
    "dafl_info_entropy_natural": lambda x: information_entropy(x.logits_t, base=math.e),
    "dafl_gen_total_mnist": lambda x: dafl(x, 1, 5, 0.1),
    "dafl_gen_total_cifar10": lambda x: dafl(x, 0.05, 5, 0.01),
    "dafl_kd": lambda x: kl(x.logits_s, x.logits_t, 1),
    "deepinv_r_feature": lambda x: bn_statistics(x.map_s, x.bn_mean, x.bn_var),
    "deepinv_tv_l1": lambda x: total_variation(x.img, norm="l1"),
    "deepinv_l2_imagenet": lambda x: image_norm(x.img),
    "deepinv_l2_cifar": lambda x: image_norm(x.img, over="batch"),
    "deepinv_adi_code": lambda x: competition(x.logits_s, x.logits_t),
    "deepinv_adi_true_JS": lambda x: competition(x.logits_s, x.logits_t, reading="paper"),
    "lopes_top_layer": lambda x: top_layer(x.logits_s, x.logits_t),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    """The inputs, and what the references' own layers make of them."""
    found = dict(inputs())
    with torch.random.fork_rng():
        torch.manual_seed(2)
        adapters = [nn.Linear(64, 64) for _ in range(3)]
        torch.manual_seed(1)
        regressor = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU())
    with torch.no_grad():
        shallow = [layer(f) for layer, f in zip(adapters, found["exit_feats"][1:])]
        found["adapted"] = torch.stack([found["exit_feats"][0], *shallow])
        found["regressed"] = regressor(found["map_s"])
    return found


def leaves(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """Fresh leaves that collect gradients, and the peers' logits as [B, M, C]."""
    fresh = {
        name: t.to(dtype, copy=True).requires_grad_() if t.is_floating_point() else t
        for name, t in tensors.items()
    }
    return SimpleNamespace(**fresh, peers=fresh["peer_logits"].mT)


def test_every_golden_value_has_its_case() -> None:
    pitfalls = {name for name, entry in GOLDEN.items() if entry.get("pitfall")}
    assert set(CASES) == set(GOLDEN) - pitfalls
    assert len(pitfalls) == 3


@pytest.mark.parametrize("name", CASES)
def test_golden_value_and_gradient(name: str, drawn: dict[str, Tensor]) -> None:
    x, golden = leaves(drawn), GOLDEN[name]
    value = CASES[name](x)
    assert near(value, golden["value"]), (value, golden["value"])
    for leaf, norm in golden.get("gradients", {}).items():
        (gradient,) = gradients(value, getattr(x, leaf))
        assert near(gradient.norm(), norm), (leaf, gradient.norm(), norm)


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing(name: str, drawn: dict[str, Tensor]) -> None:
    x = leaves(drawn, torch.bfloat16)
    outside = CASES[name](SimpleNamespace(**{k: _full(v) for k, v in vars(x).items()}))
    with torch.autocast("cpu", torch.bfloat16):
        inside = CASES[name](x)
    if isinstance(inside, Tensor):
        assert inside.dtype in (torch.float32, torch.int64)
        assert torch.equal(inside, outside)
    if isinstance(inside, Tensor) and inside.ndim == 0:
        floats = [t for t in vars(x).values() if t.requires_grad]
        assert all(g.isfinite().all() for g in gradients(inside, *floats))


def _full(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize(
    "pitfall", ["kd_pitfall_mean_reduction_T4", "kd_pitfall_noT2_T4", "kd_pitfall_reverse_KL_T4"]
)
def test_pitfalls_are_not_hit(pitfall: str, drawn: dict[str, Tensor]) -> None:
    x, wrong = leaves(drawn), GOLDEN[pitfall]["value"]
    found = [name for name, case in CASES.items() if near(case(x), wrong)]
    assert found == []


@pytest.mark.parametrize(
    "readings",
    [
        ("lsr_tfkd_repo_a0.1", "lsr_torch_a0.1"),
        ("dml_M3_net0", "dml_M3_net0_official_tf_sum", "dml_ens_net0"),
        ("rkd_d_repdistiller", "rkd_d_l2norm_mmrazor"),
        ("rkd_a_repdistiller", "rkd_a_l2norm_mmrazor"),
        ("fitnet_hint_mse", "fitnet_hint_official_scale"),
        ("byot_total_official", "byot_total_paper_reading"),
        ("byot_softCE_T3", "byot_alt_kd_T3"),
        ("dafl_info_entropy_log10", "dafl_info_entropy_natural"),
        ("deepinv_l2_imagenet", "deepinv_l2_cifar"),
        ("deepinv_adi_code", "deepinv_adi_true_JS"),
        ("ens_kd_probmean_T4", "ens_kd_logitmean_T4"),
        ("kd_kl_T4", "kd_soft_ce_T4"),
    ],
)
def test_readings_of_one_loss_are_told_apart(readings: tuple[str, ...], drawn: dict[str, Tensor]) -> None:
    x = leaves(drawn)
    for name, other in itertools.permutations(readings, 2):
        assert not near(CASES[name](x), GOLDEN[other]["value"])


def test_attached_and_detached_targets_differ_in_gradient_alone(drawn: dict[str, Tensor]) -> None:
    x = leaves(drawn)
    attached, detached = okddip_parts(x, detach=False), okddip_parts(x, detach=True)
    torch.testing.assert_close(attached, detached)
    wrong = GOLDEN["okddip_total_detached_targets"]["gradients"]["peer_logits"]
    assert not near(gradients(attached, x.peer_logits)[0].norm(), wrong)
    assert not near(gradients(detached, x.peer_logits)[0].norm(), 0.750428)


def test_kept_rows_are_as_many_as_the_reference_keeps(drawn: dict[str, Tensor]) -> None:
    found = sskd(leaves(drawn))
    assert int(found["kept"].sum()) == GOLDEN["sskd_ss"]["n_ss_kept"]
    assert int(found["turned"].sum()) == GOLDEN["sskd_tf"]["n_tf_kept"]
