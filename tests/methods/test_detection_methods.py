"""What detectors are distilled by, on toy ones: terms, gradients, grids, processes, empty pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli import methods
from kdcli.engine.assembly import Assembly, assemble
from kdcli.engine.turn import TurnModule
from kdcli.errors import InputError
from kdcli.losses.channels import channel_kl_divergence
from kdcli.losses.detection import mean_count, per_object
from kdcli.methods.parts import added
from kdcli.models.feature_adapters import on_grid_of
from kdcli.tasks.detection.matching import matched_queries, query_terms
from kdcli.words import Derive, Method, Term, Turn, Warmup
from kdcli.words.analysis import without_zero_terms
from kdcli.words.given import given
from kdcli.words.pacing import paced

ROWS, CLASSES = 4, 3
OBJECTS = (2, 0, 1, 3)  # of each row; the last is not annotated


class Detector(nn.Module):
    """Three levels of a neck, a score for each place, and queries of the pooled picture."""

    def __init__(self, width: int, queries: int, cell: int = 4) -> None:
        super().__init__()
        self.cell, self.queries = cell, queries
        self.neck = nn.Conv2d(3, width, 1)
        self.score = nn.Conv2d(width, 1, 1)
        self.logits, self.boxes = nn.Linear(width, queries * CLASSES), nn.Linear(width, queries * 4)

    def forward(self, x: Tensor, boxes: Any = None, classes: Any = None) -> Mapping[str, Tensor]:
        maps = [self.neck(F.avg_pool2d(x, self.cell * 2**level)) for level in range(3)]
        pooled = maps[0].mean((2, 3))
        found = {f"neck{k}": grid for k, grid in enumerate(maps, 1)}
        found |= {f"objectness{k}": self.score(grid)[:, 0] for k, grid in enumerate(maps, 1)}
        found["logits"] = self.logits(pooled).view(-1, self.queries, CLASSES)
        found["boxes"] = self.boxes(pooled).view(-1, self.queries, 4).sigmoid()
        if boxes is not None:
            own = [F.softplus(found["logits"][i, : len(c)]).sum() for i, c in enumerate(classes)]
            apart = [(found["boxes"][i, : len(b)] - b).abs().sum() for i, b in enumerate(boxes)]
            found |= {"loss_class": torch.stack(own), "loss_box": torch.stack(apart)}
        return found


class Task:
    """Of toy detectors: the terms that a task of objects has."""

    def supervised(self, call: str) -> tuple[Term, ...]:
        mean = Derive("objects_a_row", mean_count, ("objects", "labelled"), scope="batch")
        return tuple(
            Term(
                name, per_object, (f"{call}.loss_{name}", "~objects_a_row"), rows="labelled", derives=(mean,)
            )
            for name in ("class", "box")
        )

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        return query_terms(student, teacher, temperature=temperature, t_squared=t_squared)


def batch(rows: int = ROWS, objects: tuple[int, ...] = OBJECTS) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    labelled = torch.tensor([True, True, True, False])[:rows]
    return {
        "x": torch.randn(rows, 3, 32, 32, generator=draw),
        "y": torch.where(labelled, 0, -1),
        "labelled": labelled,
        "boxes": [torch.rand(n, 4, generator=draw) for n in objects[:rows]],
        "classes": [torch.randint(CLASSES, (n,), generator=draw) for n in objects[:rows]],
        "objects": torch.tensor(objects[:rows]).float() * labelled,
    }


def detectors(**teacher: int) -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {"student": Detector(6, 5), "teacher": Detector(**{"width": 8, "queries": 7, **teacher})}


def made(name: str, steps: int = 1000, **given_: Any) -> Method:
    method = methods.function(name)(Task(), **{**methods.arguments(name, given_)})
    return paced(given(without_zero_terms(method), ("boxes", "classes")), steps)


def assembled(method: Method, **teacher: int) -> Assembly:
    return assemble(method, detectors(**teacher), batch(), 0)


def module_of(method: Method, found: Assembly) -> TurnModule:
    return TurnModule(method.turns[0], found.parties).train()


OWN = ["g2sd-detection", "detrdistill-logits", "cwd-features", "kd"]


# -- what they consist of ------------------------------------------------------------------------------------


def weights(method: Method) -> dict[str, Any]:
    return {term.name: term.weight for turn in method.turns for term in turn.terms}


def test_terms_and_weights_are_those_of_the_papers() -> None:
    labels = {"class": 1.0, "box": 1.0}
    features = {f"features{k}": Warmup(0.001, 500, 1000) for k in (1, 2, 3)}
    scores = {f"objectness{k}": Warmup(0.1, 500, 1000) for k in (1, 2, 3)}
    assert weights(made("g2sd-detection")) == labels | features | scores
    assert weights(made("detrdistill-logits")) == labels | {"queries": 1.0}
    assert weights(made("cwd-features")) == labels | {f"channels{k}": 5.0 for k in (1, 2, 3)}
    assert weights(made("kd")) == {"class": 0.1, "box": 0.1, "queries": 0.9}


def test_parameters_are_heeded() -> None:
    few = made("g2sd-detection", levels=1, objectness=0.0, warmup=0, ce=0.5)
    assert weights(few) == {"class": 0.5, "box": 0.5, "features1": 0.001}
    assert [party.name for party in few.parties] == ["student", "teacher", "adapter1"]
    assert [derive.out for derive in few.turns[0].derives] == [
        *("seen1", "places1", "mean-places1", "neck1-on-student", "objects_a_row"),
    ]
    (queries,) = [t for t in made("detrdistill-logits", l1=1, giou=0.5).turns[0].terms if t.name == "queries"]
    assert (queries.keywords["l1"], queries.keywords["giou"]) == (1, 0.5)
    channels = made("cwd-features", levels=2, temperature=4, weight=50).turns[0].terms[2:]
    assert [(t.name, t.weight, t.keywords["temperature"]) for t in channels] == [
        *(("channels1", 50, 4), ("channels2", 50, 4)),
    ]


def test_their_terms_stand_beside_other_methods() -> None:
    texts = ("cwd-features=5,levels=1", "detrdistill-logits=2,as=more", "cwd-features=1,levels=1,as=soft")
    method = added(made("kd", temperature=1), [methods.addition(text) for text in texts])
    assert list(weights(method)) == ["class", "box", "queries", "channels1", "more", "soft1"]
    found = assembled(method)
    outs = [derive.out for derive in method.turns[0].derives]
    assert len(set(outs)) == len(outs)
    loss = module_of(method, found)(batch(), torch.ones(2), 0.5)
    assert float(loss["queries"]) == pytest.approx(float(loss["more"]))
    beside = added(made("supervised"), [methods.addition("detrdistill-logits")])
    assert [party.name for party in beside.parties] == ["student", "teacher"]


# -- what they compute ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_gradients_reach_what_is_trained_and_nothing_else(name: str) -> None:
    method = made(name)
    found = assembled(method)
    terms = module_of(method, found)(batch(), torch.ones(2), 0.9)
    terms["loss"].backward()
    assert all(float(terms[term]) > 0 for term in weights(method))
    for party in method.turns[0].trains:
        slopes = [p.grad for p in found.parties[party].parameters() if p.grad is not None]
        assert sum(float(slope.abs().sum()) for slope in slopes) > 0, party
    assert all(p.grad is None and not p.requires_grad for p in found.parties["teacher"].parameters())


def test_what_g2sd_sums_up() -> None:
    """Every level again by its equation, the adapter's convolution of 3 x 3 with its bias between."""
    method = made("g2sd-detection", warmup=0)
    found = assembled(method)
    terms = module_of(method, found)(batch(), torch.ones(2), 0.5)
    with torch.no_grad():
        student, teacher = (found.parties[name](batch()["x"]) for name in ("student", "teacher"))
    for k in (1, 2, 3):
        adapter = found.parties[f"adapter{k}"]
        assert isinstance(adapter, nn.Conv2d)
        assert (adapter.kernel_size, adapter.bias is None) == ((3, 3), False)
        m = teacher[f"objectness{k}"].sigmoid()
        apart = (teacher[f"neck{k}"] - adapter(student[f"neck{k}"])).square().sum(dim=1)
        assert float(terms[f"features{k}"]) == pytest.approx(
            float((m * apart).sum().detach() / m.sum().detach()), rel=1e-5
        )
        entropy = F.binary_cross_entropy(student[f"objectness{k}"].sigmoid(), m, reduction="none")
        assert float(terms[f"objectness{k}"]) == pytest.approx(float((m * entropy).sum() / m.sum()), rel=1e-5)
    parts = [terms[name] * weight for name, weight in weights(method).items()]
    assert float(terms["loss"].detach()) == pytest.approx(float(sum(parts)), rel=1e-5)


