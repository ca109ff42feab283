"""Every kind of source opens; everything else is refused with a message that says what to do."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image
from toolbox import class_folders as fill
from toolbox import tiny_picture as picture

from kdcli.data.images import glance
from kdcli.data.loading import load
from kdcli.data.samples import UNLABELLED, Data
from kdcli.data.sources import open_train, open_unlabelled, refuse_small
from kdcli.errors import BadImageError, EnvironmentFault, InputError, UsageError
from kdcli.sections import DataSection, SourceSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's own cache, away from the user's."""
    folder = tmp_path_factory.mktemp("hf-cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def table(
    count: int = 20, classes: tuple[str, ...] = ("cat", "dog"), start: int = 0, **columns: list
) -> datasets.Dataset:
    """A table with embedded pictures and a class label, and further columns."""
    labels = {"label": [i % len(classes) for i in range(count)]} if classes else {}
    data = {"image": [{"bytes": picture(start + i), "path": None} for i in range(count)], **labels, **columns}
    found = datasets.Dataset.from_dict(data).cast_column("image", datasets.Image())
    if classes and "label" not in columns:
        found = found.cast_column("label", datasets.ClassLabel(names=list(classes)))
    return found


def saved(folder: Path, data: datasets.Dataset | datasets.DatasetDict) -> str:
    data.save_to_disk(str(folder))
    return str(folder)


def opened(source: object, *need: str, **options: object) -> Data:
    return open_task_data(DataSection(source=str(source), **options), *(need or ("train", "validation")))  # type: ignore[arg-type]


def sizes(data: Data) -> dict[str, int]:
    return {name: len(samples) for name, samples in data.splits.items()}


# -- what opens ----------------------------------------------------------------------------------------------


def test_a_saved_dataset_is_carved(tmp_path: Path) -> None:
    data = opened(saved(tmp_path / "d", table(40)))
    assert (data.classes, sizes(data)) == (["cat", "dog"], {"train": 36, "validation": 4})
    assert data.split("train").picture(0, 100).size == (8, 8)
    both = np.concatenate([s.ids for s in data.splits.values()])
    assert len(np.unique(both)) == 40
    assert sizes(opened(tmp_path / "d", "train")) == {"train": 36}
    only = opened(tmp_path / "d", "validation")
    assert only.split("validation").fingerprint == data.split("validation").fingerprint


def test_a_saved_dict_keeps_its_validation_split(tmp_path: Path) -> None:
    parts = {"train": table(20), "validation": table(6, start=50), "test": table(4, start=90)}
    source = saved(tmp_path / "d", datasets.DatasetDict(parts))
    data = opened(source, "train", "validation", "test")
    assert sizes(data) == {"train": 20, "validation": 6, "test": 4}
    assert data.describe()["splits"]["test"]["labelled"] == 4
    chosen = opened(source, validation="test")
    assert chosen.split("validation").fingerprint == data.split("test").fingerprint


@pytest.mark.parametrize("name", ["val", "valid", "dev"])
def test_other_names_of_a_validation_split(tmp_path: Path, name: str) -> None:
    source = saved(tmp_path / "d", datasets.DatasetDict({"train": table(20), name: table(6, start=50)}))
    assert sizes(opened(source)) == {"train": 20, "validation": 6}


