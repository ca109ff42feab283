"""The teacher cache: its key, two writers at once, an interrupted filling."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from toolbox import QUIET, facts

from kdcli.artifacts.manifest import is_ours
from kdcli.artifacts.marks import MARK, trash_name
from kdcli.config import resolve
from kdcli.data.cache import Store
from kdcli.data.order import Pool
from kdcli.data.views import TrainingView
from kdcli.engine.cache import Filling, Request, fill
from kdcli.engine.runtime import open_runtime
from kdcli.errors import EnvironmentFault, InputError, from_os_error
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


# -- segments know their cache -------------------------------------------------------------------------------


def key_of(request_):
    return request_.key("no")


def test_a_segment_copied_from_another_teacher_is_refused(pool, request_, filling, tmp_path):
    fill(tmp_path, request_, pool, filling, "outputs")
    mine = tmp_path / key_of(request_)
    request_.network.source = "other weights"
    other = tmp_path / key_of(request_)
    (segment,) = mine.glob("segment-*")
    assert facts(segment)["key"] == mine.name
    shutil.copytree(segment, other / segment.name)
    message = (
        rf"{other / segment.name} was copied here from another cache, {mine.name}\. Delete .* computed anew"
    )
    with pytest.raises(InputError, match=message):
        fill(tmp_path, request_, pool, filling, "outputs")
    shutil.rmtree(other / segment.name)
    assert len(fill(tmp_path, request_, pool, filling, "outputs")) == 2 * len(pool)


def test_segments_of_an_earlier_version_are_read_where_their_folder_says_the_key(
    pool, request_, filling, tmp_path
):
    whole = fill(tmp_path, request_, pool, filling, "outputs")
    (segment,) = (tmp_path / key_of(request_)).glob("segment-*")
    manifest = facts(segment)
    del manifest["key"]
    (segment / "kdcli.json").write_text(json.dumps(manifest))
    (segment.parent / ".lock").write_bytes(b"")
    cached = dataclasses.replace(request_, compute=refuses)
    again = fill(tmp_path, cached, pool, filling, "outputs")
    pairs = [(int(i), 1) for i in pool.ids]
    assert torch.equal(again.read(pairs)["logits"], whole.read(pairs)["logits"])


def refuses(x):
    raise AssertionError("computed again")


# -- what killed runs leave ----------------------------------------------------------------------------------


def unfinished(place, lock=MARK + b"process 1 on here", identity=None):
    place.mkdir(parents=True)
    (place / ".lock").write_bytes(lock)
    (place / "ids.npy").write_bytes(b"half")
    if identity is not None:
        (place / "identity.json").write_text(json.dumps(identity))
    return place


def test_the_next_filling_sweeps_what_a_killed_one_left(pool, request_, filling, tmp_path):
    folder = tmp_path / key_of(request_)
    rows = "0123456789abcdef"
    gone = [
        unfinished(folder / "segment-1.partial"),
        unfinished(folder / f"segment-{rows}.partial", b"process 1 on here", {"rows": rows * 4}),
        unfinished(trash_name(folder / "segment-2")),
        unfinished(trash_name(folder / "segment-2.partial")),
    ]
    kept = [
        unfinished(folder / "segment-3.partial", b"mine"),
        unfinished(folder / "segment-4.trash-123"),
        unfinished(folder / "segment-5.partial", b"process 1 on here", {"rows": rows * 4}),
        unfinished(folder / f"segment-{rows[::-1]}.partial", b"process 1 on here", {"rows": [rows]}),
        unfinished(folder / "mine.partial"),
        unfinished(tmp_path / "elsewhere.partial"),
    ]
    held = unfinished(folder / "segment-6.partial")
    (folder / "segment-7.partial").symlink_to(kept[-1])
    cache = fill(tmp_path, request_, pool, filling, "outputs")
    (segment,) = (path for path in folder.glob("segment-*") if "." not in path.name)
    (segment / ".lock").write_bytes(MARK)
    assert not held.exists()
    unfinished(held)
    with open(held / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # by a process of a job whose first one is gone
        assert len(fill(tmp_path, request_, pool, filling, "outputs")) == len(cache)
    assert [place for place in gone if place.exists()] == []
    assert [place for place in (*kept, held) if not place.exists()] == []
    assert (folder / "segment-7.partial").is_symlink()
    assert not (segment / ".lock").exists()
    assert (folder / ".lock").read_bytes() == MARK
    assert is_ours(folder)


# -- a folder that cannot be used ----------------------------------------------------------------------------


def test_a_cache_that_is_a_file_or_below_one(pool, request_, filling, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "file/below", "dangling"):
        place = tmp_path / name
        with pytest.raises(
            EnvironmentFault, match=rf"^--cache {place}: .* is not a directory\. Choose another"
        ):
            fill(place, request_, pool, filling, "outputs")


def test_a_cache_that_cannot_be_written_to(pool, request_, filling):
    home = Path(tempfile.mkdtemp(prefix="kdcli-read-only-"))
    (home / "full").mkdir()
    fill(home / "full", request_, pool, filling, "outputs")
    home.chmod(0o555)
    (home / "full" / key_of(request_)).chmod(0o555)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setegid(65534)
                os.seteuid(65534)
            for place, message in (
                (home, f"cannot access {home / key_of(request_)}: Permission denied"),
                (home / "new" / "er", "cannot be written to. Mend its rights, or choose another --cache"),
                (home / "full", "cannot"),
            ):
                with pytest.raises(EnvironmentFault) as caught:
                    fill(place, request_, pool, filling, "outputs")
                assert str(caught.value).startswith(f"--cache {place}: ")
                assert message in str(caught.value)
                assert caught.value.exit_code == 4
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for folder in (home, home / "full" / key_of(request_)):
        folder.chmod(0o755)
    shutil.rmtree(home)
    assert code == 0


def test_a_full_disk_names_the_cache(pool, request_, filling, tmp_path, monkeypatch):
    def full(path, data):
        raise from_os_error(OSError(errno.ENOSPC, "No space left on device", str(path)), path, len(data))

    monkeypatch.setattr("kdcli.engine.cache.write_bytes", full)
    with pytest.raises(
        EnvironmentFault, match=rf"^--cache {tmp_path}: no space left on the disk while writing"
    ):
        fill(tmp_path, request_, pool, filling, "outputs")
