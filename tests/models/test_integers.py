"""Integers for weights: rounding as loops say, nothing lost in a file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compacting import FAMILIES, compacted, masks, network_of, pictures
from safetensors.torch import load_file
from torch import Tensor, nn

from kdcli.artifacts.files import write_tensors
from kdcli.errors import InputError
from kdcli.models.folding import fold
from kdcli.models.integers import quantised, restored, sizes


def layer(rows: list[list[float]]) -> nn.Linear:
    linear = nn.Linear(len(rows[0]), len(rows))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(rows))
    return linear


def test_golden_values() -> None:
    tensors = quantised(layer([[1.27, -0.635, 0.0], [0.0, 0.0, 0.0], [-254.0, 2.9, 3.1]]))
    assert tensors["weight"].tolist() == [[127, -64, 0], [0, 0, 0], [-127, 1, 2]]
    assert tensors["weight"].dtype == torch.int8
    assert tensors["weight.scale"].tolist() == pytest.approx([0.01, 2.0**-100, 2.0], rel=2**-17)
    assert restored(tensors)["weight"][2].tolist() == [-254.0, 2.0, 4.0]


@pytest.mark.parametrize("family", ["basic", "inverted", "gated", "convnext", "vit"])
def test_rounding_as_loops_say(family: str) -> None:
    network = network_of(family)
    tensors, before = quantised(network), network.state_dict()
    layers = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {n for n, t in tensors.items() if t.dtype == torch.int8} == {f"{n}.weight" for n in layers}
    assert any(m.groups > 1 for m in network.modules() if isinstance(m, nn.Conv2d)) == (
        family in ("inverted", "convnext")
    )
    for name in sorted(layers)[:4] + sorted(layers)[-2:]:
        weight, whole, scale = (
            t.flatten(1) if t.ndim > 1 else t
            for t in (before[f"{name}.weight"], tensors[f"{name}.weight"], tensors[f"{name}.weight.scale"])
        )
        for row in range(0, len(weight), 7):
            step = max(abs(v) for v in weight[row].tolist()) / 127
            assert float(scale[row]) == pytest.approx(step, rel=2**-17)
            for value, number in zip(weight[row].tolist()[:50], whole[row].tolist()):
                assert abs(number - value / float(scale[row])) <= 0.5 + 1e-4
                assert abs(number) <= 127


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_read_back_is_the_rounded_network_bit_for_bit(family: str, tmp_path: Path) -> None:
    network, x = network_of(family), pictures(family)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tensors = quantised(network)
    write_tensors(tmp_path / "model.safetensors", tensors)
    back = restored(load_file(tmp_path / "model.safetensors"))
    assert set(back) == set(before)
    assert {t.dtype for t in back.values()} == {t.dtype for t in before.values()}
    for name, tensor in back.items():
        if name + ".scale" in tensors:
            exact = tensors[name].double() * tensors[name + ".scale"].double().view(
                -1, *[1] * (tensor.ndim - 1)
            )
            assert torch.equal(tensor.double(), exact)
            assert (tensor - before[name]).abs().max() <= 0.502 * tensors[name + ".scale"].max()
        else:
            assert torch.equal(tensor, before[name])
    wanted = network(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.load_state_dict(back)
    assert 0 < (network(x) - wanted).abs().max() < 0.2 * wanted.abs().max()
    again = quantised(network)
    assert set(again) == set(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.items())


def test_a_folded_network_is_a_quarter_as_large(tmp_path: Path) -> None:
    made = compacted("bottleneck", network_of("bottleneck"))
    network = fold(made, masks(made))
    tensors = quantised(network)
    write_tensors(tmp_path / "int8.safetensors", tensors)
    write_tensors(tmp_path / "fp32.safetensors", network.state_dict())
    told = sizes(tensors)
    assert told["fp32_bytes"] == sum(t.nbytes for t in network.state_dict().values())
    assert told["bytes"] == sum(t.nbytes for t in tensors.values())
    assert told["tensors"] == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules())
    weights = sum(m.weight.nbytes for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    scales = sum(4 * len(m.weight) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert told["fp32_bytes"] - told["bytes"] == weights * 3 // 4 - scales
    assert (tmp_path / "int8.safetensors").stat().st_size < (tmp_path / "fp32.safetensors").stat().st_size


def test_the_files_of_an_artifact_are_read_back(tmp_path: Path) -> None:
    network = network_of("basic")
    tensors = quantised(network)
    assert "model.safetensors" in network.save(tmp_path, tensors)
    back = restored(load_file(tmp_path / "model.safetensors"))
    wanted = restored(tensors)
    assert set(back) == {name.removeprefix("body.") for name in wanted}
    assert all(torch.equal(tensor, wanted[f"body.{name}"]) for name, tensor in back.items())


def test_tensors_without_integers_stay_as_they_are() -> None:
    plain = {"a.weight": torch.ones(2, 3), "a.weight.scale": torch.ones(2), "layer.scale": torch.ones(1)}
    assert restored(plain) == plain
    assert sizes(plain) == {"tensors": 0, "bytes": 36, "fp32_bytes": 36}


def test_tiny_weights_do_not_vanish_into_zero_scales() -> None:
    tensors = quantised(layer([[1e-30, -1e-30], [1e-45, 0.0]]))
    assert tensors["weight"].tolist()[1] == [0, 0]
    assert restored(tensors)["weight"][0].tolist() == pytest.approx([1e-30, -1e-30], rel=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_diverged_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="weight has NaN or Inf, which no integer stands for"):
        quantised(layer([[1.0, value]]))


WHOLE = torch.ones(2, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (None, r"^x.weight has integers without x.weight.scale: the file is not whole\.$"),
        (torch.ones(3), r"^x.weight.scale is no scale for each of the 2 rows of x.weight\.$"),
        (torch.ones(2).half(), "is no scale for each of the 2 rows"),
        (torch.tensor([1.0, float("inf")]), "is no scale for each of the 2 rows"),
    ],
)
def test_damaged_integers_are_refused(scale: Tensor | None, message: str) -> None:
    tensors = {"x.weight": WHOLE} | ({} if scale is None else {"x.weight.scale": scale})
    with pytest.raises(InputError, match=message):
        restored(tensors)