def test_other_grids_of_the_teacher_are_brought_to_the_students() -> None:
    for name, term in (("g2sd-detection", "features1"), ("cwd-features", "channels1")):
        method = made(name, **({"warmup": 0} if name.startswith("g2sd") else {}))
        found = assembled(method, cell=2)
        assert found.seen["t.neck1"] == (8, 16, 16)
        assert found.seen["neck1-on-student" if term == "features1" else "channels1-on-student"] == (8, 8, 8)
        terms = module_of(method, found)(batch(), torch.ones(2), 0.5)
        student, teacher = (found.parties[p](batch()["x"]) for p in ("student", "teacher"))
        where = on_grid_of(teacher["objectness1"].sigmoid()[:, None], student["neck1"])[:, 0]
        its = on_grid_of(teacher["neck1"], student["neck1"])
        if term == "channels1":
            own = found.parties["channels-adapter1"](student["neck1"])
            wanted = channel_kl_divergence(own, its)
        else:
            apart = (its - found.parties["adapter1"](student["neck1"])).square().sum(dim=1)
            wanted = (where * apart).sum() / where.sum()
        assert float(terms[term].detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_maps_of_one_width_are_compared_as_they_are_by_cwd_alone() -> None:
    channels = assembled(made("cwd-features"), width=6)
    assert isinstance(channels.parties["channels-adapter1"], nn.Identity)
    assert isinstance(assembled(made("cwd-features")).parties["channels-adapter1"], nn.Conv2d)
    assert isinstance(assembled(made("g2sd-detection"), width=6).parties["adapter1"], nn.Conv2d)


def test_vectors_are_no_maps() -> None:
    method = made("cwd-features", levels=1)
    parties = detectors()
    plain = parties["teacher"].forward

    def flat(x: Tensor) -> dict[str, Tensor]:
        found = dict(plain(x))
        return found | {"neck1": found["neck1"].mean((2, 3))}

    parties["teacher"].forward = flat  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"channels-adapter1: a convolution joins maps .* and \[8\]"):
        assemble(method, parties, batch(), 0)


