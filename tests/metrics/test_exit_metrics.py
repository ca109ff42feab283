"""Exits: figures of each and of all, and early exit against a loop over samples."""

import pytest
import torch

from kdcli.metrics.classification import top_k_accuracy
from kdcli.metrics.exits import THRESHOLDS, choose, early_exit_curve, exit_metrics

FLOPS = [10.0, 25.0, 70.0]


@pytest.fixture(scope="module")
def answers():
    """Three exits, each surer and better than the one before: logits [200, 3, 5], labels [200]."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (200,), generator=generator)
    true = torch.nn.functional.one_hot(y, 5).float()[:, None]
    strength = torch.tensor([1.0, 2.0, 4.0])[None, :, None]
    return strength * true + 1.5 * torch.randn(200, 3, 5, generator=generator), y


def test_figures_of_each_and_of_their_mean(answers):
    logits, y = answers
    each, together = exit_metrics(logits, y)
    assert [row["top1"] for row in each] == [top_k_accuracy(logits[:, i], y, 1) for i in range(3)]
    assert each[0]["top1"] < each[1]["top1"] < each[2]["top1"]
    mean = logits.softmax(dim=2).mean(dim=1)
    assert together["top1"] == pytest.approx(float((mean.argmax(dim=1) == y).float().mean()))
    assert together["nll"] == pytest.approx(float(-mean.log()[torch.arange(200), y].mean()), rel=1e-5)


def test_the_curve_is_that_of_a_loop_over_samples(answers):
    logits, y = answers
    for row in early_exit_curve(logits, y, FLOPS):
        stops = []
        for sample in logits.softmax(dim=2):
            sure = [i for i in range(3) if sample[i].max() >= row["threshold"]]
            stops.append(sure[0] if sure else 2)
        right = [int(logits[n, i].argmax() == y[n]) for n, i in enumerate(stops)]
        assert row["top1"] == pytest.approx(sum(right) / 200)
        assert row["flops"] == pytest.approx(sum(FLOPS[i] for i in stops) / 200)
        assert row["exits"] == pytest.approx([stops.count(i) / 200 for i in range(3)])


def test_the_ends_are_the_first_and_the_last_exit(answers):
    logits, y = answers
    curve = early_exit_curve(logits, y, FLOPS)
    assert [row["threshold"] for row in curve] == list(THRESHOLDS)
    each, _ = exit_metrics(logits, y)
    assert curve[0]["exits"] == [1, 0, 0]
    assert curve[-1]["exits"] == [0, 0, 1]
    assert (curve[0]["top1"], curve[0]["flops"]) == (pytest.approx(each[0]["top1"]), 10)
    assert (curve[-1]["top1"], curve[-1]["flops"]) == (pytest.approx(each[2]["top1"]), 70)
    costs = [row["flops"] for row in curve]
    assert costs == sorted(costs)


def test_no_probability_passes_the_last_threshold():
    certain = torch.full((4, 2, 3), -100.0)
    certain[:, :, 0] = 100.0
    assert early_exit_curve(certain, torch.zeros(4, dtype=torch.long), [1, 2])[-1]["exits"] == [0, 1]


def row(top1, flops):
    return {"top1": top1, "flops": flops}


def test_the_choice_is_the_cheapest_within_the_slack():
    curve = [row(0.5, 1), row(0.795, 2), row(0.81, 3), row(0.8, 4)]
    assert choose(curve, 0.005) is curve[1]
    assert choose(curve, 0.004) is curve[2]
    assert choose(curve, 0.3) is curve[0]
    assert choose([row(0.5, 1), row(0.8, 4)], 0.0)["flops"] == 4
    assert choose([row(0.7, 1), row(0.9, 1), row(0.8, 4)], 0.1)["top1"] == 0.9


def test_costs_that_do_not_fit_are_refused(answers):
    with pytest.raises(ValueError, match="3 exits need as many costs, got 2"):
        early_exit_curve(*answers, FLOPS[:2])
    with pytest.raises(ValueError, match="labels must have the shape"):
        early_exit_curve(answers[0], answers[1][:5], FLOPS)
