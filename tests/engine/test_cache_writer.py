"""The teacher cache: its key, two writers at once, an interrupted filling."""

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from toolbox import QUIET

from kdcli.config import resolve
from kdcli.data.cache import Store
from kdcli.data.order import Pool
from kdcli.data.views import TrainingView
from kdcli.engine.cache import Filling, Request, fill
from kdcli.engine.runtime import open_runtime
from kdcli.models.build import input_spec
from kdcli.models.timm import TimmModel
from kdcli.sections import DataSection, RunSection, ViewSection
from kdcli.tasks import open_task_data


@pytest.fixture(scope="module")
def pool(pictures):
    return Pool((open_task_data(DataSection(source=str(pictures)), "train").split("train"),))


@pytest.fixture
def request_(pool):
    torch.manual_seed(0)
    body = timm.create_model("test_vit", img_size=32, num_classes=4)
    network = TimmModel(body, input_spec(body), list("abcd"), name="toy", source="weights").eval()
    view = TrainingView(ViewSection(), 32, seed=0)
    return Request(
        network, ("logits",), lambda x: network.call([x], ("logits",)), view, view.recipe(), 2, Store("fp32")
    )


@pytest.fixture
def filling():
    runtime = open_runtime(resolve(RunSection, options={"device": "cpu"}))
    return Filling(runtime, QUIET, 16, max_pixels=10**6)


def test_rows_are_the_networks_own_outputs(pool, request_, filling, tmp_path):
    cache = fill(tmp_path, request_, pool, filling, "outputs")
    assert len(cache) == 2 * len(pool)
    part, place = pool.locate(5)
    view = request_.cut(part.picture(place, 10**6), 1, int(pool.ids[5]))
    with torch.inference_mode():
        expected = request_.network(view[None])
    torch.testing.assert_close(cache.read([(int(pool.ids[5]), 1)])["logits"], expected)


def test_a_subset_computes_nothing(pool, request_, filling, tmp_path):
    fill(tmp_path, request_, pool, filling, "outputs")

    def refuses(x):
        raise AssertionError("computed again")

    some = Pool((pool.parts[0].take(np.array([7, 3, 20])),))
    cache = fill(tmp_path, dataclasses.replace(request_, compute=refuses, views=1), some, filling, "outputs")
    assert not len(cache.lacking(some.ids, 0))


def test_only_the_views_that_are_used_are_computed(pool, request_, filling, tmp_path):
    used = np.zeros((2, len(pool)), bool)
    used[0, 3:10], used[1, 5] = True, True
    cache = fill(tmp_path, request_, pool, filling, "outputs", used)
    assert len(cache) == 8
    assert [set(range(len(pool))) - set(cache.lacking(pool.ids, view)) for view in (0, 1)] == [
        set(range(3, 10)),
        {5},
    ]
    assert len(fill(tmp_path, request_, pool, filling, "outputs")) == 2 * len(pool)  # and later the rest


@pytest.mark.parametrize("field", ["source", "classes", "recipe", "store", "taps", "precision"])
def test_whatever_decides_the_outputs_is_in_the_key(field, request_):
    before = request_.key("no")
    if field in ("source", "classes"):
        setattr(request_.network, field, "other" if field == "source" else list("abdc"))
        assert request_.key("no") != before
    elif field == "precision":
        assert request_.key("bf16") != before
    else:
        other = {"recipe": {"size": 31}, "store": Store("fp16"), "taps": ("logits", "pooled")}[field]
        assert dataclasses.replace(request_, **{field: other}).key("no") != before
    assert dataclasses.replace(request_, views=5).key("no") == request_.key("no")


def test_two_writers_take_turns(pool, request_, filling, tmp_path):
    """Both are asked for the same rows; each row is computed once, and both read all of them."""
    children = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                rows = tmp_path / f"rows-{number}"

                def slow(x, rows=rows):
                    with rows.open("a") as stream:
                        stream.write(f"{len(x)}\n")
                    time.sleep(0.05)
                    return {"logits": request_.network(x)}

                cache = fill(
                    tmp_path / "cache", dataclasses.replace(request_, compute=slow), pool, filling, "outputs"
                )
                code = 0 if len(cache) == 2 * len(pool) else 3
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0]
    computed = sum(int(n) for file in Path(tmp_path).glob("rows-*") for n in file.read_text().split())
    assert computed == 2 * len(pool)