def test_a_lone_split_of_any_name_is_carved(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", datasets.DatasetDict({"everything": table(40)}))
    assert sizes(opened(source)) == {"train": 36, "validation": 4}
    assert sizes(opened(source, "validation")) == {"validation": 4}


def test_a_wrong_split_lists_those_that_exist(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", datasets.DatasetDict({"train": table(20), "holdout": table(6, start=50)}))
    with pytest.raises(InputError, match=r"no split 'test'; it has: train, holdout\."):
        opened(source, "test")
    with pytest.raises(InputError, match=r"no split 'valid'; it has: train, holdout\."):
        opened(source, validation="valid")
    with pytest.raises(InputError, match=r"has no split 'test'; it has: train\."):
        opened(source, "train").split("test")
    assert sizes(opened(source, "test", test="holdout")) == {"test": 6}


def test_class_folders(tmp_path: Path) -> None:
    data = opened(fill(tmp_path / "my cars [1] *", {"audi": 20, "bmw": 20, ".hidden": 1}))
    assert (data.classes, sizes(data)) == (["audi", "bmw"], {"train": 36, "validation": 4})


@pytest.mark.parametrize("names", [("train", "test"), ("training", "testing"), ("train2017", "eval2017")])
def test_split_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    fill(tmp_path / names[0], {"a": 10, "b": 10})
    fill(tmp_path / names[1], {"a": 3, "b": 2}, start=100)
    data = opened(tmp_path, "train", "validation", "test")
    assert (data.classes, sizes(data)) == (["a", "b"], {"train": 18, "validation": 2, "test": 5})


def test_file_names_and_class_names_do_not_make_splits(tmp_path: Path) -> None:
    fill(tmp_path, {"car": 10, "plane": 10, "train": 10})
    (tmp_path / "car" / "test_1.png").write_bytes(picture(500))
    data = opened(tmp_path)
    assert (data.classes, sizes(data)) == (["car", "plane", "train"], {"train": 28, "validation": 3})


def test_deeper_folders_are_not_empty_classes(tmp_path: Path) -> None:
    fill(tmp_path / "vehicles", {"car": 10, "bus": 10})
    assert opened(tmp_path).classes == ["bus", "car"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_with_text_labels(tmp_path: Path, kind: str) -> None:
    rows = [{"file_name": f"x/{i}.png", "label": "zebra" if i % 2 else "ant"} for i in range(20)]
    fill(tmp_path, {"x": 20})
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join(r.values()) for r in rows]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    data = opened(tmp_path)
    assert (data.classes, sizes(data)) == (["ant", "zebra"], {"train": 18, "validation": 2})
    train = data.split("train")
    numbers = [int(np.asarray(train.picture(i, 100))[0, 0, 0]) for i in range(len(train))]
    assert [n % 2 for n in numbers] == train.labels.tolist()


def test_parquet_file_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space" / "data"
    folder.mkdir(parents=True)
    table(10).to_parquet(folder / "train-00000-of-00002.parquet")
    table(10, start=10).to_parquet(folder / "train-00001-of-00002.parquet")
    table(4, start=50).to_parquet(folder / "test-00000-of-00001.parquet")
    data = opened(tmp_path / "with space", "train", "validation", "test")
    assert (data.classes, sizes(data)) == (["cat", "dog"], {"train": 18, "validation": 2, "test": 4})
    single = opened(folder / "train-00001-of-00002.parquet", validation_fraction=0.2)
    assert sizes(single) == {"train": 8, "validation": 2}


def test_parquet_in_split_folders(tmp_path: Path) -> None:
    for name, start in (("train", 0), ("test", 50)):
        (tmp_path / "default" / name).mkdir(parents=True)
        table(20, start=start).to_parquet(tmp_path / "default" / name / "0000.parquet")
    assert sizes(opened(tmp_path, "train", "test")) == {"train": 18, "test": 20}


def test_plain_parquet_with_bytes_and_path(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(20)]
    pq.write_table(pa.table({"photo": cells, "y": [i % 2 for i in range(20)]}), tmp_path / "a.parquet")
    data = opened(tmp_path / "a.parquet")
    assert (data.classes, sizes(data)) == (["0", "1"], {"train": 18, "validation": 2})


def test_the_bundled_example() -> None:
    data = opened("example:fashion-mnist", "train", "validation", "test")
    assert sizes(data) == {"train": 3600, "validation": 400, "test": 1500}
    assert len(data.classes or []) == 10
    with pytest.raises(UsageError, match=r"no bundled example 'fashion'.*'fashion-mnist'"):
        opened("example:fashion")


@pytest.mark.parametrize("kind", ["torch", "pandas"])
def test_a_table_saved_in_another_format_reads_alike(tmp_path: Path, kind: str) -> None:
    plain = opened(saved(tmp_path / "plain", table(20)))
    other = opened(saved(tmp_path / kind, table(20).with_format(kind)))
    assert other.fingerprint == plain.fingerprint
    assert other.split("train").picture(0, 100).size == (8, 8)


def test_the_source_stays_as_it_is_and_is_not_copied(tmp_path: Path, cache: Path) -> None:
    fill(tmp_path / "pictures", {"a": 10, "b": 10})
    table(20).to_parquet(tmp_path / "pictures.parquet")
    saved(tmp_path / "saved", table(20))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for name in ("pictures", "pictures.parquet", "saved"):
        opened(tmp_path / name)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert list(cache.rglob("*")) == []


# -- what does not -------------------------------------------------------------------------------------------


def test_no_such_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"does not exist \(a hub id looks like owner/name\)"):
        opened(tmp_path / "nothing")
    monkeypatch.chdir(fill(tmp_path / "here", {"a": 3}))
    with pytest.raises(InputError, match="imagefolder does not exist"):  # would read the working directory
        opened("imagefolder")
    with pytest.raises(UsageError, match="--data"):
        open_task_data(DataSection())


def test_an_unreachable_hub_ends_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network here")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    message = (
        r"no path here: .*nobody/nothing.*HF_HUB_OFFLINE.*|no path here.*give a folder.*HF_HUB_OFFLINE=1"
    )
    with pytest.raises(InputError, match=message):
        opened("nobody/nothing")
    assert time.monotonic() - start < 10
    assert not datasets.config.HF_HUB_OFFLINE  # only for that call


