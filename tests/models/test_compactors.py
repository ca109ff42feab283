"""Compactors: the identity at the start, beside loops, and what a compacted network survives."""

from __future__ import annotations

import copy

import pytest
import torch
from compacting import FAMILIES, compacted, network_of, pictures, sites_of

from kdcli.models.compactors import Compactor, compactors, insert, removed
from kdcli.models.sites import Site


def site_of(width: int, *, diagonal: bool = False, last: bool = False, each: int = 1) -> Site:
    return Site("act", width, "conv", (), (), (), ("next",), "conv", diagonal, last, "convolution", each)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_compactor_beside_loops(diagonal: bool, last: bool) -> None:
    torch.manual_seed(0)
    compactor = Compactor(site_of(3, diagonal=diagonal, last=last), torch.zeros(1, dtype=torch.float64))
    torch.nn.init.normal_(compactor.weight)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    given = x.permute(0, 2, 3, 1) if last else x
    answer = compactor(given)
    answer = answer.permute(0, 3, 1, 2) if last else answer
    for b in range(2):
        for i in range(3):
            for row in range(4):
                for column in range(5):
                    if diagonal:
                        expected = compactor.weight[i] * x[b, i, row, column]
                    else:
                        expected = sum(compactor.weight[i, j] * x[b, j, row, column] for j in range(3))
                    assert torch.allclose(answer[b, i, row, column], expected, atol=1e-14)


def test_a_number_for_each_head_scales_its_channels() -> None:
    compactor = Compactor(site_of(2, diagonal=True, last=True, each=3), torch.zeros(1))
    with torch.no_grad():
        compactor.weight.copy_(torch.tensor([2.0, -1.0]))
    assert compactor(torch.ones(1, 1, 6)).tolist() == [[[2, 2, 2, -1, -1, -1]]]


def test_a_zero_row_gives_a_zero_channel_and_types_stay() -> None:
    compactor = Compactor(site_of(3), torch.zeros(1, dtype=torch.bfloat16))
    with torch.no_grad():
        compactor.weight[1] = 0
    answer = compactor(torch.randn(1, 3, 2, 2, dtype=torch.bfloat16))
    assert answer.dtype == torch.bfloat16
    assert (answer[:, 1] == 0).all()
    assert (answer[:, [0, 2]] != 0).all()
    scale = Compactor(site_of(3, diagonal=True), torch.zeros(1))  # float32 weights in a bfloat16 pass
    assert scale(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert repr(scale) == "Compactor(3, convolution, diagonal)"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_compactors_change_no_answer_at_the_start(family: str) -> None:
    network, x = network_of(family), pictures(family)
    made = insert(network, sites_of(family, network))
    assert torch.equal(made(x), network(x))
    assert not torch.equal(compacted(family, network)(x), network(x))
    names, new = set(network.state_dict()), set(made.state_dict())
    assert names <= new
    assert new - names == {f"body.{name}.compactor.weight" for name in compactors(made)}
    for name, tensor in network.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor)
    kept = ("classes", "spec", "temperature", "task", "name", "operations", "head", "unnamed", "source")
    assert all(getattr(made, fact) == getattr(network, fact) for fact in kept)
    assert not any(module.training for module in made.modules())
    assert list(removed(made).state_dict()) == list(network.state_dict())


@pytest.mark.parametrize("family", ["bottleneck twice", "inverted", "vit"])
@torch.no_grad()
def test_a_compacted_network_survives_copies_and_state_dicts(family: str) -> None:
    network, x = network_of(family), pictures(family)
    made = compacted(family, network)
    again = insert(network, sites_of(family, network))
    again.load_state_dict(made.state_dict())
    twin = copy.deepcopy(made)
    assert torch.equal(again(x), made(x))
    assert torch.equal(twin(x), made(x))
    assert list(compactors(twin)) == list(compactors(made))
    like = made(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(made.to(memory_format=torch.channels_last)(x), like, atol=1e-6)


@pytest.mark.parametrize("family", ["bottleneck twice", "inverted", "convnext", "vit"])
def test_taps_before_and_after_a_compactor(family: str) -> None:
    network, x = network_of(family), pictures(family)
    made = compacted(family, network)
    for name, compactor in list(compactors(made).items())[:3]:
        before, after = f"{name}.in", f"{name}.compactor"
        taken = made.call([x], [before, after, "logits"])
        assert torch.equal(taken[after], compactor(taken[before]))
        assert (taken[after] - taken[before]).abs().max() > 0.01
        assert (taken[before] < 0).any()  # not what the activation has made of it
        taken["logits"].square().sum().backward()
        assert compactor.weight.grad is not None
        assert compactor.weight.grad.abs().max() > 0
    first = next(iter(compactors(made)))
    plain = network.call([x], [f"{first}.in"])[f"{first}.in"]  # the teacher's, without compactors
    assert torch.equal(plain, made.call([x], [f"{first}.in"])[f"{first}.in"])


def test_a_compactor_stands_alone() -> None:
    network = network_of("basic")
    made = sites_of("basic", network)
    with pytest.raises(ValueError, match=r"^layer1\.0\.act1 has a compactor"):
        insert(insert(network, made), made[:1])
    with pytest.raises(ValueError, match=r"^layer1\.0\.act1 has a compactor"):
        insert(network, [made[0], made[0]])
    some = insert(network, made[1:2])
    assert list(compactors(some)) == [made[1].name]
    assert compactors(network) == {}
