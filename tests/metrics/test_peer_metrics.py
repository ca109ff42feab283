"""Several models together: every figure against a loop over samples."""

import pytest
import torch

from kdcli.metrics.peers import peers


@pytest.fixture(scope="module")
def three():
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 4, (60,), generator=generator)
    true = 1.5 * torch.nn.functional.one_hot(y, 4).float()
    return {name: true + torch.randn(60, 4, generator=generator) for name in "abc"}, y


def test_every_figure_is_that_of_a_loop(three):
    logits, y = three
    found = peers(logits, y)
    p = {name: z.double().softmax(1) for name, z in logits.items()}
    right = {name: (z.argmax(1) == y).tolist() for name, z in logits.items()}
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    distances = []
    for pair in found["pairs"]:
        one, two = p[pair["first"]], p[pair["second"]]
        other = [int(one[n].argmax() != two[n].argmax()) for n in range(60)]
        assert 0 < pair["disagreement"] == pytest.approx(sum(other) / 60)
        assert pair["kl"] == pytest.approx(float((one * (one / two).log()).sum() / 60), rel=1e-5)
        assert pair["kl_back"] == pytest.approx(float((two * (two / one).log()).sum() / 60), rel=1e-5)
        assert pair["kl"] != pytest.approx(pair["kl_back"], rel=1e-3)
        distances += [float((one[n] - two[n]).norm()) for n in range(60)]
    assert found["diversity"] == pytest.approx(sum(distances) / 180, rel=1e-5)
    for name in "abc":
        others = [other for other in "abc" if other != name]
        alone = [n for n in range(60) if right[name][n] and not any(right[o][n] for o in others)]
        assert 0 < found["only"][name] == pytest.approx(len(alone) / 60)
    rows = list(zip(*right.values()))
    assert found["all_right"] == pytest.approx(sum(all(row) for row in rows) / 60)
    assert found["none_right"] == pytest.approx(sum(not any(row) for row in rows) / 60)


def test_the_ensembles_are_means_of_logits_and_of_probabilities(three):
    logits, y = three
    found = peers(logits, y)["ensemble"]
    stack = torch.stack(list(logits.values())).double()
    by_logits, by_probabilities = stack.mean(0).softmax(1), stack.softmax(2).mean(0)
    for name, mean in (("logits", by_logits), ("probabilities", by_probabilities)):
        assert found[name]["top1"] == pytest.approx(float((mean.argmax(1) == y).double().mean()))
        assert found[name]["nll"] == pytest.approx(float(-mean[torch.arange(60), y].log().mean()), rel=1e-5)
    assert found["logits"]["nll"] != pytest.approx(found["probabilities"]["nll"], rel=1e-3)


def test_mean_logits_and_mean_probabilities_can_differ():
    """One sure model outvotes two doubtful ones in logits, not in probabilities."""
    logits = {"a": [[9.0, 0.0]], "b": [[0.0, 1.0]], "c": [[0.0, 2.0]]}
    found = peers({k: torch.tensor(z) for k, z in logits.items()}, torch.tensor([0]))
    assert found["ensemble"]["logits"]["top1"] == 1
    assert found["ensemble"]["probabilities"]["top1"] == 0
    assert found["only"] == {"a": 1, "b": 0, "c": 0}


def test_a_model_beside_itself(three):
    logits, y = three
    found = peers({"a": logits["a"], "again": logits["a"]}, y)
    assert found["pairs"][0]["disagreement"] == found["pairs"][0]["kl"] == found["diversity"] == 0
    assert found["only"] == {"a": 0, "again": 0}
    assert found["all_right"] + found["none_right"] == 1


def test_one_model_has_no_peers(three):
    with pytest.raises(ValueError, match="diversity needs at least 2 peers, got 1"):
        peers({"a": three[0]["a"]}, three[1])
