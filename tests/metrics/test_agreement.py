import math

import pytest
import torch

from kdcli.metrics.agreement import agreement
from kdcli.metrics.classification import top_k_accuracy


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(3)
    teacher = 2 * torch.randn(40, 5, generator=generator)
    student = teacher + 1.5 * torch.randn(40, 5, generator=generator)
    return student, teacher, torch.randint(0, 5, (40,), generator=generator)


def softmax(row):
    exps = [math.exp(v) for v in row]
    return [e / sum(exps) for e in exps]


def test_each_number_is_its_definition(case):
    student, teacher, y = case
    same = both = only_student = only_teacher = neither = 0
    kl = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), y.tolist()):
        ps, pt = softmax(s), softmax(t)
        s_top, t_top = s.index(max(s)), t.index(max(t))
        same += s_top == t_top
        both += s_top == label and t_top == label
        only_student += s_top == label and t_top != label
        only_teacher += s_top != label and t_top == label
        neither += s_top != label and t_top != label
        kl += sum(p * (math.log(p) - math.log(q)) for p, q in zip(pt, ps))
    result = agreement(student, teacher, y)
    assert result == pytest.approx(
        {
            "agreement": same / 40,
            "kl": kl / 40,
            "both_right": both / 40,
            "only_student": only_student / 40,
            "only_teacher": only_teacher / 40,
            "neither_right": neither / 40,
        },
        rel=1e-6,
    )
    assert only_student > 0
    assert only_teacher > 0
    assert neither > 0
    right = result["both_right"] + result["only_student"]
    assert right == pytest.approx(top_k_accuracy(student, y, 1))
    assert right + result["only_teacher"] + result["neither_right"] == pytest.approx(1.0)


def test_without_labels_only_what_needs_none(case):
    student, teacher, _ = case
    assert list(agreement(student, teacher)) == ["agreement", "kl"]


def test_a_perfect_copy_and_a_shifted_one(case):
    _, teacher, _ = case
    for copy in (teacher, teacher + 7.0):
        result = agreement(copy, teacher)
        assert result["agreement"] == 1.0
        assert 0.0 <= result["kl"] < 1e-9


def test_the_direction_of_the_divergence():
    teacher = torch.tensor([[0.9, 0.1]]).log()
    student = torch.tensor([[0.5, 0.5]]).log()
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert agreement(student, teacher)["kl"] == pytest.approx(forward, rel=1e-6)
    assert agreement(teacher, student)["kl"] == pytest.approx(backward, rel=1e-6)


def test_torchmetrics_says_the_same(case):
    functional = pytest.importorskip("torchmetrics.functional")
    student, teacher, _ = case
    theirs = functional.kl_divergence(teacher.softmax(1), student.softmax(1))
    assert agreement(student, teacher)["kl"] == pytest.approx(float(theirs), rel=1e-5)


def test_misfits_are_refused_by_name(case):
    student, teacher, y = case
    with pytest.raises(ValueError, match=r"\[40, 5\] and teacher logits \[40, 4\] must have one shape"):
        agreement(student, teacher[:, :4], y)
    with pytest.raises(ValueError, match="teacher logits of 40 of 40 samples are not finite"):
        agreement(student, teacher * math.nan)
    with pytest.raises(ValueError, match="student logits hold no samples"):
        agreement(student[:0], teacher[:0])
    with pytest.raises(ValueError, match=r"labels must have the shape \[40\]"):
        agreement(student, teacher, y[:3])


def test_logits_that_are_compared_in_parts_say_the_same(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(50, 6, generator=generator) for _ in range(2))
    y = torch.arange(50) % 6
    whole = agreement(student, teacher, y)
    monkeypatch.setattr("kdcli.metrics.agreement._ENTRIES", 20)
    assert agreement(student, teacher, y) == pytest.approx(whole, rel=1e-12)
