"""Folding: before equals after for every family, what is written comes back, and training goes on."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compacting import CLASSES, FAMILIES, compacted, masks, network_of, pictures, sites_of
from safetensors.torch import load_file, save_file
from toolbox import commit_model
from torch import Tensor, nn

from kdcli.metrics.efficiency import flops, parameters
from kdcli.models.attention import NarrowAttention
from kdcli.models.build import Wanted, build
from kdcli.models.compactors import compactors, insert
from kdcli.models.costs import cost_of, parameters_of
from kdcli.models.folding import fold, zeroed
from kdcli.models.sites import Site
from kdcli.models.timm import TimmModel


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_a_folded_network_answers_what_the_compacted_one_did(
    family: str, dtype: torch.dtype, most: float
) -> None:
    network, x = network_of(family, dtype), pictures(family, dtype)
    made = compacted(family, network)
    kept = masks(made)
    zero, folded = zeroed(made, kept), fold(made, kept)
    size = max(1.0, float(zero(x).abs().max()))
    assert (folded(x) - zero(x)).abs().max() <= most * size
    assert (zero(x) - network(x)).abs().max() > 1e3 * most * size
    assert compactors(folded) == {}
    assert list(folded.state_dict()) == list(network.state_dict())
    assert parameters(folded) < parameters(network)
    assert {t.dtype for t in folded.parameters()} == {dtype}
    widths = [int(mask.sum()) for mask in kept.values()]
    assert 1 in widths
    for site, width in zip(sites_of(family, network), widths):
        if site.attention is not None and FAMILIES[family][2] == "resrep":
            continue  # its layers lose what several sites remove: below
        layer: Any = folded.body.get_submodule(site.consumers[0])
        assert (layer.in_features if site.last else layer.in_channels) == width * site.each


@torch.no_grad()
def test_a_convolution_folds_as_loops_say() -> None:
    network = network_of("basic", torch.float64)
    made = compacted("basic", network)
    kept = masks(made)
    name, mask = list(kept.items())[1]
    site, weight = compactors(made)[name].site, compactors(made)[name].weight
    conv: Any = network.body.get_submodule(site.producer)
    norm: Any = network.body.get_submodule(site.norms[0])
    folded = fold(made, kept)
    new_conv: Any = folded.body.get_submodule(site.producer)
    new_norm: Any = folded.body.get_submodule(site.norms[0])
    for row, i in enumerate(mask.nonzero().flatten().tolist()):
        kernel, mean, bias, spread = torch.zeros_like(conv.weight[0]), 0.0, 0.0, 0.0
        for j in range(site.width):
            deviation = (norm.running_var[j] + norm.eps).sqrt()
            kernel += weight[i, j] * norm.weight[j] / deviation * conv.weight[j]
            mean += float(weight[i, j] * norm.weight[j] / deviation * norm.running_mean[j])
            bias += float(weight[i, j] * norm.bias[j])
            spread += float((weight[i, j] * norm.weight[j] / deviation) ** 2 * norm.running_var[j])
        assert torch.allclose(new_conv.weight[row], kernel, atol=1e-12)
        assert float(new_norm.running_mean[row]) == pytest.approx(mean, abs=1e-12)
        assert float(new_norm.bias[row]) == pytest.approx(bias, abs=1e-12)
        assert float(new_norm.running_var[row]) == pytest.approx(spread, abs=1e-12)
        assert float(new_norm.weight[row]) == pytest.approx((spread + norm.eps) ** 0.5, abs=1e-12)
    taker: Any = network.body.get_submodule(site.consumers[0])
    new_taker: Any = folded.body.get_submodule(site.consumers[0])
    assert torch.equal(new_taker.weight, taker.weight[:, mask])


@torch.no_grad()
def test_a_head_folds_as_loops_say() -> None:
    network = network_of("vit", torch.float64)
    made = insert(network, [site for site in sites_of("vit", network) if site.kind == "heads"])
    with torch.no_grad():
        compactors(made)["blocks.2.attn.norm"].weight.copy_(torch.tensor([0.0, 0.7], dtype=torch.float64))
    folded: Any = fold(made, {"blocks.2.attn.norm": torch.tensor([False, True])})
    old: Any = network.body
    attn, own = folded.body.blocks[2].attn, old.blocks[2].attn
    assert (attn.num_heads, attn.head_dim, attn.attn_dim, attn.scale) == (1, 32, 32, 32**-0.5)
    for part, factor in enumerate((1, 1, 0.7)):  # queries, keys, values
        for channel in range(32):
            row, old_row = part * 32 + channel, part * 64 + 32 + channel
            assert torch.allclose(attn.qkv.weight[row], factor * own.qkv.weight[old_row], atol=1e-14)
            assert float(attn.qkv.bias[row]) == pytest.approx(
                factor * float(own.qkv.bias[old_row]), abs=1e-14
            )
    assert torch.equal(attn.proj.weight, own.proj.weight[:, 32:])
    operation: Any = folded.operations[-1]
    assert operation["modules"] == {
        "blocks.2.attn": {"heads": 1},
        "blocks.2.attn.qkv": {"out": 96},
        "blocks.2.attn.proj": {"in": 32},
    }
    x = pictures("vit", torch.float64)
    assert (folded(x) - made(x)).abs().max() < 1e-12


@torch.no_grad()
def test_channels_of_an_attention_fold_as_loops_say() -> None:
    """Heads, channels of keys and channels of values, removed together; logits keep their scale."""
    network = network_of("vit channels", torch.float64)
    made = insert(
        network, [site for site in sites_of("vit channels", network) if "blocks.2.attn" in site.name]
    )
    own: Any = network.body.get_submodule("blocks.2.attn")
    heads, keys, values = torch.tensor([1]), torch.tensor([0, 3, 31]), torch.tensor([7, 8])
    names = {
        f"blocks.2.attn.{name}": rows
        for name, rows in zip(("q_norm", "norm", "norm.act"), (keys, heads, values))
    }
    assert list(compactors(made)) == list(names)
    draw = torch.Generator().manual_seed(5)
    factors = {
        name: torch.rand(len(c.weight), generator=draw, dtype=torch.float64)
        for name, c in compactors(made).items()
    }
    for name, compactor in compactors(made).items():
        compactor.weight.copy_(factors[name])
    kept = {
        name: torch.zeros(len(factors[name]), dtype=torch.bool).index_fill(0, rows, True)
        for name, rows in names.items()
    }
    folded: Any = fold(made, kept)
    attn = folded.body.get_submodule("blocks.2.attn")
    assert (attn.num_heads, attn.head_dim, attn.value_dim, attn.attn_dim) == (1, 3, 2, 2)
    assert attn.scale == 32**-0.5
    by_key, by_head, by_value = factors.values()
    rows = [(32 + k, by_key[k]) for k in keys.tolist()]  # the second head's queries, after those of the first
    rows += [(64 + 32 + k, 1.0) for k in keys.tolist()]
    rows += [(128 + 32 + v, by_head[1] * by_value[v]) for v in values.tolist()]
    assert len(attn.qkv.weight) == len(rows) == 8
    for new, (old, factor) in enumerate(rows):
        assert torch.allclose(attn.qkv.weight[new], factor * own.qkv.weight[old], atol=1e-14)
        assert torch.allclose(attn.qkv.bias[new], factor * own.qkv.bias[old], atol=1e-14)
    assert torch.equal(attn.proj.weight, own.proj.weight[:, 32 + values])
    assert folded.operations[-1]["modules"] == {
        "blocks.2.attn": {"heads": 1, "keys": 3, "values": 2},
        "blocks.2.attn.qkv": {"out": 8},
        "blocks.2.attn.proj": {"in": 2},
    }
    x = pictures("vit channels", torch.float64)
    assert (folded(x) - zeroed(made, kept)(x)).abs().max() < 1e-12


@pytest.mark.parametrize("masked", [None, "causal", "given"])
@torch.no_grad()
def test_a_narrow_attention_is_one_product_fused_or_not(masked: str | None) -> None:
    made = compacted("vit channels", network_of("vit channels", torch.float64))
    attn: Any = fold(made, masks(made)).body.get_submodule("blocks.2.attn")
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    more: dict[str, Any] = {"is_causal": True} if masked == "causal" else {}
    if masked == "given":
        more["attn_mask"] = torch.rand(9, 9, generator=torch.Generator().manual_seed(2)) < 0.6
        more["attn_mask"].fill_diagonal_(True)
    answers = []
    for fused in (True, False):
        attn.fused_attn = fused
        answers.append(attn(x, **more))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-10, atol=1e-12)
    plain = network_of("vit channels", torch.float64).body.get_submodule("blocks.2.attn")
    whole = NarrowAttention(plain, 2, 32, 32)
    torch.testing.assert_close(whole(x, **more), plain(x, **more), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["bottleneck twice", "inverted", "convnext", "vit", "vit channels"])
@torch.no_grad()
def test_what_is_written_is_rebuilt_and_answers_the_same(family: str, tmp_path: Path) -> None:
    made = compacted(family, network_of(family))
    folded = fold(made, masks(made))
    path, x = commit_model(folded, tmp_path / "out"), pictures(family)
    again = build(str(path)).eval()
    assert torch.equal(again(x), folded(x))
    assert list(again.state_dict()) == list(folded.state_dict())
    assert all(torch.equal(t, folded.state_dict()[n]) for n, t in again.state_dict().items())
    assert (again.layout, again.operations, again.classes) == ("kdcli", folded.operations, CLASSES)
    assert json.loads((path / "config.json").read_text())["kdcli_operations"] == list(folded.operations)
    student = build(str(path), Wanted(["a", "b"]), seed=1)
    assert student(x).shape == (2, 2)


@torch.no_grad()
def test_it_comes_back_in_a_new_process(tmp_path: Path) -> None:
    made = compacted("vit", network_of("vit"))
    folded = fold(made, masks(made))
    path, x = commit_model(folded, tmp_path / "out"), pictures("vit")
    save_file({"x": x}, tmp_path / "x.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "from kdcli.models.build import build\n"
        "network = build(sys.argv[1]).eval()\n"
        "with torch.no_grad(): save_file({'logits': network(load_file(sys.argv[2])['x'])}, sys.argv[3])\n"
    )
    answer = tmp_path / "logits.safetensors"
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path / "x.safetensors"), str(answer)]
    found = subprocess.run(arguments, text=True, capture_output=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert torch.equal(load_file(answer)["logits"], folded(x))


@pytest.mark.parametrize("family", ["bottleneck twice", "inverted", "vit", "vit channels"])
@torch.no_grad()
def test_a_network_can_be_pruned_twice(family: str, tmp_path: Path) -> None:
    x, network = pictures(family, torch.float64), network_of(family, torch.float64)
    made = compacted(family, network)
    once = fold(
        made, {name: torch.rand(len(c.weight)) < 0.9 for name, c in compactors(made).items()} | keep(made)
    )
    second = compacted(family, once)
    kept = masks(second)
    twice = fold(second, kept)
    assert (twice(x) - zeroed(second, kept)(x)).abs().max() < 1e-10
    assert parameters(twice) < parameters(once) < parameters(network)
    assert [o["op"] for o in twice.operations] == ["remove channels"] * 2
    small = twice.float()
    again = build(str(commit_model(small, tmp_path / "out"))).eval()
    assert torch.equal(again(x.float()), small(x.float()))


def keep(network: TimmModel) -> dict[str, Tensor]:
    """Two rows at least of what has three or fewer."""
    few = {name: c for name, c in compactors(network).items() if len(c.weight) <= 3}
    return {name: torch.arange(len(c.weight)) < 2 for name, c in few.items()}


@torch.no_grad()
def test_nothing_removed_is_no_operation() -> None:
    network, x = network_of("bottleneck", torch.float64), pictures("bottleneck", torch.float64)
    made = compacted("bottleneck", network)
    whole = fold(made, {})
    assert whole.operations == ()
    assert whole.layout == "timm"
    assert (whole(x) - made(x)).abs().max() < 1e-10


def batch_moments(network: TimmModel, x: Tensor) -> None:
    """Give all batch norms the statistics of one batch."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(x)
    network.eval()
    for norm in norms:
        norm.momentum = 0.1


