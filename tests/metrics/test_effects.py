"""The three effects of distillation: figures by loops, and that each control destroys one effect alone."""

import json
import math

import numpy as np
import pytest
import torch

from kdcli.losses.targets import rescaling_weight
from kdcli.metrics import effects as measures
from kdcli.metrics.effects import (
    BINS,
    QUANTILES,
    effects,
    relations,
    rescaling,
    shuffle_classes,
    shuffle_samples,
    softness,
    spearman,
)

CLASSES, SAMPLES = 6, 300


@pytest.fixture(scope="module")
def pair():
    """A teacher that knows which classes are alike and which samples are hard, and its student."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(SAMPLES) % CLASSES
    alike = torch.randn(CLASSES, CLASSES, generator=generator)
    hard = 2.5 * torch.rand(SAMPLES, generator=generator)
    signal = (4 - hard)[:, None] * torch.nn.functional.one_hot(y, CLASSES) + alike[y]
    teacher = signal + 0.3 * torch.randn(SAMPLES, CLASSES, generator=generator)
    student = 0.7 * signal + 0.6 * torch.randn(SAMPLES, CLASSES, generator=generator)
    return student, teacher, y


def by_hand(a, b):
    """Spearman's correlation of two numpy arrays, ranks counted one by one."""
    ranks = [[np.sum(x < v) + (np.sum(x == v) + 1) / 2 for v in x] for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_softness_by_a_loop(pair):
    student, _, y = pair
    found = softness(student, y)
    p = student.double().softmax(1).numpy()
    assert found["entropy"] == pytest.approx(np.mean([-(row * np.log(row)).sum() for row in p]), rel=1e-5)
    assert found["max_prob"] == pytest.approx(np.mean([row.max() for row in p]), rel=1e-5)
    norms = [np.linalg.norm(row - row.mean()) for row in student.double().numpy()]
    assert found["logit_norm"] == pytest.approx(np.mean(norms), rel=1e-5)
    shifted = softness(student + 5, y)
    assert shifted["logit_norm"] == pytest.approx(found["logit_norm"], rel=1e-5)


def test_spearman_by_hand():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = (torch.randint(0, 6, (30,), generator=generator).float() for _ in range(2))  # many ties
        assert spearman(a, b) == pytest.approx(by_hand(a.numpy(), b.numpy()))
    a = torch.randn(20, generator=generator)
    assert spearman(a, a.exp()) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, torch.ones(20)) is None


def test_relations_are_of_class_means_off_the_diagonal(pair):
    student, teacher, y = pair
    keep = y != 4  # one class has no sample: its row is left out, its column stays
    student, teacher, y = student[keep], teacher[keep], y[keep]
    lists = []
    for logits in (student, teacher):
        p = logits.double().softmax(1).numpy()
        means = {c: p[y.numpy() == c].mean(0) for c in range(CLASSES) if c != 4}
        lists.append(np.array([means[c][k] for c in means for k in range(CLASSES) if k != c]))
    assert len(lists[0]) == 5 * 5
    assert relations(student, teacher, y) == pytest.approx(by_hand(*lists), abs=1e-6)


def test_rescaling_by_a_loop(pair):
    student, teacher, y = pair
    found = rescaling(student, teacher, y, mix=0.3)
    p, q = (z.double().softmax(1).numpy()[range(SAMPLES), y] for z in (student, teacher))
    w = 0.7 + 0.3 * (q - p) / (1 - p)
    assert rescaling_weight(student, teacher, y, mix=0.3).numpy() == pytest.approx(w, rel=1e-3, abs=1e-3)
    assert found["mean"] == pytest.approx(w.mean(), rel=1e-3)
    assert found["quantiles"] == pytest.approx(np.quantile(w, QUANTILES).tolist(), rel=1e-5)
    assert found["with_teacher"] == pytest.approx(by_hand(w, q), abs=1e-6)
    assert found["with_difficulty"] == pytest.approx(by_hand(w, -np.log(p)), abs=1e-3)
    order = np.argsort(q)
    for group, row in zip(np.array_split(order, BINS), found["bins"]):
        assert row["count"] == len(group) == SAMPLES // BINS
        assert row["teacher"] == pytest.approx(q[group].mean(), rel=1e-3)
        assert row["weight"] == pytest.approx(w[group].mean(), rel=1e-2, abs=1e-4)


def test_shuffled_classes_keep_all_but_the_relations(pair):
    _, teacher, y = pair
    shuffled = shuffle_classes(teacher, y, torch.Generator().manual_seed(0))
    rows = torch.arange(SAMPLES)
    assert torch.equal(shuffled[rows, y], teacher[rows, y])
    assert torch.equal(shuffled.sort(1).values, teacher.sort(1).values)
    assert (shuffled != teacher).any(1).double().mean() > 0.9
    assert len({tuple(row.tolist()) for row in (shuffled.argsort(1) - teacher.argsort(1))}) > 50


