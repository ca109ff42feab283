"""What was cached comes back for the same pairs, in any order; what is damaged is refused."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcli.artifacts.manifest import NAME, Manifest
from kdcli.artifacts.store import open_output
from kdcli.data.cache import Cache, Columns, Store
from kdcli.errors import InputError


def logits(count: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 4


def segment(
    folder: Path, name: str, pairs: list[tuple[int, int]], tensors: dict[str, Tensor], store: str = "fp32"
) -> Path:
    """Commit a segment as a writer does."""
    arrays = {
        "ids": np.array([i for i, _ in pairs], np.uint64),
        "views": np.array([v for _, v in pairs], np.int32),
    }
    for tap, tensor in tensors.items():
        arrays |= Store(store).pack(tap, tensor)
    with open_output(folder / f"segment-{name}", {"rows": name}) as output:
        assert output is not None
        for key, array in arrays.items():
            np.save(output.partial / f"{key}.npy", array, allow_pickle=False)
        output.commit(Manifest("cache", "distill", {"rows": name}), [f"{key}.npy" for key in arrays])
    return folder / f"segment-{name}"


# -- how a tap is kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 0.0), ("fp16", 2**-10)])
def test_dense_stores(name: str, tolerance: float) -> None:
    for tensor in (logits(5, 10), torch.randn(2, 3, 4, 4)):
        packed = Store(name).pack("block4", tensor)
        assert {k: v.dtype.name for k, v in packed.items()} == {"block4": name.replace("fp", "float")}
        found = Store.unpack(packed, ["block4"])["block4"]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, tensor, rtol=tolerance, atol=0)


@pytest.mark.parametrize("top", [1, 5, 20])
def test_top_k_keeps_the_mass_of_its_classes(top: int) -> None:
    tensor = logits(16, 100)
    packed = Store(f"top{top}").pack("logits", tensor)
    assert packed["logits.top"].shape == packed["logits.places"].shape == (16, top + 1)
    found = Store.unpack(packed, ["logits"])["logits"]
    assert found.shape == tensor.shape
    places = tensor.topk(top).indices
    whole, kept = tensor.softmax(1), found.softmax(1)
    torch.testing.assert_close(kept.gather(1, places), whole.gather(1, places), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.gather(1, places), tensor.gather(1, places), rtol=0, atol=0)
    rest = torch.ones_like(kept).scatter(1, places, 0).bool()
    even = kept[rest].view(16, -1)
    torch.testing.assert_close(even, even[:, :1].expand_as(even), rtol=0, atol=0)
    torch.testing.assert_close(kept.sum(1), torch.ones(16))


def test_top_k_of_nearly_all_classes_or_of_features_is_dense() -> None:
    for name, tap, tensor in (
        ("top9", "logits", logits(3, 10)),
        ("top10", "logits", logits(3, 10)),
        ("top5", "pooled", logits(3, 100)),
        ("top5", "block4", torch.randn(2, 3, 4, 4)),
    ):
        assert list(Store(name).pack(tap, tensor)) == [tap]
    assert "logits.top" in Store("top8").pack("logits", logits(3, 10))


@pytest.mark.parametrize("name", ["fp8", "top", "top0", "top-3", "topx", "", "TOP5"])
def test_unknown_stores_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"views\.store: '.*' is none of fp16, fp32, topK"):
        Store(name)


def test_what_cannot_be_kept_is_refused() -> None:
    large = torch.tensor([[1.0, 70000.0]])
    with pytest.raises(InputError, match=r"logits does not fit in fp16 .*views\.store=fp32"):
        Store("fp16").pack("logits", large)
    assert Store.unpack(Store("fp32").pack("logits", large), ["logits"])["logits"].tolist() == large.tolist()
    for value in (float("nan"), float("inf"), -float("inf")):
        for name in ("fp16", "fp32", "top1"):
            with pytest.raises(InputError, match="logits of the teacher holds NaN or infinity"):
                Store(name).pack("logits", torch.tensor([[1.0, value, 0.0, 2.0]]))


# -- a cache -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["fp32", "top3"])
def test_pairs_are_found_in_any_order_and_segment(tmp_path: Path, store: str) -> None:
    rng = np.random.default_rng(0)
    ids = [*rng.integers(0, 2**64, 28, np.uint64).tolist(), 0, 2**64 - 1]
    pairs = [(i, v) for v in range(3) for i in ids]
    rng.shuffle(pairs)
    pairs = [(int(i), int(v)) for i, v in pairs]
    known = logits(90, 10)
    features = torch.randn(90, 4)
    for n, (start, stop) in enumerate([(0, 40), (40, 41), (41, 90)]):
        tensors = {"logits": known[start:stop], "pooled": features[start:stop].half().float()}
        segment(tmp_path, str(n), pairs[start:stop], tensors, store)
    cache = Cache(tmp_path, ["logits", "pooled"])
    assert len(cache) == 90
    expected = Store.unpack(Store(store).pack("logits", known), ["logits"])["logits"]
    for _ in range(10):
        chosen = rng.choice(90, 25)  # some of them twice
        found = cache.read([pairs[i] for i in chosen])
        torch.testing.assert_close(found["logits"], expected[chosen], rtol=0, atol=0)
        torch.testing.assert_close(found["pooled"], features[chosen].half().float(), rtol=0, atol=0)
    assert not any(len(cache.lacking(np.array([i], np.uint64), view)) for i, view in pairs)
    for absent in ((ids[0], 3), (ids[0] ^ 1, 0), (5, -1)):
        assert list(cache.lacking(np.array([absent[0]], np.uint64), absent[1])) == [0]
        with pytest.raises(
            InputError, match=rf"lacks view {absent[1]} of sample {absent[0]:016x}: .*other pictures"
        ):
            cache.read([pairs[0], absent])


def test_an_empty_cache(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        cache = Cache(folder, ["logits"])
        assert len(cache) == 0
        assert list(cache.lacking(np.array([1], np.uint64), 0)) == [0]
        with pytest.raises(InputError, match="lacks view 0 of sample 0000000000000001"):
            cache.read([(1, 0)])


def test_columns_are_named_by_call(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        segment(tmp_path / name, "0", [(1, 0), (2, 0)], {"logits": logits(2, 4, seed)})
    columns = Columns({"t": Cache(tmp_path / "a", ["logits"]), "t@big": Cache(tmp_path / "b", ["logits"])})
    found = columns.read([(2, 0)])
    assert set(found) == {"t.logits", "t@big.logits"}
    assert torch.equal(found["t@big.logits"], logits(2, 4, 1)[1:])


def test_unfinished_and_discarded_segments_are_ignored(tmp_path: Path) -> None:
    whole = segment(tmp_path, "0", [(1, 0)], {"logits": logits(1, 4)})
    for name in ("segment-1.partial", "segment-2.trash-77", "segment-0.partial.trash-77"):
        shutil.copytree(whole, tmp_path / name)
        (tmp_path / name / "ids.npy").unlink()
    (tmp_path / ".lock").write_bytes(b"")
    assert len(Cache(tmp_path, ["logits"])) == 1


@pytest.mark.parametrize("name", ["ids.npy", "views.npy", "logits.npy", NAME])
@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "missing"])
def test_damaged_segments_are_refused(tmp_path: Path, name: str, how: str) -> None:
    segment(tmp_path, "0", [(1, 0)], {"logits": logits(1, 4)})
    path = segment(tmp_path, "1", [(2, 0)], {"logits": logits(1, 4)})
    file = path / name
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[5 if name == NAME else -1] ^= 1
        file.write_bytes(data)
    elif how == "missing":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2 if how == "truncate" else 0])
    with pytest.raises(InputError, match=r"Delete .*segment-1 and run again: it is computed anew"):
        Cache(tmp_path, ["logits"])
    shutil.rmtree(path)
    assert len(Cache(tmp_path, ["logits"])) == 1


def test_a_segment_of_something_else_is_refused(tmp_path: Path) -> None:
    segment(tmp_path, "0", [(1, 0)], {"pooled": logits(1, 4)})
    with pytest.raises(InputError, match=r"is no segment of a cache of logits\. Delete .*segment-0"):
        Cache(tmp_path, ["logits"])


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.zeros(1, np.int64)},
        {"ids": np.zeros((1, 1), np.uint64)},
        {"views": np.zeros(1, np.float32)},
        {"views": np.array(0, np.int32)},
        {"logits": np.array(1.0, np.float32)},
        {"logits": np.zeros((2, 4), np.float32)},
    ],
    ids=lambda change: next(f"{name} {array.dtype} {array.shape}" for name, array in change.items()),
)
def test_arrays_of_other_kinds_are_refused(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    arrays = {"ids": np.ones(1, np.uint64), "views": np.zeros(1, np.int32), "logits": np.zeros((1, 4))}
    with open_output(tmp_path / "segment-0", {}) as output:
        assert output is not None
        for key, array in {**arrays, **change}.items():
            np.save(output.partial / f"{key}.npy", array, allow_pickle=False)
        output.commit(Manifest("cache", "distill", {}), [f"{key}.npy" for key in arrays])
    with pytest.raises(InputError, match=r"is no segment of a cache of logits\. Delete .*segment-0"):
        Cache(tmp_path, ["logits"])


@pytest.mark.parametrize(("classes", "limit"), [(10, 2e-3), (1000, 10e-3)])
def test_reading_a_batch_is_quick(tmp_path: Path, classes: int, limit: float) -> None:
    pairs = [(i * 7919 % 2**64, v) for v in range(4) for i in range(1000)]
    for n in range(4):
        part = slice(n * 1000, (n + 1) * 1000)
        segment(tmp_path, str(n), pairs[part], {"logits": logits(1000, classes)}, "fp16")
    cache = Cache(tmp_path, ["logits"])
    rng = np.random.default_rng(0)
    batches = [[pairs[i] for i in rng.choice(4000, 128)] for _ in range(20)]
    times = []
    for batch in batches:
        start = time.perf_counter()
        cache.read(batch)
        times.append(time.perf_counter() - start)
    assert min(times) < limit
    print(f"{classes} classes: {np.median(times) * 1e3:.3f} ms")
