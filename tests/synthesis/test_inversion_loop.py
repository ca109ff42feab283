"""The loop of inversion: what it brings down, what it leaves as it was."""

import random

import pytest
import torch
from test_kills import Child
from toolbox import QUIET, StopAfter, inversion_plan, rows, synthetic
from torch import nn

from kdcli.data.sources import open_train
from kdcli.data.views import evaluation_view
from kdcli.engine.runtime import open_runtime
from kdcli.engine.turn import TurnModule
from kdcli.errors import Preempted
from kdcli.models.build import build
from kdcli.models.pictures import Pictures
from kdcli.sections import RunSection, SourceSection
from kdcli.stages import synthesize
from kdcli.synthesis.deepinversion import batch_norms, deepinversion
from kdcli.synthesis.inversion import Inversion, learning_rate, optimise, summed, view_of
from kdcli.synthesis.settings import InversionSection, resolved


@pytest.fixture(scope="module")
def network(normed):
    return build(str(normed)).requires_grad_(False).eval()


def section(**given):
    return resolved(InversionSection(batch=8, **{"steps": 30, **given}), "deepinversion")


def run(network, settings, **options):
    job = Inversion(
        deepinversion(network, settings),
        {"teacher": network, "half": nn.AvgPool2d(2)},
        settings,
        lambda j: j % 4,
    )
    seen = []
    runtime = open_runtime(RunSection(device="cpu"))
    watch = lambda step, row: seen.append((step, summed(row)))  # noqa: E731
    pixels = optimise(job, 7, torch.arange(8) % 4, runtime, watch=watch, **options)
    return pixels, seen


def statistics(network, pixels):
    """The sum of the statistics' terms on prepared pictures."""
    (phase,) = deepinversion(network, section())
    turn = TurnModule(phase.turns[0], {"teacher": network, "pictures": Pictures(pixels)})
    with torch.no_grad():
        terms = turn(
            {"y": torch.zeros(len(pixels), dtype=torch.long), "view": torch.zeros(3)}, torch.ones(1), 0.0
        )
    return summed(terms)["statistics"].item()


def test_real_batches_have_the_statistics_and_noise_has_not(network, pictures):
    samples = open_train(SourceSection(source=str(pictures))).split("train")
    views = [evaluation_view(samples.picture(i, 10**6), network.spec) for i in range(len(samples))]
    real = statistics(network, network.prepare(torch.stack(views)))
    noise = statistics(network, torch.randn(66, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert real < 0.01 * noise


def test_inversion_brings_the_statistics_down(network):
    _, seen = run(network, section(steps=60, label=0))
    values = [row["statistics"] for _, row in seen]
    assert [step for step, _ in seen] == [20, 40, 60]
    assert values[0] > values[1] > values[2]
    start = statistics(network, torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(7)))
    assert values[-1] < 0.5 * start


def test_the_teacher_is_left_as_it_was(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    run(network, section(steps=3))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert not network.training
    assert all(p.grad is None for p in network.parameters())


def test_inputs_of_all_batch_norms_are_matched(network):
    layers = batch_norms(network)
    assert len(layers) == 15
    (phase,) = deepinversion(network, section(first_statistics=3))
    terms = {term.name: term for term in phase.turns[0].terms}
    assert [terms[f"statistics/{name}"].weight for name in layers] == [30.0] + [10.0] * 14
    assert terms[f"statistics/{layers[0]}"].args[0] == f"t.{layers[0]}.in"
    assert "l2" not in terms  # of weight zero


def test_half_size_first(network):
    half, whole = deepinversion(network, section(half_steps=10, steps=20))
    assert (half.share, whole.share) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    _, seen = run(network, section(half_steps=10, steps=20))
    assert [step for step, _ in seen] == [10, 20, 30]


@pytest.mark.parametrize("looks", [2, 4, 6])
def test_it_goes_on_in_either_phase(looks, network, tmp_path):
    """Stopped in the first phase, between the two (where Adam begins anew), and in the second."""
    settings = section(half_steps=4, steps=4)
    whole, _ = run(network, settings)
    with pytest.raises(Preempted, match=f"stopped after step {looks}"):
        run(network, settings, resting=tmp_path / "rest.safetensors", stop=StopAfter(looks))
    again, seen = run(network, settings, resting=tmp_path / "rest.safetensors")
    assert torch.equal(again, whole)
    assert [step for step, _ in seen] == ([4, 8] if looks < 4 else [8])


def test_clipped_pictures_stay_in_range(network):
    wild, _ = run(network, section(steps=5, lr=1.0))
    tame, _ = run(network, section(steps=5, lr=1.0, clip=True))
    assert wild.abs().max() > 1.5
    assert tame.abs().max() <= 1 + 1e-6  # mean 0.5, deviation 0.5


def test_start_is_of_pixels(network):
    pixels, _ = run(network, section(steps=1, lr=1e-9, start=(0.25, 0.1)))
    assert pixels.mean() == pytest.approx((0.25 - 0.5) / 0.5, abs=0.02)
    assert pixels.std() == pytest.approx(0.1 / 0.5, rel=0.05)


def test_views_are_shifted_within_the_jitter_and_mirrored_half_of_the_time():
    settings = section(jitter=2, flip=0.5)
    views = torch.stack([view_of(3, step, settings) for step in range(400)])
    assert {int(v) for v in views[:, 0]} == {int(v) for v in views[:, 1]} == {-2, -1, 0, 1, 2}
    assert 0.4 < views[:, 2].float().mean() < 0.6
    assert not torch.stack([view_of(3, step, section()) for step in range(50)])[:, 2].any()
    x = torch.arange(9.0).view(1, 1, 3, 3)
    seen = Pictures(x)(torch.tensor([1, 0, 1]))
    assert seen.tolist() == [[[[8, 7, 6], [2, 1, 0], [5, 4, 3]]]]


def test_learning_rates():
    rate = learning_rate(section(lr=1.0, schedule="cosine", warmup=2), 12)
    assert [rate(0), rate(1), rate(2), rate(7)] == [0.5, 1.0, 1.0, pytest.approx(0.5)]
    assert rate(11) < 0.05
    assert {learning_rate(section(lr=0.3), 9)(step) for step in range(9)} == {0.3}


def test_killed_at_random_moments_it_goes_on(normed, tmp_path):
    torch.set_num_threads(1)
    whole = synthesize.run(inversion_plan(normed, tmp_path / "whole"), QUIET).path
    rng, kills, plan = random.Random(0), 0, inversion_plan(normed, tmp_path / "out", commit_images=8)
    while True:
        child = Child(lambda report: synthesize.run(plan, QUIET) and None)
        code = child.wait(rng.uniform(0.05, 0.6) if kills < 4 else 60)
        child.steps()
        if code is not None:
            break
        kills += 1
    assert code == 0
    assert kills > 0
    assert synthetic(tmp_path / "out") == synthetic(whole)
    assert rows(tmp_path / "out") == rows(whole)