def test_a_cache_of_the_hub_that_cannot_be_written_is_a_fault_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "/hub/datasets--owner--name")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(EnvironmentFault, match="cannot access /hub/datasets--owner--name: Permission denied"):
        opened("owner/name")


def test_a_cache_that_a_library_could_not_write_to_names_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def refuse(*args: object, **kwargs: object) -> None:
        try:
            raise PermissionError(13, "Permission denied", str(tmp_path / "cache" / "owner___name"))
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = r"cannot write to the cache of the hub \(HF_DATASETS_CACHE\): .*owner___name: Permission denied"
    with pytest.raises(EnvironmentFault, match=message):
        opened("owner/name")


def test_what_lies_beside_a_table_is_said_and_a_missing_part_refused(tmp_path: Path) -> None:
    table(20).to_parquet(tmp_path / "train-0.parquet")
    (tmp_path / "words.md").write_text("x")
    (tmp_path / "photo.heic").write_bytes(b"x")
    said = f"{tmp_path}: files that are not read: 1 .md and 1 .heic"
    assert opened(tmp_path).notes in ((said,), (said.replace("1 .md and 1 .heic", "1 .heic and 1 .md"),))
    (tmp_path / "train-1.parquet").symlink_to("gone")
    with pytest.raises(
        InputError, match=r"train-1\.parquet is a link that leads nowhere: a part of the table"
    ):
        opened(tmp_path)


