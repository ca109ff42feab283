"""What follows a block: where a network cannot be divided that is said, and an error of ours stays one."""

from __future__ import annotations

import pytest
import torch

from kdcli.errors import InputError
from kdcli.models import branches
from kdcli.models.branches import Tail
from kdcli.models.build import build


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_tail_answers_as_the_whole_network(name: str) -> None:
    network = build(name, pretrained=False, size=32).eval()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        whole = network.call([x], ["block-2", "logits"])
        torch.testing.assert_close(Tail(network, "block-2")(whole["block-2"])["logits"], whole["logits"])


def test_a_network_whose_stages_are_no_sequence_of_modules_is_refused() -> None:
    with pytest.raises(
        InputError, match="xcit_nano_12_p16_224 cannot be divided behind 'block-2': use whole networks"
    ):
        Tail(build("xcit_nano_12_p16_224", pretrained=False, size=32), "block-2")


@pytest.mark.parametrize("kind", [TypeError, AttributeError])
def test_an_error_of_our_own_stays_one(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(body: object) -> None:
        raise kind("a fault of ours")

    monkeypatch.setattr(branches, "classifier", broken)
    with pytest.raises(kind, match="a fault of ours"):
        Tail(build("test_vit", pretrained=False, size=32), "block-2")
