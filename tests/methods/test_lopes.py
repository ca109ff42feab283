"""Pictures from recorded activations: what is drawn from a record, and which classes are refused."""

import pytest
import torch

from kdcli.engine.moments import Moments
from kdcli.errors import InputError
from kdcli.methods.datafree import InversionSection, resolved
from kdcli.methods.lopes import allowed, lopes, sampled
from kdcli.models.build import build

SECTION = resolved(InversionSection(), "lopes")


def records(**spreads):
    means = {tap: torch.tensor([[1.0, 2.0], [-3.0, 4.0]]) for tap in spreads}
    return Moments(torch.tensor([0, 3]), torch.tensor([40, 25]), means, spreads)


def test_samples_have_the_recorded_moments():
    covariance = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[0.2, 0.0], [0.0, 0.1]]])
    deviation = torch.tensor([[1.0, 2.0], [0.1, 0.2]])
    found = sampled(
        records(pooled=covariance, block1=deviation), SECTION, 5, torch.tensor([0, 3]).repeat(4000)
    )
    for k in (0, 1):
        rows = found["a0"][k::2]
        assert torch.allclose(rows.mean(dim=0), torch.tensor([[1.0, 2.0], [-3.0, 4.0]])[k], atol=0.1)
        assert torch.allclose(torch.cov(rows.T), covariance[k], atol=0.12)
        assert torch.allclose(found["a1"][k::2].std(dim=0), deviation[k], rtol=0.05)


def test_samples_are_a_function_of_the_seed():
    some, targets = records(pooled=torch.eye(2).repeat(2, 1, 1)), torch.tensor([3, 0, 3])
    one, again, other = (sampled(some, SECTION, seed, targets)["a0"] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_classes_of_few_pictures_are_refused():
    names, some = ["a", "b", "c", "d"], records(pooled=torch.ones(2, 2))
    section = SECTION
    with pytest.raises(
        InputError, match=r"fewer than 20 pictures were recorded of b, c: .*small_classes=skip"
    ):
        allowed(some, names, section)
    assert allowed(some, names, section.model_copy(update={"small_classes": "skip"})) == [0, 3]
    stricter = section.model_copy(update={"small_classes": "skip", "min_count": 30})
    assert allowed(some, names, stricter) == [0]
    with pytest.raises(
        InputError, match=r"fewer than 50 pictures were recorded of a, b, c and 1 more.*No class is left"
    ):
        allowed(some, names, stricter.model_copy(update={"min_count": 50}))


def test_layers_are_weighed_by_their_size(normed):
    section, teacher = SECTION, build(str(normed))
    taps = {"pooled": torch.ones(2, 2), "block1": torch.ones(2, 2)}
    (one,) = lopes(section, teacher=teacher, moments=records(pooled=torch.ones(2, 2))).turns
    assert [term.weight for term in one.terms] == [1.0]
    (two,) = lopes(section, teacher=teacher, moments=records(**taps)).turns
    assert [(term.name, term.weight) for term in two.terms] == [
        ("activations/pooled", 0.5),
        ("activations/block1", 0.5),
    ]


@pytest.mark.parametrize("temperature", [8.0, 2.0])
def test_the_top_layer_is_logits_over_the_temperature(normed, temperature):
    """The authors' layer_activations end with logits / 8, recorded and optimised alike."""
    assert SECTION.temperature == 8.0
    section, teacher = SECTION.model_copy(update={"temperature": temperature}), build(str(normed))
    logits = torch.tensor([[4.0, -2.0, 8.0]])
    means = {"logits": torch.tensor([[2.0, -1.0, 0.5]]), "pooled": torch.ones(1, 2)}
    spreads = {"logits": torch.zeros(1, 3, 3), "pooled": torch.zeros(1, 2)}
    moments = Moments(torch.tensor([0]), torch.tensor([40]), means, spreads)
    found = sampled(moments, section, 1, torch.tensor([0]))
    torch.testing.assert_close(found["a0"], means["logits"] / temperature)
    torch.testing.assert_close(found["a1"], means["pooled"])
    (turn,) = lopes(section, teacher=teacher, moments=moments).turns
    top, below = (derive.function(logits, **derive.keywords) for derive in turn.derives)
    torch.testing.assert_close(top, logits / temperature)
    assert torch.equal(below, logits)
    wanted = ((means["logits"].relu() - logits.relu()) / temperature).square().mean()
    torch.testing.assert_close(turn.terms[0].loss(top, found["a0"]), wanted)
