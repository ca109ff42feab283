"""The loop of ``kdcli synthesize``: killed at random moments it makes the same pictures, each once."""

import random
import time
from contextlib import suppress

import pytest
import torch
from toolbox import QUIET, Child, facts, synthesis_plan, synthetic

from kdcli.artifacts import dataset
from kdcli.artifacts import manifest as manifests
from kdcli.stages import synthesize
from kdcli.synthesis.generate import batches


def test_a_number_has_one_place_in_its_batch():
    assert list(batches(range(10), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(batches([3, 5, 6, 12], 4)) == [[3], [5, 6], [12]]
    assert list(batches([], 4)) == []


def committed(partial):
    """Numbers of the pictures that a killed run had committed."""
    with suppress(FileNotFoundError):
        return {number for first, end, _ in dataset.parts(partial) for number in range(first, end)}
    return set()


def sweep(kills, pictures, variations, folder):
    torch.set_num_threads(1)
    rng = random.Random(0)

    def plan(out):
        return synthesis_plan(pictures, out, weights=str(variations), commit_images=4)

    started = time.monotonic()
    reference = synthetic(synthesize.run(plan(folder / "whole"), QUIET).path)
    length = time.monotonic() - started
    counts = {"kills": 0, "finished": 0, "resumed": 0}
    while counts["kills"] < kills:
        out = folder / f"run-{counts['finished']}"
        made, before = plan(out), set()
        while True:
            child = Child(lambda report, made=made: synthesize.run(made, QUIET) and None)
            code = child.wait(rng.uniform(0, 0.6 * length))
            child.steps()
            assert code in (None, 0), "the rerun failed"
            if code == 0:
                break
            counts["kills"] += 1
            if not out.exists():
                kept = committed(out.with_name(f"{out.name}.partial"))
                assert before <= kept, "a committed picture was lost"
                counts["resumed"] += 0 < len(kept) < 40
                before = kept
        counts["finished"] += 1
        manifests.verify(out, manifests.read(out))
        assert synthetic(out) == reference
        assert facts(out)["images"] == 40
    return counts


def test_kills(pictures, variations, tmp_path):
    counts = sweep(2, pictures, variations, tmp_path)
    assert counts["kills"] >= 2
    assert counts["finished"] >= 1


@pytest.mark.long
def test_twenty_kills(pictures, variations, tmp_path, capsys):
    counts = sweep(20, pictures, variations, tmp_path)
    with capsys.disabled():
        print(f"\n{counts}")
    assert counts["kills"] >= 20
    assert counts["finished"] >= 2
    assert counts["resumed"] >= 5