def test_queries_learn_until_they_say_what_the_teacher_says() -> None:
    method = made("detrdistill-logits", ce=0)
    found = assembled(method)
    module = module_of(method, found)
    trained = list(module.trained.parameters())
    values = []
    for _ in range(60):
        loss = module(batch(), torch.ones(2), 0.5)["loss"]
        slopes = torch.autograd.grad(loss, trained, allow_unused=True)
        with torch.no_grad():
            for parameter, slope in zip(trained, slopes):
                parameter -= 0 if slope is None else 0.01 * slope.sign()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] / 4


def test_a_nan_of_the_student_ends_in_the_loss() -> None:
    method = made("detrdistill-logits")
    found = assembled(method)
    with torch.no_grad():
        found.parties["student"].boxes.bias[2] = torch.nan
    assert bool(module_of(method, found)(batch(), torch.ones(2), 0.5)["queries"].isnan())


# -- steps, rows, processes ----------------------------------------------------------------------------------


def test_the_first_step_is_of_the_labels_alone() -> None:
    method = made("g2sd-detection", steps=2000)
    module = module_of(method, assembled(method))
    values = {done: module(batch(), torch.ones(2), done) for done in (0.0, 0.125, 0.25, 1.0)}
    first, half, full, last = values.values()
    assert float(first["features1"]) == float(first["objectness1"]) == 0
    assert float(first["loss"]) == pytest.approx(float(first["class"] + first["box"]))
    grown = float(full["loss"] - first["loss"])
    assert grown > 0
    assert float(half["loss"] - first["loss"]) == pytest.approx(grown / 2, rel=1e-4)
    assert float(last["loss"]) == pytest.approx(float(full["loss"]))


@pytest.mark.parametrize("name", OWN)
def test_two_processes_have_the_gradients_of_one(name: str) -> None:
    """One row and three, the divisors those of all, shares as the engine has them."""
    method = made(name)
    found = assembled(method)
    module, whole = module_of(method, found), batch()
    trained = [p for p in module.trained.parameters() if p.requires_grad]

    def gradients(columns: dict[str, Any], share: Tensor) -> list[Tensor]:
        loss = module(columns, share, 0.9)["loss"]
        slopes = torch.autograd.grad(loss, trained, allow_unused=True)
        return [torch.zeros_like(p) if s is None else s for p, s in zip(trained, slopes)]

    wanted = gradients(whole, torch.ones(2))
    outs = [derive.out for derive in method.turns[0].derives if derive.scope == "batch"]
    together = dict(whole)
    means = {out: module.value(f"~{out}", together) for out in outs}
    parts = []
    for rows in (slice(0, 1), slice(1, None)):
        columns = {key: value[rows] for key, value in whole.items()}
        counts = [columns["labelled"].numel() / ROWS, float(columns["labelled"].sum()) / 3]
        parts.append(gradients(columns | means, 2 * torch.tensor(counts)))
    for one, first, second in zip(wanted, *parts):
        torch.testing.assert_close((first + second) / 2, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_batches_without_objects_or_labels_have_a_finite_loss(name: str) -> None:
    method = made(name)
    module = module_of(method, assembled(method))
    empty = batch(objects=(0, 0, 0, 0))
    unlabelled = {**empty, "labelled": torch.zeros(ROWS, dtype=torch.bool)}
    for columns in (empty, unlabelled):
        terms = module(columns, torch.ones(2), 0.9)
        terms["loss"].backward()
        assert float(terms["class"]) == float(terms["box"]) == 0
        assert float(terms["loss"]) > 0
        slopes = [p.grad for p in module.trained.parameters() if p.grad is not None]
        assert all(bool(slope.isfinite().all()) for slope in slopes)


def test_the_matching_is_of_this_step_and_has_no_gradient() -> None:
    method = made("detrdistill-logits")
    found = assembled(method)
    module, values = module_of(method, found), dict(batch())
    pairs = module.value("s-t-pairs", values)
    taps = [values[name] for name in ("s.logits", "s.boxes", "t.logits", "t.boxes")]
    assert torch.equal(pairs, matched_queries(*taps))
    assert pairs.shape == (ROWS, 5, 2)
    assert values["s.logits"].requires_grad


def test_a_turn_keeps_the_derives_of_its_terms_when_terms_are_dropped() -> None:
    turn: Turn = made("detrdistill-logits", ce=0).turns[0]
    assert [derive.out for derive in turn.derives] == ["s-t-pairs", "s-t-expected", "s-t-objects"]
