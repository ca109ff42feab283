"""Single-label classification: matching labels by name, weights of classes, terms and metrics."""

import numpy as np
import pytest
import torch

from kdcli.errors import InputError
from kdcli.losses.logits import cross_entropy, kl_divergence
from kdcli.metrics.classification import classification_metrics
from kdcli.tasks.classification import Classification, class_weights
from kdcli.tasks.matching import permutation

DATA = ["cat", "dog", "eel"]


def test_the_same_order_needs_no_permutation() -> None:
    assert permutation(DATA, list(DATA), "names", "t") is None
    assert permutation(DATA, tuple(DATA), "names", "t") is None


@pytest.mark.parametrize("teacher", [["eel", "cat", "dog"], ["dog", "cat", "eel"]])
def test_columns_are_matched_by_name(teacher: list[str]) -> None:
    order = permutation(DATA, teacher, "names", "t")
    assert order is not None
    assert [teacher[i] for i in order] == DATA
    logits = torch.tensor([[float(DATA.index(name)) for name in teacher]])
    assert logits[:, order].tolist() == [[0.0, 1.0, 2.0]]


def test_the_same_order_may_be_declared() -> None:
    assert permutation(DATA, ["0", "1", "2"], "same", "t") is None


@pytest.mark.parametrize(
    ("teacher", "order", "message"),
    [
        (None, "names", "teacher t has no trained classifier; fit one with kdcli probe"),
        (None, "same", "has no trained classifier"),
        (["cat", "dog"], "names", "knows 2 classes, the data has 3. Probe the teacher on this data first"),
        (["a", "b", "c", "d"], "same", "knows 4 classes, the data has 3"),
        (["cat", "dog", "fox"], "names", r"name their classes differently \(eel, fox, …\).*class_order=same"),
        (["cat", "cat", "dog"], "names", "has the class 'cat' more than once"),
    ],
)
def test_other_names_are_refused(teacher: list[str] | None, order: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        permutation(DATA, teacher, order, "teacher t")  # type: ignore[arg-type]


def test_names_that_repeat_are_no_match_by_name() -> None:
    """ImageNet has two cranes: a set of names that agrees is not enough."""
    with pytest.raises(InputError, match=r"'crane'.*more than once.*class_order=same"):
        permutation(["crane", "crane", "dog"], ["dog", "crane", "crane"], "names", "t")
    assert permutation(["crane", "crane", "dog"], ["crane", "crane", "dog"], "names", "t") is None


def test_class_weights_give_every_class_the_same_share() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2] + [-1] * 5)
    weights = class_weights(labels, 3)
    assert weights.dtype == torch.float32
    shares = [float(weights[c]) * np.count_nonzero(labels == c) for c in range(3)]
    assert shares == pytest.approx([10 / 3] * 3)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])


def test_balanced_data_weighs_one_and_empty_classes_stay_finite() -> None:
    assert class_weights(np.array([0, 1, 0, 1]), 2).tolist() == [1.0, 1.0]
    assert torch.isfinite(class_weights(np.array([0, 0, 2]), 4)).all()


def test_the_supervised_term_reads_what_it_needs() -> None:
    (plain,) = Classification(tuple(DATA)).supervised("s")
    assert (plain.name, plain.loss, plain.rows) == ("ce", cross_entropy, "labelled")
    assert plain.args == ("s.logits", "target")
    assert plain.keywords == {}
    (full,) = Classification(tuple(DATA), label_smoothing=0.1, weighted=True).supervised("s@view2")
    assert full.args == ("s@view2.logits", "target", "row_weight")
    assert full.keywords == {"label_smoothing": 0.1}


def test_the_taught_term_detaches_the_teacher() -> None:
    term = Classification(tuple(DATA)).taught("s", "t2", temperature=2.0, t_squared=False)
    assert (term.name, term.loss, term.rows) == ("kl", kl_divergence, None)
    assert term.args == ("s.logits", "~t2.logits")
    assert term.keywords == {"temperature": 2.0, "t_squared": False}


def test_the_selecting_metric_is_measured() -> None:
    logits = torch.tensor([[2.0, 1, 0], [0, 3, 1], [5, 0, 1], [0, 0, 9]])
    found = classification_metrics(logits, torch.tensor([0, 1, 2, 2]))
    assert found[Classification(tuple(DATA)).selection] == pytest.approx(0.75)