def test_shuffled_samples_keep_all_but_who_is_hard(pair):
    _, teacher, y = pair
    shuffled = shuffle_samples(teacher, y, torch.Generator().manual_seed(0))
    before, after = teacher.softmax(1), shuffled.exp()
    torch.testing.assert_close(after.sum(1), torch.ones(SAMPLES))
    rows = torch.arange(SAMPLES)
    for c in range(CLASSES):
        own = y == c
        q, moved = before[rows, y][own], after[rows, y][own]
        torch.testing.assert_close(moved.sort().values, q.sort().values, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(moved, q, atol=1e-3)
    others = torch.ones(SAMPLES, CLASSES, dtype=torch.bool).scatter(1, y[:, None], False)
    for probabilities in (before, after):
        probabilities /= (probabilities * others).sum(1, keepdim=True)
    torch.testing.assert_close(before[others], after[others], rtol=1e-3, atol=1e-5)


def test_each_control_destroys_its_effect(pair):
    student, teacher, y = pair
    found = effects(student, teacher, y, mix=0.5, seed=0)
    real, classes, samples = found["teachers"].values()
    assert list(found["teachers"]) == ["teacher", "shuffled_classes", "shuffled_samples"]
    assert real["relations"] > 0.9
    assert abs(classes["relations"]) < 0.4
    assert samples["relations"] > 0.9
    for key in ("mean", "with_teacher", "with_difficulty"):
        assert classes["rescaling"][key] == pytest.approx(real["rescaling"][key], rel=1e-4)
        assert samples["rescaling"][key] != pytest.approx(real["rescaling"][key], rel=1e-2)
    assert samples["rescaling"]["with_difficulty"] > real["rescaling"]["with_difficulty"]
    for key in ("entropy", "max_prob", "logit_norm", "ece"):
        assert classes[key] == pytest.approx(real[key], rel=1e-3)
    assert samples["max_prob"] == pytest.approx(real["max_prob"], rel=0.02)
    assert {k: real[k] for k in found["student"]} == softness(teacher, y)
    assert found["student"] == softness(student, y)
    rest = 1 - teacher.double().softmax(1)[torch.arange(SAMPLES), y]
    assert found["smoothing"] == pytest.approx(float(rest.mean()), rel=1e-4)


def test_the_seed_decides_the_permutations(pair):
    one, same, other = (effects(*pair, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one["teachers"]["teacher"] == other["teachers"]["teacher"]
    assert one["teachers"]["shuffled_classes"] != other["teachers"]["shuffled_classes"]
    assert one["teachers"]["shuffled_samples"] != other["teachers"]["shuffled_samples"]


def test_classifiers_of_different_widths_are_compared_by_their_angles(pair):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(CLASSES, 5, generator=generator)
    turned = 3 * teacher @ torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    wide = torch.cat([turned, torch.zeros(CLASSES, 4)], 1)
    other = torch.randn(CLASSES, 7, generator=generator)
    assert effects(*pair)["weights"] is None
    assert effects(*pair, weights=(wide, teacher))["weights"] == pytest.approx(1, abs=1e-3)
    lists = []
    for rows in (other, teacher):
        unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
        lists.append(np.array([unit[i] @ unit[k] for i in range(6) for k in range(i)]))
    assert effects(*pair, weights=(other, teacher))["weights"] == pytest.approx(by_hand(*lists), abs=1e-3)


def test_two_classes_and_sure_answers_stay_finite():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [0.0, 1.0]])
    found = effects(logits, logits.flip(0), torch.tensor([0, 1, 1]))
    text = json.dumps(found, allow_nan=False)
    assert math.isfinite(json.loads(text)["teachers"]["shuffled_samples"]["entropy"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t, y: (s, t[:, :5], y), r"student logits \[300, 6\] and teacher logits \[300, 5\]"),
        (lambda s, t, y: (s, t, y[:3]), "labels must have the shape"),
        (lambda s, t, y: (s * torch.inf, t, y), "student logits of .* are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(pair, change, message):
    with pytest.raises(ValueError, match=message):
        effects(*change(*pair))


def test_relations_of_many_classes_are_those_of_some(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(300, 12, generator=generator) for _ in range(2))
    y = torch.arange(300) % 9 + 2  # classes 0, 1 and 11 have no sample
    monkeypatch.setattr(measures, "RELATED", 3)
    some = [2, 6, 10]
    rows = torch.isin(y, torch.tensor(some))
    lists = []
    for logits in (student, teacher):
        p = logits.softmax(1)[rows][:, some]
        means = torch.stack([p[y[rows] == c].mean(0) for c in some])
        lists.append(means[~torch.eye(3, dtype=torch.bool)])
    assert measures.relations(student, teacher, y) == pytest.approx(measures.spearman(*lists))
    weights = torch.randn(12, 5, generator=generator)
    unit = torch.nn.functional.normalize(weights[[0, 6, 11]], dim=1)  # the 5.5th rounds to 6
    cosines = torch.stack([unit[0] @ unit[1], unit[0] @ unit[2], unit[1] @ unit[2]])
    torch.testing.assert_close(measures._pairs(weights), cosines)
