"""The table of methods: rows, parameters, help."""

import inspect
from dataclasses import replace

import pytest

from kdcli import methods
from kdcli.errors import UsageError
from kdcli.losses.logits import cross_entropy, kl_divergence
from kdcli.methods.task_specific import task_specific
from kdcli.tasks.classification import Classification
from kdcli.words import Method, without_zero_terms

TASK = Classification(("a", "b", "c"))


def plan(name: str, **settings: object) -> Method:
    method: Method = methods.function(name)(TASK, **methods.arguments(name, settings))
    return without_zero_terms(method)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_row_is_a_documented_function_that_returns_a_method(name: str) -> None:
    row, function = methods.entry(name), methods.function(name)
    assert row.help
    assert row.paper
    assert inspect.getdoc(function)
    method = function(TASK)
    assert method.name == name
    assert sum(phase.share for phase in method.phases) == pytest.approx(1)
    assert ("teacher" in {p.source for p in method.parties}) == row.teacher
    assert method.export in {p.name for p in method.parties if p.role == "trained"}
    assert set(row.defaults) <= set(methods.parameters(name))
    for turn in (t for phase in method.phases for t in phase.turns):
        assert {c.party for c in turn.calls} | set(turn.trains) <= {p.name for p in method.parties}
    for parameter in methods.parameters(name).values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.default is not inspect.Parameter.empty


def test_unknown_methods_get_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"unknown method 'task_specific'. Did you mean 'task-specific'\?"):
        methods.entry("task_specific")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("kd", {"temprature": 2}, r"method kd has no 'method\.temprature'\. Did you mean 'temperature'\?"),
        ("kd", {"alpha": 0.5}, r"method kd has no --alpha\..*It has: ce, kd, temperature, t_squared"),
        ("supervised", {"temperature": 2.0}, r"method supervised has no --temperature"),
        ("task-specific", {"temperature": "hot"}, r"method\.temperature: .*valid number.*got 'hot'"),
        ("task-specific", {"t_squared": 3}, r"method\.t_squared: .*valid boolean.*got 3"),
        ("task-specific", {"alpha": None}, r"method\.alpha: .*valid number.*got None"),
        ("kd", {"ce": float("nan")}, r"method\.ce must be a finite number, got nan"),
        ("kd", {"kd": "inf"}, r"method\.kd must be a finite number, got 'inf'"),
    ],
)
def test_wrong_parameters_are_refused(name: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        methods.arguments(name, given)


def test_arguments_fill_in_defaults_and_read_text() -> None:
    assert methods.arguments("kd", {}) == {"ce": 0.1, "kd": 0.9, "temperature": 4.0, "t_squared": True}
    found = methods.arguments("task-specific", {"alpha": "0.25", "t_squared": "true"})
    assert found == {"alpha": 0.25, "temperature": 1.0, "t_squared": True}
    assert methods.arguments("supervised", {}) == {}


def test_describe_tells_paper_equations_words_and_defaults() -> None:
    text = methods.describe("task-specific")
    assert "arXiv 2402.11305" in text
    assert "α = 0 is" in text
    for line in ("* alpha = 0.5", "* temperature = 1.0", "* t_squared = False"):
        assert line in text
    with pytest.raises(UsageError, match="unknown method"):
        methods.describe("nothing")


def test_kd_weighs_two_terms_and_detaches_the_teacher() -> None:
    (turn,) = plan("kd", ce=0.2, kd=0.7, temperature=3.0).phases[0].turns
    ce, kl = turn.terms
    assert (ce.loss, ce.weight, ce.rows, ce.args) == (cross_entropy, 0.2, "labelled", ("s.logits", "target"))
    assert (kl.loss, kl.weight, kl.rows, kl.args) == (kl_divergence, 0.7, None, ("s.logits", "~t.logits"))
    assert kl.keywords == {"temperature": 3.0, "t_squared": True}


def test_task_specific_without_a_teacher_is_supervised() -> None:
    assert replace(plan("task-specific", alpha=0.0), name="supervised") == plan("supervised")


def test_task_specific_with_the_teacher_alone_has_no_labels() -> None:
    method = plan("task-specific", alpha=1.0)
    (turn,) = method.phases[0].turns
    assert [(t.name, t.weight) for t in turn.terms] == [("kl", 1.0)]
    assert [p.name for p in method.parties] == ["student", "teacher"]


def test_task_specific_is_kd_with_complementary_weights() -> None:
    method = task_specific(TASK, alpha=0.25, temperature=2.0)
    (turn,) = method.phases[0].turns
    assert [t.weight for t in turn.terms] == [0.75, 0.25]
    assert turn.terms[1].keywords == {"temperature": 2.0, "t_squared": False}
