"""Several teachers as one: means against their equations, each member with its own input."""

from __future__ import annotations

import pytest
import timm
import torch

from kdcli.artifacts.model import InputSpec
from kdcli.errors import InputError
from kdcli.models.ensemble import Ensemble, Mean
from kdcli.models.timm import TimmModel


def member(seed: int, size: int, mean: float = 0.5, classes: str = "abc", name: str = "") -> TimmModel:
    torch.manual_seed(seed)
    body = timm.create_model("test_vit", img_size=size, num_classes=len(classes))
    torch.nn.init.normal_(body.head.weight)  # timm's own is so small that all answers are alike
    spec = InputSpec((size, size), (mean,) * 3, (0.2,) * 3)
    return TimmModel(body, spec, list(classes), name=name or f"m{seed}", source=f"w{seed}").eval()


@pytest.fixture(scope="module")
def members() -> list[TimmModel]:
    return [member(0, 32), member(1, 48, mean=0.1), member(2, 32)]


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randint(
        0, 256, (5, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@torch.no_grad()
def test_mean_of_logits(members: list[TimmModel], x: torch.Tensor) -> None:
    naive = sum(m(x) for m in members) / 3
    torch.testing.assert_close(Ensemble(members, "logits")(x), naive)


@torch.no_grad()
def test_mean_of_probabilities(members: list[TimmModel], x: torch.Tensor) -> None:
    found = Ensemble(members, "probabilities").call([x], ("logits",))["logits"]
    naive = sum(m(x).softmax(dim=1) for m in members) / 3
    torch.testing.assert_close(found.softmax(dim=1), naive)
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(5))  # they are log-probabilities
    assert (found - Ensemble(members, "logits")(x).log_softmax(dim=1)).abs().max() > 1e-3


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
@torch.no_grad()
def test_twice_the_same_is_once(mean: Mean, members: list[TimmModel], x: torch.Tensor) -> None:
    found = Ensemble([members[1]] * 2, mean)(x)
    torch.testing.assert_close(found.softmax(dim=1), members[1](x).softmax(dim=1))


def test_what_others_read_of_it(members: list[TimmModel]) -> None:
    made = Ensemble(members, "logits")
    assert made.spec.size == (48, 48)
    assert made.name == "m0 + m1 + m2"
    assert made.classes == ["a", "b", "c"]
    assert made.block_taps() == []
    means: tuple[Mean, ...] = ("logits", "probabilities")
    groups = (members, members[:2], members[::-1])
    assert len({Ensemble(some, mean).source for some in groups for mean in means}) == 6  # of cache keys


def test_other_taps_and_other_classes_are_refused(members: list[TimmModel], x: torch.Tensor) -> None:
    with pytest.raises(InputError, match="several teachers give logits only, not logits, pooled"):
        Ensemble(members, "logits").call([x], ("logits", "pooled"))
    other = member(3, 32, classes="acb", name="other")
    with pytest.raises(InputError, match="m0 and other have different classes, or in another order"):
        Ensemble([members[0], other], "logits")