def test_archives_come_with_a_conversion_that_works(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0.tar", "w") as archive:
        for i in range(20):
            for suffix, data in (("png", picture(i)), ("cls", str(i % 2).encode())):
                entry = tarfile.TarInfo(f"{i:04}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    with pytest.raises(InputError, match="random access") as single:
        opened(shards / "0.tar")
    with pytest.raises(InputError, match="random access") as whole:
        opened(shards)
    assert "0.tar" in str(single.value)
    code = re.search(r'python -c "(.*)"', str(whole.value))
    assert code is not None
    monkey = f"import datasets; datasets.config.HF_DATASETS_CACHE = {str(tmp_path / 'cache')!r}; "
    subprocess.run([sys.executable, "-c", monkey + code[1]], cwd=tmp_path, check=True, capture_output=True)
    data = opened(tmp_path / "data", label_column="cls")
    assert sizes(data) == {"train": 18, "validation": 2}


def test_empty_folders_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures, parquet files or saved dataset"):
        opened(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"notes\.txt is neither a folder nor a parquet file"):
        opened(tmp_path / "notes.txt")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(InputError, match=r"cannot read data from .*bad\.parquet"):
        opened(tmp_path / "bad.parquet")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "a", {"cat": 10, "dog": 10, "emu": 0})
    with pytest.raises(InputError, match="class folder 'emu' holds no picture"):
        opened(tmp_path / "a")
    source = saved(tmp_path / "b", table(40, ("cat", "dog", "emu", "fox")).filter(lambda r: r["label"] < 2))
    with pytest.raises(InputError, match="class 'emu' and 1 more has no labelled picture in train"):
        opened(source)
    source = str(tmp_path / "c")
    (tmp_path / "c").mkdir()
    table(20).select([]).to_parquet(tmp_path / "c" / "train.parquet")
    table(4).to_parquet(tmp_path / "c" / "test.parquet")
    with pytest.raises(InputError, match=r"c: split 'train' is empty"):
        opened(source)


def test_foreign_image_cells_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(1))
    touched: list[object] = []
    real = builtins.open, io.open, os.open

    def watch(kind: int) -> Callable[..., object]:
        def call(file: object, *args: object, **kwargs: object) -> object:
            if str(file).endswith("secret.png"):
                touched.append(file)
            return real[kind](file, *args, **kwargs)

        return call

    def block(*args: object, **kwargs: object) -> None:
        touched.append("socket")
        raise OSError("blocked")

    paths = {"file": str(secret), "url": "https://example.org/secret.png", "uri": f"file://{secret}"}
    sources = {}
    for name, path in paths.items():
        cells = [{"bytes": picture(i), "path": None} for i in range(4)] + [{"bytes": None, "path": path}]
        sources[name] = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"image": cells, "label": [0] * 5}), sources[name])
    monkeypatch.setattr(builtins, "open", watch(0))
    monkeypatch.setattr(io, "open", watch(1))
    monkeypatch.setattr(os, "open", watch(2))
    monkeypatch.setattr(socket.socket, "connect", block)
    monkeypatch.setattr(socket, "create_connection", block)
    for name, path in paths.items():
        for options in ({}, {"on_bad_image": "skip", "max_bad_fraction": 1.0}):
            with pytest.raises(InputError, match=rf"row 4: .*{re.escape(path)}.*never opened"):
                opened(sources[name], **options)
    assert touched == []
    with open(secret, "rb"):  # the watch works
        assert touched == [secret]


@pytest.mark.parametrize("what", ["parent", "absolute", "symlink", "folder"])
def test_image_folders_cannot_lead_outside(tmp_path: Path, what: str) -> None:
    outside = fill(tmp_path, {"outside": 3}) / "outside"
    inside = fill(tmp_path / "inside", {"a": 3, "b": 3}, start=10)
    if what == "symlink":
        (inside / "a" / "z.png").symlink_to(outside / "0.png")
        message = "never opened"
    elif what == "folder":
        (inside / "c").symlink_to(outside)
        message = "c is a link to a folder; links are not followed"
    else:
        name = "../outside/0.png" if what == "parent" else str(outside / "0.png")
        (inside / "metadata.jsonl").write_text(json.dumps({"file_name": name, "label": "a"}))
        message = r"metadata\.jsonl row 1: .*0\.png' is no path to a file below .*inside"
    with pytest.raises(InputError, match=message):
        opened(inside)


def test_code_beside_the_data_never_runs(tmp_path: Path) -> None:
    folder = fill(tmp_path / "code", {"a": 10, "b": 10})
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch '{ran}'",)

    payload = pickle.dumps(Payload())
    for name in ("data.pkl", "dataset.pt", "train.npy", "state.pickle"):
        (folder / name).write_bytes(payload)
    for name in ("code.py", "setup.py", "dataset_infos.py", "__init__.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w')")
    assert sizes(opened(folder)) == {"train": 18, "validation": 2}
    with pytest.raises(InputError, match="neither a folder nor a parquet file"):
        opened(folder / "code.py")
    assert not ran.exists()
    pickle.loads(payload)
    assert ran.exists()  # the payload works


def test_artifacts_are_verified(tmp_path: Path) -> None:
    from kdcli.artifacts.manifest import Manifest
    from kdcli.artifacts.store import open_output

    for kind in ("dataset", "model"):
        with open_output(tmp_path / kind, {}) as output:
            assert output is not None
            table(20).save_to_disk(str(output.partial / "saved"))
            for file in (output.partial / "saved").iterdir():
                file.rename(output.partial / file.name)
            names = [p.name for p in output.partial.iterdir() if not p.name.startswith((".", "identity"))]
            output.commit(Manifest(kind, "synthesize", {}), [n for n in names if n != "saved"])
    assert sizes(opened(tmp_path / "dataset")) == {"train": 18, "validation": 2}
    with pytest.raises(InputError, match="is a model artifact, not a dataset"):
        opened(tmp_path / "model")
    arrow = next((tmp_path / "dataset").glob("*.arrow"))
    data = bytearray(arrow.read_bytes())
    data[len(data) // 2] ^= 1
    arrow.write_bytes(data)
    with pytest.raises(InputError, match="its sha256 differs from the manifest"):
        opened(tmp_path / "dataset")


def test_a_half_written_artifact_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "runs" / "d.partial", table(20))
    monkeypatch.chdir(tmp_path)
    for name in ("runs/d", "runs/d.partial"):
        with pytest.raises(InputError, match="is half-written"):
            opened(name)


