import math

import pytest
import torch

from kdcli.metrics.classification import (
    classification_metrics,
    confused,
    confusion,
    expected_calibration_error,
    mean_per_class_accuracy,
    negative_log_likelihood,
    per_class,
    reliability,
    top_k_accuracy,
)


def sample(samples=60, classes=7, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % classes
    logits = torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), y] += 1.5 * torch.rand(samples, generator=generator)
    return logits.to(dtype), y


def probabilities(row):
    top = max(row)
    exps = [math.exp(v - top) for v in row]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("k", [1, 2, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_k_is_the_definition(k, dtype):
    logits, y = sample(dtype=dtype)
    hits = 0
    for row, label in zip(logits.tolist(), y.tolist()):
        hits += label in sorted(range(len(row)), key=lambda i: -row[i])[:k]
    assert top_k_accuracy(logits, y, k) == pytest.approx(hits / len(y))


def test_top_k_clips_and_refuses():
    logits, y = sample()
    assert top_k_accuracy(logits, y, 100) == 1.0
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        top_k_accuracy(logits, y, 0)


def test_ties_are_resolved_like_argmax():
    logits, y = torch.zeros(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert top_k_accuracy(logits, y, 1) == pytest.approx(1 / 3)
    assert top_k_accuracy(logits, y, 2) == pytest.approx(2 / 3)
    assert mean_per_class_accuracy(logits, y) == pytest.approx(1 / 3)
    assert confusion(logits, y, 3).tolist() == [[2, 0, 0], [2, 0, 0], [2, 0, 0]]


def test_mean_per_class_weighs_classes_and_skips_absent_ones():
    # Class 0: 3 of 4 right; class 1: 0 of 1, taken for the absent class 2.
    logits = torch.eye(3)[[0, 0, 0, 1, 2]]
    y = torch.tensor([0, 0, 0, 0, 1])
    assert mean_per_class_accuracy(logits, y) == pytest.approx((3 / 4 + 0) / 2)


def test_nll_is_the_definition_and_survives_large_half_precision_logits():
    logits, y = sample()
    expected = -sum(math.log(probabilities(r)[t]) for r, t in zip(logits.tolist(), y.tolist())) / len(y)
    assert negative_log_likelihood(logits, y) == pytest.approx(expected, rel=1e-6)
    half = torch.tensor([[6e4, -6e4]], dtype=torch.float16)
    assert negative_log_likelihood(half, torch.tensor([1])) == pytest.approx(
        float(half[0, 0] - half[0, 1].float())
    )


def naive_bins(logits, y, bins):
    members = [[] for _ in range(bins)]
    for row, label in zip(logits.tolist(), y.tolist()):
        p = probabilities(row)
        confidence = max(p)
        m = next(m for m in range(bins) if m / bins < confidence <= (m + 1) / bins + 1e-9)
        members[m].append((confidence, p.index(confidence) == label))
    return members


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_reliability_and_ece_are_the_definition(bins):
    logits, y = sample(200)
    curve = reliability(logits, y, bins)
    ece = 0.0
    for m, members in enumerate(naive_bins(logits, y, bins)):
        assert curve["count"][m] == len(members)
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            accuracy = sum(right for _, right in members) / len(members)
            assert curve["confidence"][m] == pytest.approx(confidence, rel=1e-5)
            assert curve["accuracy"][m] == pytest.approx(accuracy)
            ece += len(members) / len(y) * abs(accuracy - confidence)
        else:
            assert curve["confidence"][m] == curve["accuracy"][m] == 0.0
    assert expected_calibration_error(logits, y, bins) == pytest.approx(ece, rel=1e-5)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it():
    logits = torch.zeros(1, 2, dtype=torch.float64)  # confidence exactly 0.5
    assert reliability(logits, torch.tensor([0]), 2)["count"] == [1, 0]
    sure = torch.tensor([[1000.0, 0.0]])  # confidence exactly 1
    assert reliability(sure, torch.tensor([0]), 2)["count"] == [0, 1]
    assert expected_calibration_error(sure, torch.tensor([1])) == pytest.approx(1.0)


def test_bins_are_refused_below_one():
    with pytest.raises(ValueError, match="bins must be at least 1"):
        reliability(*sample(), bins=0)


def test_confusion_has_truth_in_rows():
    logits, y = sample()
    expected = torch.zeros(7, 7, dtype=torch.int64)
    for row, label in zip(logits.tolist(), y.tolist()):
        expected[label, row.index(max(row))] += 1
    counts = confusion(logits, y, 7)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)
    assert counts.trace() / counts.sum() == pytest.approx(top_k_accuracy(logits, y, 1))
    with pytest.raises(ValueError, match="logits have 7 classes where 8 are expected"):
        confusion(logits, y, 8)


def test_torchmetrics_says_the_same():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, y = sample(210)
    kwargs = {"num_classes": 7}
    for k in (1, 5):
        theirs = functional.multiclass_accuracy(logits, y, top_k=k, average="micro", **kwargs)
        assert top_k_accuracy(logits, y, k) == pytest.approx(float(theirs))
    theirs = functional.multiclass_accuracy(logits, y, average="macro", **kwargs)
    assert mean_per_class_accuracy(logits, y) == pytest.approx(float(theirs))
    theirs = functional.multiclass_calibration_error(logits, y, n_bins=15, norm="l1", **kwargs)
    assert expected_calibration_error(logits, y) == pytest.approx(float(theirs), rel=1e-4)
    assert torch.equal(confusion(logits, y, 7), functional.multiclass_confusion_matrix(logits, y, **kwargs))


def test_the_report_of_a_classifier():
    logits, y = sample()
    metrics = classification_metrics(logits, y)
    assert list(metrics) == ["top1", "top5", "mean_per_class", "nll", "ece"]
    assert metrics["top5"] == top_k_accuracy(logits, y, 5)
    assert all(type(value) is float for value in metrics.values())
    five = classification_metrics(*sample(classes=5))
    assert list(five) == ["top1", "mean_per_class", "nll", "ece"]


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (torch.empty(0, 3), torch.empty(0, dtype=torch.long), "no samples: a metric of an empty set"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), r"shape \[samples, classes\], not \[3\]"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "1 of 1 samples are not finite"),
        (torch.tensor([[0.0, math.inf], [0, 0]]), torch.tensor([0, 0]), "1 of 2 samples are not finite"),
        (torch.zeros(2, 3), torch.tensor([0]), r"shape \[2\] of the logits, not \[1\]"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "labels must be integers, not torch.float32"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), r"1 labels lie outside \[0, 3\), the first is -1"),
        (torch.zeros(2, 3), torch.tensor([3, 0]), "the first is 3: drop unlabelled"),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [classification_metrics, mean_per_class_accuracy, negative_log_likelihood, expected_calibration_error],
)
def test_what_has_no_metric_is_refused(metric, logits, y, message):
    with pytest.raises(ValueError, match=message):
        metric(logits, y)


def test_confusions_without_a_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(400, 7, generator=generator), torch.randint(7, (400,), generator=generator)
    matrix = confusion(logits, y, 7)
    pairs = confused(logits, y, 1000)
    off = [(i, j, int(matrix[i, j])) for i in range(7) for j in range(7) if i != j and matrix[i, j]]
    assert pairs == sorted(off, key=lambda pair: (-pair[2], pair[:2]))
    assert confused(logits, y, 3) == pairs[:3]
    assert confused(torch.eye(7), torch.arange(7), 3) == []
    found = per_class(logits, y)
    assert found == {"samples": matrix.sum(1).tolist(), "right": matrix.diagonal().tolist()}
