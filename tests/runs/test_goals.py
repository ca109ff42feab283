"""``--target``: parts and amounts."""

import pytest

from kdcli.errors import InputError, UsageError
from kdcli.runs.targets import Goal, amount, given, refuse_unreachable


def cost(widths):
    return 1e6 * sum(widths)


@pytest.mark.parametrize(
    ("text", "goal", "target"),
    [
        (None, Goal(), None),
        ("flops=0.45", Goal("flops", "flops=0.45"), 0.45),
        ("params=.5", Goal("params", "params=.5"), 0.5),
        ("latency=6e-1", Goal("latency", "latency=6e-1"), 0.6),
        ("flops=1.2G", Goal("flops", "flops=1.2G", 1.2e9), None),
        ("params=300K", Goal("params", "params=300K", 3e5), None),
        ("latency=8ms", Goal("latency", "latency=8ms", 8.0), None),
        ("latency=250us", Goal("latency", "latency=250us", 0.25), None),
    ],
)
def test_parts_and_amounts(text: str | None, goal: Goal, target: float | None) -> None:
    found, arguments = given("resrep", text, {"kd": 2.0})
    assert found == goal
    assert arguments == ({"kd": 2.0} if target is None else {"kd": 2.0, "target": target})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flops", "--target flops: there are flops, params, latency. Did you mean 'flops'? Say flops=0.45."),
        ("flop=0.5", "there are flops, params, latency. Did you mean 'flops'"),
        ("flops=", "'' is no number. Say 0.45, or 1.2G for as many."),
        ("flops=half", "'half' is no number"),
        ("flops=0", "a part of 1, between 0 and 1, or has a unit: 0.45, or 1.2G"),
        ("params=2", "a part of 1, between 0 and 1, or has a unit: 0.5, or 3M"),
        ("params=3ms", "no unit 'ms' of parameters; there are K, M, G, T."),
        ("latency=3M", "no unit 'M' of latency; there are ms, us, s."),
        ("latency=-3ms", "more than nothing is left"),
        ("latency=nan", "'nan' is no number"),
        ("flops=1e999G", "more than nothing is left"),
    ],
)
def test_what_is_no_target(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        given("resrep", text, {})
    assert message in str(caught.value)


def test_an_amount_becomes_a_part_of_what_the_network_costs() -> None:
    goal = Goal("params", "params=3M", 3e6)
    assert goal.settled({"target": 0.45, "kd": 1.0}, [4, 8], cost) == {"target": 0.25, "kd": 1.0}
    assert Goal("params", "params=0.3").settled({"target": 0.3}, [4, 8], cost) == {"target": 0.3}
    with pytest.raises(InputError, match=r"--target params=3M: the network has 3 M parameters already"):
        goal.settled({}, [1, 2], cost)
    with pytest.raises(
        InputError, match=r"params=1M cannot be met: .* 16.7% of the parameters stay, 2 M par"
    ):
        refuse_unreachable(1 / 12, Goal("params", "params=1M", 1e6), [4, 8], cost)


def test_amounts_in_words() -> None:
    assert amount("flops", 1.234e9) == "1.234 G FLOPs"
    assert amount("params", 999) == "999 parameters"
    assert amount("latency", 8.25) == "8.25 ms"


def test_a_method_without_a_target() -> None:
    with pytest.raises(
        UsageError, match="--target: method kd has none; its parameters and the training decide"
    ):
        given("kd", "flops=0.5", {})