# -- columns -------------------------------------------------------------------------------------------------


def test_columns_are_found_by_type_and_overridden(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", table(20, make=["x", "y"] * 10, label=[0] * 20, score=[0.5] * 20))
    assert opened(source, label_column="make").classes == ["x", "y"]
    with pytest.raises(InputError, match=r"no column 'imag'; it has: .*Did you mean 'image'\?"):
        opened(source, image_column="imag")
    with pytest.raises(InputError, match=r"no column 'mak'; .*Did you mean 'make'\?"):
        opened(source, label_column="mak")
    with pytest.raises(InputError, match=r"no column 'maker'; .*Did you mean 'make'\?"):
        opened(source, group_by="maker")
    with pytest.raises(InputError, match="column 'score' holds no pictures"):
        opened(source, image_column="score")
    with pytest.raises(
        InputError, match="column 'score' is float64; labels are class names, numbers or text"
    ):
        opened(source, label_column="score")


def test_several_pictures_or_labels_must_be_named(tmp_path: Path) -> None:
    other = [{"bytes": picture(i), "path": None} for i in range(100, 120)]
    two = table(20, other=other, a=[0, 1] * 10, b=[1, 0] * 10).remove_columns("label")
    for name in ("a", "b"):
        two = two.cast_column(name, datasets.ClassLabel(names=["no", "yes"]))
    source = saved(tmp_path / "d", two.cast_column("other", datasets.Image()))
    with pytest.raises(
        InputError, match=r"several picture columns among image, other\. .*data\.image_column"
    ):
        opened(source, label_column="a")
    with pytest.raises(InputError, match=r"several label columns: a, b\. .*data\.label_column"):
        opened(source, image_column="other")
    data = opened(source, image_column="other", label_column="b")
    assert data.split("train").data(0) == other[int(data.split("train").rows[0])]["bytes"]
    with pytest.raises(InputError, match="no picture column among a, b"):
        opened(saved(tmp_path / "none", two.remove_columns(["image", "other"])), label_column="a")


def test_lists_of_labels_are_no_classes(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", table(20, (), labels=[[0, 1], [0], [1]] * 6 + [[0]] * 2))
    assert opened(source).task == "multi-label"
    with pytest.raises(
        InputError, match=r"'labels' holds several labels per picture, which is --set data\.task"
    ):
        opened(source, task="classification")


def test_numbers_and_nulls_as_labels(tmp_path: Path) -> None:
    labels = [i % 3 for i in range(60)]
    labels[:10] = [None] * 5 + [UNLABELLED] * 5  # type: ignore[list-item]
    data = opened(saved(tmp_path / "d", table(60, (), label=labels)))
    assert data.classes == ["0", "1", "2"]
    train = data.split("train")
    assert sorted(train.rows[~train.labelled()]) == list(range(10))
    assert data.split("validation").labelled().all()
    text = ["cat", "dog", None] * 20
    data = opened(saved(tmp_path / "t", table(60, (), label=text)))
    assert data.classes == ["cat", "dog"]
    assert int((~data.split("train").labelled()).sum()) == 20


def test_labels_outside_the_classes_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "a", table(20, (), label=[0, 1, -2, 1] * 5))
    with pytest.raises(InputError, match="train row 2: label -2 is outside the 2 classes"):
        opened(source)
    source = saved(tmp_path / "b", table(20, (), label=[0, 10**12] * 10))
    with pytest.raises(InputError, match="column 'label' holds 1000000000000; class numbers count from 0"):
        opened(source)


def test_splits_must_mean_the_same_classes(tmp_path: Path) -> None:
    parts = {"train": table(20, ("cat", "dog")), "test": table(20, ("dog", "cat"), start=50)}
    source = saved(tmp_path / "d", datasets.DatasetDict(parts))
    with pytest.raises(InputError, match=r"column 'label' differs between the splits train .* and test"):
        opened(source)


def test_data_without_labels(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", table(5, ()))
    data = opened(source, "train")
    assert (data.classes, sizes(data)) == (None, {"train": 5})
    assert not data.split("train").labelled().any()


def test_extra_pictures_never_show_their_labels(tmp_path: Path) -> None:
    parts = {"train": table(20), "test": table(20, start=50)}
    data = open_unlabelled(saved(tmp_path / "d", datasets.DatasetDict(parts)), DataSection())
    assert sizes(data) == {"extra train": 20}
    assert not data.split("extra train").labelled().any()
    flat = fill(tmp_path, {"flat": 4}) / "flat"
    assert sizes(open_unlabelled(str(flat), DataSection())) == {"extra train": 4}


def test_the_training_split_alone(tmp_path: Path) -> None:
    parts = {"pool": table(20), "test": table(20, start=50)}
    source = saved(tmp_path / "d", datasets.DatasetDict(parts))
    data = open_train(SourceSection(source=source, train="pool"))
    assert (data.classes, sizes(data)) == (None, {"train": 20})
    assert not data.split("train").labelled().any()
    with pytest.raises(
        InputError, match=r"no split 'train'; it has: pool, test\. Name one: --set data\.train"
    ):
        open_train(SourceSection(source=source))
    only = saved(tmp_path / "only", datasets.DatasetDict({"all": table(5)}))
    assert sizes(open_train(SourceSection(source=only))) == {"train": 5}


def test_small_pictures_are_named(tmp_path: Path) -> None:
    samples = open_train(SourceSection(source=saved(tmp_path / "d", table(20)))).split("train")
    refuse_small(samples, 8, 64)
    with pytest.raises(
        InputError, match=r"train row 0: a source of 8 x 8 pixels is too small \(data\.min_side=9"
    ):
        refuse_small(samples, 9, 64)
    with pytest.raises(BadImageError, match="train row 0: picture too large: 8 x 8"):
        refuse_small(samples, 8, 63)


# -- damaged pictures ----------------------------------------------------------------------------------------


def damaged(folder: Path, *rows: int) -> str:
    data = table(20)
    cells = [{"bytes": picture(i)[: 40 if i in rows else None], "path": None} for i in range(len(data))]
    features = data.features
    return saved(
        folder, datasets.Dataset.from_dict({"image": cells, "label": data["label"][:]}, features=features)
    )


def test_skip_leaves_out_damaged_pictures_and_records_them(tmp_path: Path) -> None:
    source = damaged(tmp_path / "d", 3, 8)
    data = opened(source, on_bad_image="skip", max_bad_fraction=0.1)
    assert data.notes == (f"{source}: 2 corrupt pictures are left out: train row 3, train row 8",)
    rows = np.concatenate([s.rows for s in data.splits.values()])
    assert sorted(rows.tolist()) == [i for i in range(20) if i not in (3, 8)]
    assert len(data.skipped) == 2
    assert data.describe()["skipped"] == list(data.skipped)
    with pytest.raises(
        InputError, match=r"2 of 20 .*, more than data\.max_bad_fraction=0\.05 allows\. First: train row 3\."
    ):
        opened(source, on_bad_image="skip", max_bad_fraction=0.05)
    extra = open_unlabelled(source, DataSection(on_bad_image="skip", max_bad_fraction=0.1))
    assert (sizes(extra), extra.skipped) == ({"extra train": 18}, data.skipped)


@pytest.mark.parametrize("options", [{}, {"on_bad_image": "skip"}])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the picture is empty \(0 bytes\)\."),
        (b"P", r"not a readable PNG, .*PPM picture\."),
        (b"hello", r"not a readable PNG, .*PPM picture\."),
        (b"\0\0\0\x18ftypheic", r"not a readable PNG, .*PPM picture\."),
        (picture(3)[:-12], r"damaged picture: the PNG is truncated \(no IEND\)\."),
    ],
)
def test_what_is_seen_to_be_no_picture_is_named_by_its_file_while_data_are_opened(
    tmp_path: Path, content: bytes, reason: str, options: dict[str, Any]
) -> None:
    fill(tmp_path / "train", {"cat": 10, "dog": 10})
    (tmp_path / "train" / "cat" / "photo.jpg").write_bytes(content)
    if options:
        with pytest.raises(InputError, match=r"1 of 21 .*First: train row 10 \(train/cat/photo\.jpg\)\."):
            opened(tmp_path, **options)
        return
    message = rf"^train row 10 \(train/cat/photo\.jpg\): {reason} Mend the picture, or run with --on-bad"
    with pytest.raises(BadImageError, match=message):
        opened(tmp_path)
    with pytest.raises(BadImageError, match=reason):
        open_unlabelled(str(tmp_path), DataSection())