@pytest.mark.parametrize(("strength", "most"), [(0.0, 0.02), (0.3, 0.3)])
@torch.no_grad()
def test_batch_norms_of_a_folded_network_train_on_at_their_scale(strength: float, most: float) -> None:
    """What a site's norm gives in train mode and in eval mode, on the batch that its statistics are of."""
    network, x = network_of("bottleneck"), pictures("bottleneck", count=16)
    batch_moments(network, x)
    made = compacted("bottleneck", network, strength)
    kept = {name: torch.arange(len(c.weight)) % 2 == 0 for name, c in compactors(made).items()}
    folded, site = fold(made, kept), compactors(made)["layer1.0.act2"].site
    naive = copy.deepcopy(folded)
    identity: Any = naive.body.get_submodule(site.norms[0])
    identity.bias -= identity.weight / (identity.running_var + identity.eps).sqrt() * identity.running_mean
    identity.running_mean.zero_()
    identity.running_var.fill_(1 - identity.eps)
    identity.weight.fill_(1)
    assert torch.allclose(naive(x), folded(x), atol=1e-4)  # the same in eval mode

    def change(made: TimmModel) -> float:
        tap = f"{site.name}.in"
        still = made.eval().call([x], [tap])[tap]
        body: Any = made.body
        layer, norm = body.layer1[0].conv2, body.layer1[0].bn2
        taken: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _m, _i, output: taken.append(output.clone()))
        made(x)
        handle.remove()
        moved = copy.deepcopy(norm).train()(taken[0])
        return float((moved - still).norm() / still.norm())

    assert change(folded) < most
    assert change(naive) > 2 * change(folded)


