"""The table of blocks: what it measures, and what is read from it."""

import random

import pytest
import torch

from kdcli.models import timing
from kdcli.models.build import build
from kdcli.models.costs import cost_of
from kdcli.models.sites import sites_of
from kdcli.models.timing import PARTS, Table, block_of, latency_of, measure, width_at
from kdcli.models.timm import TimmModel


def toy(name: str = "test_resnet") -> TimmModel:
    network = build(name, pretrained=False, size=32)
    assert isinstance(network, TimmModel)
    return network


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("test_resnet", {"layer1.0", "layer2.0", "layer3.0", "layer4.0"}),
        ("test_vit", {f"blocks.{i}.{part}" for i in range(6) for part in ("attn", "mlp")}),
        ("test_efficientnet", {f"blocks.{i}.0" for i in range(1, 5)}),
    ],
)
def test_a_block_is_the_smallest_module_around_a_site(name: str, blocks: set[str]) -> None:
    network = toy(name)
    found = {block_of(site) for site in sites_of(network, "resrep").sites}
    assert found == blocks
    assert all(network.body.get_submodule(path) is not None for path in found)


def made_table(network: TimmModel, times: dict[str, tuple[float, ...]], whole: float) -> Table:
    return Table((whole,) * len(PARTS), times)


def test_times_are_read_between_those_measured_and_add_up() -> None:
    network = toy()
    sites = sites_of(network, "resrep").sites
    flops = cost_of(network, sites)
    paths = list(dict.fromkeys(map(block_of, sites)))
    falling = tuple(2.0 * part + 1.0 for part in PARTS)
    table = made_table(network, dict.fromkeys(paths, falling), 100.0)
    latency = latency_of(table, sites, flops)
    full = [site.width for site in sites]
    assert latency(full) == pytest.approx(100.0)
    for part in PARTS:
        widths = [width_at(site, part) for site in sites]
        assert latency(widths) == pytest.approx(100.0 - len(paths) * 2.0 * (1 - part))
    # one block alone: half way, in FLOPs, between two measured ones
    (number, site) = next(
        (i, s) for i, s in enumerate(sites) if [block_of(o) for o in sites].count(block_of(s)) == 1
    )
    alone = flops.part([number])
    low, high = (alone([width_at(s, part) for s in sites]) for part in (0.5, 0.75))
    width = next(
        w
        for w in range(width_at(site, 0.5), width_at(site, 0.75))
        if alone([*full[:number], w, *full[number + 1 :]]) > low
    )
    widths = [*full[:number], width, *full[number + 1 :]]
    share = (alone(widths) - low) / (high - low)
    assert latency(widths) == pytest.approx(100.0 - 3.0 + 2.0 + 0.5 * share)


def test_no_narrower_network_takes_longer_however_noisy_the_table() -> None:
    network, draw = toy("test_vit"), random.Random(1)
    sites = sites_of(network, "resrep").sites
    paths = {block_of(site) for site in sites}
    table = made_table(network, {path: tuple(draw.random() for _ in PARTS) for path in sorted(paths)}, 9.0)
    latency = latency_of(table, sites, cost_of(network, sites))
    widths = [site.width for site in sites]
    before = latency(widths)
    assert before == pytest.approx(9.0)
    while any(width > 1 for width in widths):
        at = draw.choice([i for i, width in enumerate(widths) if width > 1])
        widths[at] -= 1
        assert latency(widths) <= before + 1e-9
        before = latency(widths)


def test_measuring_leaves_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_LEAST", 1)
    monkeypatch.setattr(timing, "_ROUNDS", 1)
    network = toy()
    sites = sites_of(network, "resrep").sites
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    table = measure(network, sites, torch.device("cpu"))
    assert set(table.inner) == {block_of(site) for site in sites}
    assert all(time > 0 for row in (table.whole, *table.inner.values()) for time in row)
    assert table.whole[0] > max(row[0] for row in table.inner.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not [hook for module in network.modules() for hook in module._forward_hooks]
    assert Table.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    "found",
    [
        None, [], {}, {"parts": [1.0], "whole": [1.0], "inner": {}},
        {"parts": list(PARTS), "whole": [1.0], "inner": {}},
        {"parts": list(PARTS), "whole": [float("nan")] * len(PARTS), "inner": {}},
        {"parts": list(PARTS), "whole": [1.0] * len(PARTS), "inner": {"a": ["x"] * len(PARTS)}},
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(found: object) -> None:
    with pytest.raises(ValueError, match=r"part|table|times|float"):
        Table.from_json(found)