def test_a_picture_that_breaks_off_is_named_by_its_file(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": 10, "dog": 10})
    fill(tmp_path / "validation", {"cat": 1, "dog": 1})  # a carved split might take the photo
    file = tmp_path / "train" / "dog" / "deep" / "photo.jpg"
    file.parent.mkdir()
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(buffer, "JPEG")
    file.write_bytes(buffer.getvalue()[:-100])
    samples = opened(tmp_path).split("train")
    index = next(i for i in range(len(samples)) if "photo" in samples.where(i))
    with pytest.raises(
        BadImageError,
        match=r"^train row 20 \(train/dog/deep/photo\.jpg\): damaged picture: .*[^.]\. Mend the picture, or",
    ):
        samples.picture(index, 10_000)


def test_every_format_passes_at_first_sight(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.new("RGB", (5, 4)).save(buffer, kind)
        glance(buffer.getvalue())
    for kind, mode in (("PPM", "1"), ("PPM", "L"), ("TIFF", "I;16B"), ("PPM", "F")):
        buffer = io.BytesIO()
        Image.new(mode, (5, 4)).save(buffer, kind)
        glance(buffer.getvalue())


def test_skip_honours_the_limit_of_pixels(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", table(20))
    options = DataSection(on_bad_image="skip", max_pixels=63)
    with pytest.raises(InputError, match="20 of 20 pictures are corrupt"):
        open_unlabelled(source, options)


def test_groups_come_from_their_column(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", table(80, car=[None if i < 8 else i // 4 for i in range(80)]))
    data = opened(source, group_by="car", validation_fraction=0.2)
    train, validation = (set(data.split(n).groups.tolist()) for n in ("train", "validation"))  # type: ignore[union-attr]
    assert validation
    assert not train & validation
    assert sum(name.startswith("picture ") for name in train | validation) == 8


def test_options_of_a_carving_are_heeded_or_said_to_change_nothing(tmp_path: Path) -> None:
    source = datasets.DatasetDict(
        {"train": table(40, car=[0] * 40), "validation": table(20, start=50, car=[0] * 20)}
    )
    source.save_to_disk(str(tmp_path / "d"))
    changed = {"validation_fraction": 0.2, "group_by": "car", "split_seed": 3}
    notes = opened(tmp_path / "d", **changed).notes
    assert [note.split(": ")[1] for note in notes] == [
        "data.validation_fraction=0.2 changes nothing",
        "data.group_by=car changes nothing",
        "data.split_seed=3 changes nothing",
    ]
    assert all(note.endswith("no validation is carved here") for note in notes)
    assert opened(tmp_path / "d", split_seed=3, labels_per_class=3).notes == ()  # it says which are hidden
    assert opened(tmp_path / "d").notes == ()
    single = saved(tmp_path / "e", table(80, car=[i // 4 for i in range(80)]))
    assert opened(single, **changed).notes == ()


def test_labels_per_class(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", table(40))
    data = opened(source, labels_per_class=3)
    train = data.split("train")
    assert np.bincount(train.labels[train.labelled()]).tolist() == [3, 3]
    assert data.split("validation").labelled().all()


def test_split_folders_without_class_folders_are_no_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / split / f"{i}.png")
    raw = load(str(tmp_path))
    assert {name: table.column_names for name, table in raw.tables.items()} == {
        "train": ["image"],
        "test": ["image"],
    }
