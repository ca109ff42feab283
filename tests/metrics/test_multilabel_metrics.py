"""Metrics of several labels against scikit-learn and a search over all thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from kdcli.metrics.multilabel import (
    average_precision,
    counts,
    f1,
    multilabel_metrics,
    thresholds,
)


def draw(rows: int = 40, labels: int = 5, seed: int = 0, ties: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, labels, generator=generator)
    answers = (torch.randn(rows, labels, generator=generator) + 0.7 * logits > 0.6).float()
    return (logits.mul(2).round() / 2 if ties else logits), answers


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_scikit_learns(ties: bool, seed: int) -> None:
    logits, answers = draw(seed=seed, ties=ties)
    expected = [sk.average_precision_score(answers[:, k], logits[:, k]) for k in range(5)]
    assert average_precision(logits, answers).tolist() == pytest.approx(expected, rel=1e-12)


def test_unanswered_entries_count_nowhere() -> None:
    logits, answers = draw()
    hidden = answers.clone()
    hidden[::3, 1] = math.nan
    kept = ~hidden[:, 1].isnan()
    expected = sk.average_precision_score(answers[kept, 1], logits[kept, 1])
    assert float(average_precision(logits, hidden)[1]) == pytest.approx(expected, rel=1e-12)
    found = counts(logits >= 0, hidden)[:, 1].tolist()
    tn, fp, fn, tp = sk.confusion_matrix(answers[kept, 1], logits[kept, 1] >= 0).ravel().tolist()
    assert found == [tp, fp, fn]
    assert tn > 0


def test_f1_is_scikit_learns() -> None:
    logits, answers = draw()
    found = multilabel_metrics(logits, answers)
    predicted = (logits >= 0).numpy()
    for kind in ("macro", "micro"):
        expected = sk.f1_score(answers.numpy(), predicted, average=kind)
        assert found[f"{kind}_f1"] == pytest.approx(expected, rel=1e-12)
    assert found["exact"] == pytest.approx(sk.accuracy_score(answers.numpy(), predicted), rel=1e-12)
    probability = torch.sigmoid(logits.double()).numpy()
    losses = [sk.log_loss(answers[i], probability[i], labels=[0, 1]) for i in range(len(logits))]
    assert found["nll"] == pytest.approx(np.mean(losses), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_has_a_greater_f1(seed: int) -> None:
    logits, answers = draw(seed=seed, ties=seed % 2 == 0)
    cuts = thresholds(logits, answers)
    best = f1(counts(logits >= cuts, answers))
    for k in range(5):
        tried = [*logits[:, k].tolist(), -9.0, 9.0]
        tried = [sk.f1_score(answers[:, k], logits[:, k] >= cut) for cut in tried]
        assert float(best[k]) == pytest.approx(max(tried), rel=1e-12)
        assert not bool((logits[:, k].double() == cuts[k]).any())


def test_a_label_without_positives_is_left_out() -> None:
    logits, answers = draw()
    answers[:, 2] = 0
    rest = [0, 1, 3, 4]
    found, without = (multilabel_metrics(logits[:, k], answers[:, k]) for k in ([0, 1, 2, 3, 4], rest))
    assert math.isnan(float(average_precision(logits, answers)[2]))
    assert float(thresholds(logits, answers)[2]) == 0
    for name in ("mean_ap", "macro_f1"):
        assert found[name] == pytest.approx(without[name])


def test_perfect_answers_score_one() -> None:
    _, answers = draw()
    found = multilabel_metrics(20 * answers - 10, answers)
    assert {found[name] for name in ("mean_ap", "macro_f1", "micro_f1", "exact")} == {1.0}


@pytest.mark.parametrize(
    ("logits", "answers", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 2), r"answers must have the shape \[2, 3\] of the logits"),
        (torch.zeros(2, 3), torch.full((2, 3), math.nan), "no label of any sample is answered"),
        (torch.zeros(2, 3), torch.full((2, 3), 2.0), "answers are 1, 0 or NaN"),
        (torch.full((2, 3), math.inf), torch.zeros(2, 3), "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits: Tensor, answers: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multilabel_metrics(logits, answers)
