"""Pictures from a teacher by the loop: what comes down, what stays, and the same bits as a plain descent."""

import json
import math
import random
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, Child, StopAfter, inversion_plan, rows, synthetic
from torch import nn
from torch.nn import functional as F

from kdcli.artifacts.store import Output
from kdcli.config import resolve
from kdcli.data.sources import open_train
from kdcli.data.views import evaluation_view
from kdcli.engine.runtime import open_runtime
from kdcli.engine.turn import TurnModule
from kdcli.errors import Diverged, Preempted, UsageError
from kdcli.losses import datafree
from kdcli.losses.inversion import bn_statistics, image_norm, total_variation
from kdcli.methods.datafree import InversionSection, resolved
from kdcli.methods.deepinversion import batch_norms, deepinversion
from kdcli.models.build import build
from kdcli.models.generator import Generator
from kdcli.models.pictures import Pictures
from kdcli.runs.descent import Descent, learning_rate, optimised, summed, view_of
from kdcli.sections import RunSection, SourceSection
from kdcli.seeds import seed_of
from kdcli.stages import synthesize
from kdcli.words.analysis import without_zero_terms

SEED, TARGETS = 7, torch.arange(8) % 4


@pytest.fixture(scope="module")
def network(normed):
    return build(str(normed)).requires_grad_(False).eval()


def section(**given):
    return resolved(InversionSection(batch=8, **{"steps": 30, **given}), "deepinversion")


def run(network, settings, folder, stop=None):
    """The pictures of a block, and the rows of its log as (step, terms)."""
    method = without_zero_terms(deepinversion(settings, teacher=network))
    runtime = open_runtime(RunSection(device="cpu"))
    descent = Descent(method, {"teacher": network}, settings, runtime, QUIET, stop)
    output = Output(folder, folder, replace=False)
    pixels, terms = optimised(descent, 3, SEED, {"y": TARGETS}, output)
    seen = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert terms == summed({k: v for k, v in seen[-1].items() if k not in ("step", "grad_norm", "lr")})
    return pixels, [(row["step"], summed(row)) for row in seen]


def statistics(network, pixels):
    """The sum of the statistics' terms on prepared pictures."""
    (phase,) = deepinversion(section(), teacher=network).phases
    turn = TurnModule(phase.turns[0], {"teacher": network, "pictures": Pictures(pixels)})
    with torch.no_grad():
        terms = turn(
            {"y": torch.zeros(len(pixels), dtype=torch.long), "view": torch.zeros(3)}, torch.ones(1), 0.0
        )
    return summed(terms)["statistics"].item()


# -- against descents that are written out -------------------------------------------------------------------


def descended(pixels, loss, rates, betas, after=lambda: None):
    """Steps of Adam on a tensor; ``loss`` is a function of the step."""
    optimizer = torch.optim.Adam([pixels], betas=betas)
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        after()


def watched(network, modules, x):
    """The logits of pictures, and what modules were given on the way to them."""
    inputs = []
    hooks = [m.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for m in modules]
    logits = network(x)
    for hook in hooks:
        hook.remove()
    return logits, inputs


def test_deepinversion_is_the_plain_descent(network, tmp_path):
    """Half size first, warm-up and cosine, shifted and mirrored views, priors on them, clipped pixels."""
    half, steps, top, warmup = 5, 9, 0.2, 3
    settings = section(
        half_steps=half,
        steps=steps,
        lr=top,
        betas=(0.5, 0.9),
        schedule="cosine",
        warmup=warmup,
        start=(0.4, 0.2),
        jitter=3,
        flip=0.5,
        clip=True,
        first_statistics=10.0,
        tv_l1=0.1,
        l2=0.01,
        l2_over="image",
    )
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(SEED))
    pixels = ((0.4 + 0.2 * pixels - 0.5) / 0.5).requires_grad_()  # the toy's mean and deviation are 0.5
    norms = [m for m in network.body.modules() if isinstance(m, nn.BatchNorm2d)]

    def loss(step):
        x, most = (F.avg_pool2d(pixels, 2), 1) if step < half else (pixels, 3)
        down, right = (seed_of(SEED, step, axis) % (2 * most + 1) - most for axis in (0, 1))
        x = torch.roll(x, (down, right), (2, 3)) if down or right else x
        x = x.flip(3) if seed_of(SEED, step, 2) < 2**63 else x
        logits, inputs = watched(network, norms, x)
        found = F.cross_entropy(logits, TARGETS)
        for i, (norm, given) in enumerate(zip(norms, inputs)):
            weight = 10.0 * (10.0 if i == 0 else 1)
            found = found + weight * bn_statistics(given, norm.running_mean, norm.running_var)
        found = found + 2.5e-5 * total_variation(x, norm="l2")
        return found + 0.1 * total_variation(x, norm="l1") + 0.01 * image_norm(x, over="image")

    def rate(step, length):
        if step < warmup:
            return top * (step + 1) / warmup
        return top * (0.5 * (1 + math.cos(math.pi * ((step - warmup) / (length - warmup)))))

    def clip():
        with torch.no_grad():
            pixels.clamp_(-1, 1)

    descended(pixels, loss, [rate(k, half) for k in range(half)], (0.5, 0.9), clip)
    rates = [rate(k, steps) for k in range(steps)]  # Adam begins anew, views go on
    descended(pixels, lambda step: loss(step + half), rates, (0.5, 0.9), clip)
    assert torch.equal(run(network, settings, tmp_path)[0], pixels)


