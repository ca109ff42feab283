"""``kdcli synthesize --mixer dafl``: a generator trained against a teacher, then pictures of it."""

import math

import datasets
import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, StopAfter, facts, rows, synthetic

from kdcli.config import resolve
from kdcli.engine.turn import TurnModule
from kdcli.errors import Preempted, UsageError
from kdcli.methods.dafl import dafl_generator
from kdcli.methods.datafree import InversionSection, resolved
from kdcli.models.build import build
from kdcli.models.generator import Generator
from kdcli.stages import synthesize


def dafl_plan(network, out, **options):
    given = {
        "mixer": "dafl",
        "teacher": str(network),
        "count": 20,
        "out": str(out),
        "resolution": 16,
        "inversion.batch": 16,
        "inversion.steps": 24,
        "inversion.latent": 8,
    }
    return synthesize.plan(resolve(synthesize.Config, options={**given, **options}), QUIET)


@pytest.fixture(scope="module")
def whole(normed, tmp_path_factory):
    """Twenty pictures of a generator of 24 steps."""
    return synthesize.run(dafl_plan(normed, tmp_path_factory.mktemp("dafl") / "whole"), QUIET).path


def test_the_artifact(whole):
    table = datasets.load_from_disk(str(whole))
    assert table.column_names == ["image", "source_ids", "mixer", "seed", "number"]  # no class was asked for
    assert table[0]["image"].size == (16, 16)
    made = synthetic(whole)
    assert len({row["image"]["bytes"] for row in made}) == 20
    assert {row["mixer"] for row in made} == {"dafl"}
    assert facts(whole)["cost"] == {"teacher_forwards": 24 * 16}
    assert (whole / "contact_sheet.png").exists()


def test_the_log_watches_the_pseudo_labels(whole):
    log = rows(whole)
    assert [row["step"] for row in log] == [20, 24]
    assert {"loss", "one_hot", "entropy", "activation", "label_entropy"} <= set(log[0])
    assert all(0 < row["label_entropy"] <= math.log(4) for row in log)  # of several classes
    assert facts(whole)["metrics"] == {"label_entropy": log[-1]["label_entropy"]}


def test_pictures_are_those_of_the_generator_that_is_kept(whole, normed):
    from PIL import Image

    generator = Generator(8, 3, 16)
    generator.load_state_dict(load_file(whole / "generator.safetensors"))
    plan = dafl_plan(normed, whole)
    z = torch.randn((16, 8), generator=torch.Generator().manual_seed(plan.draw(17).noise))
    with torch.no_grad():
        expected = build(str(normed)).restore(generator.eval()(z))[1].permute(1, 2, 0).numpy()
    image = datasets.load_from_disk(str(whole))[17]["image"]
    assert image.tobytes() == Image.fromarray(expected).tobytes()


def test_training_balances_the_classes(normed):
    """The objective falls, and the mean of the teacher's answers becomes more even."""
    network = build(str(normed), size=16).requires_grad_(False)
    network.train()  # as a careless caller might leave it
    before = {k: v.clone() for k, v in network.state_dict().items()}
    section = resolved(InversionSection(batch=32, steps=1, latent=8), "dafl")
    torch.manual_seed(0)
    (own,) = dafl_generator(section, teacher=network).turns
    turn = TurnModule(own, {"generator": Generator(8, 3, 16), "teacher": network})
    optimizer, seen = torch.optim.Adam(turn.trained.parameters(), lr=1e-3), []
    for _ in range(25):
        turn.train()
        terms = turn({"z": torch.randn(32, 8)}, torch.ones(1), 0.0)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        seen.append({k: float(v.detach()) for k, v in terms.items()})
    expected = 0.05 * seen[0]["one_hot"] + 5 * seen[0]["entropy"] + 0.01 * seen[0]["activation"]
    assert seen[0]["loss"] == pytest.approx(expected, rel=1e-5)  # the entropy of the labels is watched only
    assert seen[-1]["loss"] < seen[0]["loss"]
    assert seen[-1]["entropy"] < seen[0]["entropy"]
    assert not network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("looks", [0, 9, 24, 25])
def test_stopped_anywhere_it_goes_on(looks, whole, normed, tmp_path):
    """In training, at its end, or between pictures."""
    plan = dafl_plan(normed, tmp_path / "out")
    with pytest.raises(Preempted, match="SIGTERM"):
        synthesize.run(plan, QUIET, stop=StopAfter(looks))
    partial = tmp_path / "out.partial"
    assert [p.name for p in partial.glob("state-*")] == [f"state-{min(looks, 24):012d}"]
    out = synthesize.run(plan, QUIET).path
    assert synthetic(out) == synthetic(whole)
    assert rows(out) == rows(whole)
    assert (out / "generator.safetensors").read_bytes() == (whole / "generator.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "1/2"}, "runs on one process without --shard: each would train the generator again"),
        ({"processes": 2}, "runs on one process without --shard"),
        ({"inversion.jitter": 2}, r"dafl has no use for inversion\.jitter"),
        ({"resolution": 30}, "a generator makes pictures whose side is a multiple of 4"),
    ],
)
def test_refused(options, message, normed, tmp_path):
    with pytest.raises(UsageError, match=message):
        dafl_plan(normed, tmp_path / "out", **options)


def test_a_model_of_layer_norms_will_do(teacher, tmp_path):
    out = synthesize.run(dafl_plan(teacher, tmp_path / "out", count=2, **{"inversion.steps": 2}), QUIET).path
    assert facts(out)["images"] == 2