def test_a_folded_network_trains_on() -> None:
    made = compacted("bottleneck twice", network_of("bottleneck twice"))
    folded, x = fold(made, masks(made)).train(), pictures("bottleneck twice", count=8)
    optimiser = torch.optim.SGD(folded.parameters(), lr=0.01)
    labels, seen = torch.arange(8) % 3, []
    for _ in range(12):
        loss = nn.functional.cross_entropy(folded(x), labels)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in folded.parameters())
        optimiser.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < seen[0]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_cost_at_any_widths_is_that_of_the_folded_network(family: str) -> None:
    network = network_of(family)
    own = sites_of(family, network)
    made = compacted(family, network)
    cost, number = cost_of(made, own), parameters_of(made, own)
    example = torch.zeros(1, network.spec.channels, *network.spec.size)
    full = [site.width for site in own]
    assert (cost(full), number(full)) == (flops(network, example), parameters(network))
    kept = masks(made)
    widths = [int(kept[site.name].sum()) for site in own]
    folded = fold(made, kept)
    assert (cost(widths), number(widths)) == (flops(folded, example), parameters(folded))
    assert cost(widths) < cost(full)
    with pytest.raises(ValueError, match=f"{len(own)} sites have {len(own)} widths, not 1"):
        cost([1])


def test_masks_that_make_no_sense_are_refused() -> None:
    made = compacted("basic", network_of("basic"))
    name, compactor = next(iter(compactors(made).items()))
    for function in (fold, zeroed):
        with pytest.raises(ValueError, match="there is no compactor at layer9"):
            function(made, {"layer9": torch.ones(3, dtype=torch.bool)})
        with pytest.raises(ValueError, match=rf"{name}: at least one row is kept"):
            function(made, {name: torch.zeros(len(compactor.weight), dtype=torch.bool)})
        with pytest.raises(ValueError, match=rf"{name}: the mask of 32 rows is torch.bool \[3\]"):
            function(made, {name: torch.ones(3, dtype=torch.bool)})
        with pytest.raises(ValueError, match=rf"{name}: the mask of 32 rows is torch.float32 \[32\]"):
            function(made, {name: torch.ones(32)})


def test_the_network_itself_stays() -> None:
    network = network_of("basic")
    made = compacted("basic", network)
    before = copy.deepcopy(made.state_dict())
    kept = masks(made)
    folded = fold(made, kept)
    zeroed(made, kept)
    assert all(torch.equal(t, before[n]) for n, t in made.state_dict().items())
    assert (folded.temperature, folded.classes, folded.spec) == (2.5, CLASSES, network.spec)
    assert isinstance(sites_of("basic", folded)[0], Site)
