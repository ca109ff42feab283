"""Tensors, the layers of a pattern of taps, and lists with an entry per row are told apart."""

from __future__ import annotations

import pytest
import torch

from kdcli.engine.values import count_rows, each, gathered, is_gatherable, needs_gradient, selected
from kdcli.errors import InputError
from kdcli.models.taps import Layers

MAPS = Layers([torch.arange(12.0).view(4, 3), torch.arange(8.0).view(4, 2)])
BOXES = [torch.full((n, 4), float(n)) for n in (1, 3, 0, 2)]
MASK = torch.tensor([True, False, False, True])


def test_rows_are_selected_in_every_layer_and_entries_of_a_list() -> None:
    maps = selected(MAPS, MASK)
    assert isinstance(maps, Layers)
    assert [m.shape for m in maps] == [(2, 3), (2, 2)]
    assert [len(boxes) for boxes in selected(BOXES, MASK)] == [1, 2]
    assert not isinstance(selected(BOXES, MASK), Layers)
    assert selected(torch.arange(4), MASK).tolist() == [0, 3]


def test_rows_are_counted() -> None:
    assert (count_rows(MAPS), count_rows(BOXES), count_rows(MASK)) == (4, 4, 4)
    assert count_rows(torch.zeros(())) is None
    assert count_rows(Layers([torch.zeros(2), torch.zeros(3)])) is None


def test_a_function_goes_into_everything_and_kinds_stay() -> None:
    targets = [{"boxes": BOXES[0], "names": ("a", 1)}, {"boxes": BOXES[1], "names": ("b", 2)}]
    found = each(targets, lambda tensor: tensor + 1)
    assert [entry["boxes"].flatten()[0].item() for entry in found] == [2, 4]
    assert found[1]["names"] == ("b", 2)
    assert isinstance(each(MAPS, torch.clone), Layers)
    assert type(each(BOXES, torch.clone)) is list


def test_a_gradient_is_found_inside() -> None:
    assert needs_gradient([{"boxes": torch.zeros(2, requires_grad=True)}])
    assert not needs_gradient(BOXES)


@pytest.mark.parametrize("value", [BOXES, torch.zeros(()), Layers([torch.zeros(())])])
def test_what_has_no_rows_in_one_tensor_is_not_gathered(value: object) -> None:
    assert not is_gatherable(value)
    with pytest.raises(InputError, match="only tensors with rows are gathered"):
        gathered(value)


def test_tensors_and_layers_can_be_gathered() -> None:
    assert is_gatherable(MAPS)
    assert is_gatherable(MASK)