def test_a_generator_is_the_plain_descent(normed, network, tmp_path):
    """The mixer dafl, from its first weights on, against the loss as it is written in the paper."""
    options = {"mixer": "dafl", "count": 4, "resolution": 32}
    given = {"inversion.batch": 16, "inversion.steps": 8, "inversion.latent": 8, "seed": 5}
    out = synthesize.run(inversion_plan(normed, tmp_path / "out", **options, **given), QUIET).path
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(5, 1) >> 1)
        generator = Generator(8, 3, 32)
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.02)
    for step in range(8):
        z = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed_of(5, 2, step) >> 1))
        logits, (features,) = watched(network, [network.linear], generator(z))
        loss = 0.05 * F.cross_entropy(logits, logits.argmax(dim=1))
        loss = loss + 5.0 * datafree.information_entropy(logits)
        loss = loss + 0.01 * datafree.activation(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = load_file(out / "generator.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in generator.state_dict().items())


# -- what it does --------------------------------------------------------------------------------------------


def test_real_batches_have_the_statistics_and_noise_has_not(network, pictures):
    samples = open_train(SourceSection(source=str(pictures))).split("train")
    views = [evaluation_view(samples.picture(i, 10**6), network.spec) for i in range(len(samples))]
    real = statistics(network, network.prepare(torch.stack(views)))
    noise = statistics(network, torch.randn(66, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert real < 0.01 * noise


def test_inversion_brings_the_statistics_down(network, tmp_path):
    _, seen = run(network, section(steps=60, label=0), tmp_path)
    values = [row["statistics"] for _, row in seen]
    assert [step for step, _ in seen] == [20, 40, 60]
    assert values[0] > values[1] > values[2]
    start = statistics(network, torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(SEED)))
    assert values[-1] < 0.5 * start


def test_the_teacher_is_left_as_it_was(network, tmp_path):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    run(network, section(steps=3), tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert not network.training
    assert all(p.grad is None for p in network.parameters())


def test_inputs_of_all_batch_norms_are_matched(network):
    layers = batch_norms(network)
    assert len(layers) == 15
    (phase,) = without_zero_terms(deepinversion(section(first_statistics=3), teacher=network)).phases
    terms = {term.name: term for term in phase.turns[0].terms}
    assert [terms[f"statistics/{name}"].weight for name in layers] == [30.0] + [10.0] * 14
    assert terms[f"statistics/{layers[0]}"].args[0] == f"t.{layers[0]}.in"
    assert "l2" not in terms  # of weight zero


def test_half_size_first(network, tmp_path):
    settings = section(half_steps=10, steps=20)
    half, whole = deepinversion(settings, teacher=network).phases
    assert (half.share, whole.share) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    _, seen = run(network, settings, tmp_path)
    assert [step for step, _ in seen] == [10, 20, 30]


def seen_terms(network, pixels, view, phase):
    """The terms of a step of the half (0) or the whole (1) phase on given pixels."""
    settings = section(half_steps=1, steps=1, tv_l1=1.0, l2=1.0)
    turn = deepinversion(settings, teacher=network).phases[phase].turns[0]
    module = TurnModule(turn, {"teacher": network, "pictures": Pictures(pixels)})
    batch = {"y": torch.zeros(len(pixels), dtype=torch.long), "view": torch.tensor(view)}
    with torch.no_grad():
        return module(batch, torch.ones(1), 0.0)


def test_priors_are_of_the_pictures_that_a_step_sees(network):
    """Of noise of 64 pixels TV is 1756, and 433.5 once it is pooled to half size as deepinversion.py has it.

    Each of its four norms is about √(2·N) of N pixels of standard noise, and pooling halves both side and
    deviation: a quarter.
    """
    noise = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    half, whole = (seen_terms(network, noise, [0, 0, 0], phase) for phase in (0, 1))
    assert whole["tv_l2"].item() == pytest.approx(1756, rel=1e-2)
    assert half["tv_l2"].item() == pytest.approx(433.5, rel=1e-2)
    pooled = F.avg_pool2d(noise, 2)
    for view in ([0, 0, 0], [3, -1, 1]):
        for phase, x in enumerate((pooled, noise)):  # pooled first, then shifted: 3 is odd
            found, seen = seen_terms(network, noise, view, phase), torch.roll(x, view[:2], (2, 3))
            seen = seen.flip(3) if view[2] else seen
            torch.testing.assert_close(found["tv_l2"], total_variation(seen, norm="l2"))
            torch.testing.assert_close(found["tv_l1"], total_variation(seen, norm="l1"))
            torch.testing.assert_close(found["l2"], image_norm(seen, over="batch"))
            with torch.no_grad():
                torch.testing.assert_close(
                    found["label"], F.cross_entropy(network(seen), torch.zeros(8, dtype=torch.long))
                )


def test_at_half_size_shifts_are_half_as_far():
    """The code's limit is ``jitter // lower_res``."""
    settings = section(half_steps=200, jitter=5)
    views = torch.stack([view_of(3, step, settings) for step in range(400)])[:, :2]
    assert {int(v) for v in views[:200].flatten()} == set(range(-2, 3))
    assert {int(v) for v in views[200:].flatten()} == set(range(-5, 6))


@pytest.mark.parametrize("looks", [0, 2, 4, 5, 6, 8])
def test_it_goes_on_in_either_phase(looks, network, tmp_path):
    """Stopped in the first phase, between the two (where Adam begins anew), in the second and at its end."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "rest").mkdir()
    settings = section(half_steps=4, steps=4)
    whole, _ = run(network, settings, tmp_path / "whole")
    done = looks - (looks > 4)  # between the phases it looks twice
    with pytest.raises(Preempted, match=f"stopped after step {done} of 8"):
        run(network, settings, tmp_path / "rest", StopAfter(looks))
    assert [p.name for p in (tmp_path / "rest").glob("state-*")] == [f"state-{done:012d}"]
    again, seen = run(network, settings, tmp_path / "rest")
    assert torch.equal(again, whole)
    assert [step for step, _ in seen] == [4, 8]


def test_clipped_pictures_stay_in_range(network, tmp_path):
    (tmp_path / "tame").mkdir()
    wild, _ = run(network, section(steps=5, lr=1.0), tmp_path)
    tame, _ = run(network, section(steps=5, lr=1.0, clip=True), tmp_path / "tame")
    assert wild.abs().max() > 1.5
    assert tame.abs().max() <= 1 + 1e-6  # mean 0.5, deviation 0.5


def test_start_is_of_pixels(network, tmp_path):
    pixels, _ = run(network, section(steps=1, lr=1e-9, start=(0.25, 0.1)), tmp_path)
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
    rate = partial(learning_rate(section(lr=1.0, schedule="cosine", warmup=2)), steps=12)
    assert [rate(0), rate(1), rate(2), rate(7)] == [0.5, 1.0, 1.0, pytest.approx(0.5)]
    assert rate(11) < 0.05
    assert {learning_rate(section(lr=0.3))(step, 9) for step in range(9)} == {0.3}


# -- where it ends -------------------------------------------------------------------------------------------


def test_nan_names_the_block_and_the_way_out(network, tmp_path):
    with pytest.raises(Diverged, match=r"the loss became .* by step 20 of block 3\. Lower inversion\.lr\.$"):
        run(network, section(lr=1e12), tmp_path)
    assert not list(tmp_path.glob("state-*"))  # nobody looked before it was spoilt


def test_killed_at_random_moments_it_goes_on(normed, tmp_path):
    torch.set_num_threads(1)
    began = time.perf_counter()
    whole = synthesize.run(inversion_plan(normed, tmp_path / "whole"), QUIET).path
    longest = (time.perf_counter() - began) / 2  # kills fall into the run, however fast the machine is
    rng, kills, plan = random.Random(0), 0, inversion_plan(normed, tmp_path / "out", commit_images=8)
    while True:
        child = Child(lambda report: synthesize.run(plan, QUIET) and None)
        code = child.wait(rng.uniform(0, longest) if kills < 4 else 60)
        child.steps()
        if code is not None:
            break
        kills += 1
    assert code == 0
    assert kills > 0
    assert synthetic(tmp_path / "out") == synthetic(whole)
    assert rows(tmp_path / "out") == rows(whole)


def test_a_rate_that_is_far_too_large_is_a_divergence_whenever_it_ends(network, tmp_path):
    """Also where the pictures are done before anybody looks at a loss."""
    for steps in (2, 7):
        folder = tmp_path / str(steps)
        folder.mkdir()
        with pytest.raises(Diverged, match=r"became .* by step \d.* Lower inversion\.lr\.$"):
            run(network, section(lr=1e12, steps=steps, betas=(0.0, 0.0)), folder)


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 1e39), ("lr", float("inf")), ("betas", [5, 5]), ("betas", [0.9, float("nan")])]
)
def test_numbers_that_adam_cannot_take_are_refused(key, value):
    with pytest.raises(UsageError, match=rf"inversion\.{key}: input should be"):
        resolve(synthesize.Config, options={f"inversion.{key}": value})
