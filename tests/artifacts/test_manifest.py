"""Manifests: what is damaged is refused, and no name leads outside its artifact."""

from __future__ import annotations

import builtins
import json
import math
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.manifest import Manifest, differing, digest, safe_member
from kdcli.artifacts.store import write_tensors
from kdcli.errors import InputError

IDENTITY = {"config": {"lr": 0.1}}
GOOD = {"schema": 1, "kind": "model", "stage": "distill", "identity": {}, "parents": [], "files": {}}


def artifact(folder: Path, **facts: Any) -> Path:
    """A small model artifact, written by hand."""
    folder.mkdir()
    write_tensors(folder / "model.safetensors", {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5)})
    (folder / "config.json").write_text("{}")
    manifest = Manifest("model", "distill", IDENTITY, facts=facts)
    manifest.files = {
        name: {"sha256": manifests.file_hash(folder / name), "size": (folder / name).stat().st_size}
        for name in ("model.safetensors", "config.json")
    }
    (folder / manifests.NAME).write_text(manifest.to_json())
    return folder


CALM = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# -- reading -------------------------------------------------------------------------------------------------
def test_read_gives_what_was_written(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "out", classes=["größe", "数据"], steps=3, where=Path("x"))
    found = manifests.read(folder)
    assert (found.kind, found.stage, found.identity, found.parents) == ("model", "distill", IDENTITY, [])
    assert found.facts == {"classes": ["größe", "数据"], "steps": 3, "where": "x"}
    manifests.verify(folder, found)


def test_hash_is_of_the_content_alone() -> None:
    files = {"a": {"sha256": "0" * 64, "size": 1}}
    one = Manifest("model", "distill", {"seed": 0}, files=files, facts={"seconds": 1.0})
    two = Manifest("model", "probe", {"seed": 1}, files=files, facts={"seconds": 2.0})
    assert one.hash == two.hash == digest({"kind": "model", "files": {"a": "0" * 64}})
    assert Manifest("cache", "distill", {}, files=files).hash != one.hash


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "1",
        '"kdcli"',
        "[]",
        '["schema"]',
        "{}",
        '{"schema": 1}',
        "[" * 100_000,
        "\ufeff{}",
        "9" * 9999,
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / manifests.NAME).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"{tmp_path}/kdcli\.json is not a kdcli manifest"):
        manifests.read(tmp_path)


def test_every_prefix_of_a_manifest_is_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "out")
    text = (folder / manifests.NAME).read_text().rstrip()
    for length in range(len(text)):
        with pytest.raises(InputError, match="is not a kdcli manifest"):
            Manifest.from_json(text[:length], folder)


@pytest.mark.parametrize("schema", [0, 2, "1", None, [1], {}])
def test_another_schema(schema: Any) -> None:
    later = {"schema": schema, "sort": "model"}  # whatever its other fields are called
    with pytest.raises(InputError, match=rf"manifest schema {re.escape(repr(schema))}, this kdcli reads 1"):
        Manifest.from_json(json.dumps(later), Path("out/kdcli.json"))


@pytest.mark.parametrize("name", ["kind", "stage", "identity", "parents", "files"])
def test_a_missing_field(name: str) -> None:
    with pytest.raises(InputError, match=rf"not a kdcli manifest \(KeyError\('{name}'\)\)"):
        Manifest.from_json(json.dumps({k: v for k, v in GOOD.items() if k != name}), Path("kdcli.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in ("kind", "stage", "identity", "parents", "files")),
        ("kind", 3),
        ("stage", ["distill"]),
        ("identity", []),
        ("identity", "x"),
        ("parents", {}),
        ("parents", ["a"]),
        ("parents", [{"path": 3}]),
        ("files", []),
        ("files", "a"),
        ("files", {"a": "0"}),
        ("files", {"a": {"size": 1}}),
        ("files", {"a": {"sha256": "0"}}),
        ("files", {"a": {"sha256": 0, "size": 1}}),
        ("files", {"a": {"sha256": "0", "size": 1.0}}),
        ("files", {"a": {"sha256": "0", "size": True}}),
        ("files", {"a": {"sha256": "0", "size": "1"}}),
    ],
)
def test_wrong_types(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"kdcli\.json is damaged: its {name} is malformed"):
        Manifest.from_json(json.dumps({**GOOD, name: value}), Path("kdcli.json"))


SMALLER = {"widths": {"a": [2, 1]}, "removed": 1, "flops": [2, 1], "parameters": [2, 1], "metrics": {}}


def test_what_compress_writes_is_read() -> None:
    forms: Any = {
        "onnx": {"file": "model.onnx", "files": ["model.onnx"], "opset": 20},
        "torch": {"file": "model.pt2"},
    }
    text = json.dumps({**GOOD, "compression": SMALLER, "forms": forms})
    assert Manifest.from_json(text, Path("kdcli.json")).facts["compression"] == SMALLER


@pytest.mark.parametrize(
    ("facts", "where"),
    [
        ({"classes": 7}, "classes is malformed (classes: "),
        ({"classes": "ab"}, "classes is malformed (classes: "),
        ({"classes": ["a", 1]}, "classes is malformed (classes.1: "),
        *(({"data": value}, "data is malformed (data: ") for value in ("cars/", [], 7, True)),
        ({"data": {"splits": []}}, "data is malformed (data.splits: "),
        ({"data": {"splits": {"train": "x"}}}, "data is malformed (data.splits.train: "),
        ({"data": {"splits": {"train": {"hash": 7}}}}, "data is malformed (data.splits.train.hash: "),
        ({"compression": 7}, "compression is malformed (compression: "),
        ({"compression": {**SMALLER, "widths": {}}}, "compression is malformed (compression.widths: "),
        ({"compression": {**SMALLER, "flops": [0, 1]}}, "compression is malformed (compression.flops.0: "),
        (
            {"compression": {**SMALLER, "widths": {"a": [1]}}},
            "compression is malformed (compression.widths.a: ",
        ),
        ({"forms": ["onnx"]}, "forms is malformed (forms: "),
        ({"forms": {"onnx": {"file": 7}}}, "forms is malformed (forms.onnx.file: "),
        ({"images": "7"}, "images is malformed (images: "),
        ({"images": -1}, "images is malformed (images: "),
        ({"key": 7}, "key is malformed (key: "),
        ({"licences": ["MIT"]}, "licences is malformed (licences: "),
        ({"metrics": 0.9}, "metrics is malformed (metrics: "),
        ({"selection": {}}, "selection is malformed (selection: "),
        ({"targets": "cat"}, "targets is malformed (targets: "),
        ({"task": ["classification"]}, "task is malformed (task: "),
        ({"identity": {"config": 7}}, "identity is malformed (identity.config: "),
        ({"identity": {"config": {"data": "x"}}}, "identity is malformed (identity.config.data: "),
        ({"identity": {"config": {"shard": "a/b"}}}, "identity is malformed (identity.config.shard: "),
        ({"identity": {"config": {"shard": 1}}}, "identity is malformed (identity.config.shard: "),
        ({"files": {"a": {"sha256": "0", "size": -1}}}, "files is malformed (files.a.size: "),
        ({"files": {"a": {"sha256": "0", "size": 10**30}}}, "files is malformed (files.a.size: "),
    ],
)
def test_wrong_types_of_facts(facts: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError, match=rf"kdcli\.json is damaged: its {re.escape(where)}") as caught:
        Manifest.from_json(json.dumps({**GOOD, **facts}), Path("kdcli.json"))
    assert str(caught.value).endswith("). Make the artifact again.")


def test_facts_that_may_be_absent_or_unknown() -> None:
    facts = {"classes": None, "data": None, "more": [7], "seed": 0}
    assert Manifest.from_json(json.dumps({**GOOD, **facts}), Path("kdcli.json")).facts == facts
    facts = {"data": {"splits": {"train": {"samples": 3}}, "licence": None, "skipped": []}}
    assert Manifest.from_json(json.dumps({**GOOD, **facts}), Path("kdcli.json")).facts == facts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(CALM)
@given(changes=st.dictionaries(st.sampled_from([*GOOD, "more"]), JSON, max_size=4))
def test_any_json_is_a_manifest_or_refused(changes: dict[str, Any]) -> None:
    try:
        found = Manifest.from_json(json.dumps({**GOOD, **changes}), Path("kdcli.json"))
    except InputError:
        return
    assert len(found.hash) == 64
    assert differing(found.identity, found.identity) == []


def test_where_no_manifest_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "out.partial" / "last").mkdir(parents=True)
    (tmp_path / "odd" / manifests.NAME).mkdir(parents=True)
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / manifests.NAME).write_bytes(b"\xff\xfe")
    for name, message in (
        ("missing", "missing does not exist"),
        ("folder", r"folder is not a kdcli artifact: it has no kdcli\.json"),
        ("file", r"cannot read .*file/kdcli\.json: .*Not a directory"),
        ("odd", r"cannot read .*odd/kdcli\.json"),
        ("bytes", r"cannot read .*bytes/kdcli\.json"),
        ("a\x00b", "cannot read .*null byte"),
        ("out", "out is half-written"),
        ("out.partial", "out.partial is half-written"),
        ("out.partial/last", "out.partial/last is half-written"),
    ):
        with pytest.raises(InputError, match=message):
            manifests.read(tmp_path / name)
    monkeypatch.chdir(tmp_path / "folder")
    for name in (".", ""):
        with pytest.raises(InputError, match="is not a kdcli artifact"):
            manifests.read(name)


# -- names of files ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with links that lead outside, and a file outside."""
    home = tmp_path_factory.mktemp("cage")
    (home / "secret").write_text("secret")
    (home / "outer").mkdir()
    (home / "outer" / "secret").write_text("secret")
    root = home / "artifact"
    (root / "last").mkdir(parents=True)
    for name in ("a", "last/a", "..a", "a b", "größe"):
        (root / name).write_text("inside")
    (root / "link").symlink_to("../secret")
    (root / "folder").symlink_to("../outer")
    (root / "absolute").symlink_to(home / "secret")
    (root / "loop").symlink_to("loop")
    (root / "up").symlink_to("..")
    (root / "inside").symlink_to("last/a")
    return root


PART = st.sampled_from(
    [
        "..",
        ".",
        "",
        "a",
        "last",
        "link",
        "folder",
        "absolute",
        "loop",
        "up",
        "inside",
        "secret",
        "artifact",
        "outer",
    ]
) | st.text(max_size=5)
NAME = st.lists(PART, min_size=1, max_size=6).map("/".join) | st.text(max_size=30)


@given(name=NAME, prefix=st.sampled_from(["", "/", "//", "\\", "./", "../", "\x00", "C:\\", "~/"]))
@example(name="../secret", prefix="")
@example(name="link", prefix="")
@example(name="folder/secret", prefix="")
@example(name="up/secret", prefix="")
@example(name="up/artifact/../secret", prefix="")
@example(name="last/../../secret", prefix="")
@example(name="a\x00b", prefix="")
@example(name="..\\secret", prefix="")
@example(name="\ud800", prefix="")
@example(name="x" * 300, prefix="")
@example(name="loop", prefix="")
@settings(CALM, max_examples=600)
def test_no_name_opens_a_file_outside(cage: Path, name: str, prefix: str) -> None:
    name = prefix + name
    expected = {"sha256": manifests.file_hash(cage.parent / "secret"), "size": 6}  # right, were it opened
    manifest = Manifest("model", "distill", {}, files={name: expected})
    opened: list[str] = []
    real = builtins.open

    def recorded(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(os.path.realpath(file))
        return real(file, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", recorded)
        with pytest.raises(InputError):
            manifests.verify(cage, manifest)
    assert all(path.startswith(f"{cage.resolve()}{os.sep}") for path in opened)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "/etc/passwd",
        "last/../../secret",
        "a/..",
        "a\x00",
        "last\\a",
        "link",
        "absolute",
        "folder/secret",
        "up/secret",
        "up",
        "\ud800",
    ],
)
def test_names_that_are_refused(cage: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"names a file outside its artifact: .*\. Refused"):
        safe_member(cage, name)


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "/etc/passwd", "a/../../b", "a\x00b", "a\\b"])
def test_names_that_are_refused_when_a_manifest_is_read(name: str) -> None:
    text = json.dumps({**GOOD, "files": {"a": {"sha256": "0", "size": 1}, name: {"sha256": "0", "size": 1}}})
    with pytest.raises(InputError, match=r"kdcli\.json names a file outside its artifact: .*\. Refused"):
        Manifest.from_json(text, Path("kdcli.json"))


def test_names_that_are_not(cage: Path) -> None:
    for name in ("a", "last/a", "..a", "a b", "größe", "inside", "./a"):
        assert safe_member(cage, name).read_text() == "inside"
    assert safe_member(cage, "not/there/yet") == cage / "not/there/yet"


def test_an_artifact_behind_a_link_is_inside_itself(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "out")
    (tmp_path / "link").symlink_to(folder)
    manifests.verify(tmp_path / "link", manifests.read(tmp_path / "link"))


# -- verify --------------------------------------------------------------------------------------------------
def test_missing_unknown_and_unreadable(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "out")
    manifest = manifests.read(folder)
    with pytest.raises(
        InputError, match=r"has no head\.safetensors; its files are: config\.json, model\.safe"
    ):
        manifests.verify(folder, manifest, ["head.safetensors"])
    (folder / "config.json").unlink()
    manifests.verify(folder, manifest, ["model.safetensors"])
    with pytest.raises(InputError, match=r"config\.json is missing from its artifact"):
        manifests.verify(folder, manifest)
    (folder / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing from its artifact"):
        manifests.verify(folder, manifest)
    manifest.files = {"x" * 300: {"sha256": "0", "size": 1}}
    with pytest.raises(InputError, match=r"cannot read .*File name too long"):
        manifests.verify(folder, manifest)


def changed(folder: Path, data: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=message):
        manifests.verify(folder, manifests.read(folder))


def test_every_prefix_is_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "out")
    whole = (folder / "model.safetensors").read_bytes()
    for length in range(len(whole)):
        changed(
            folder, whole[:length], f"model.safetensors is damaged: {length} bytes instead of {len(whole)}"
        )
    changed(folder, whole + b"\0", "is damaged: .* bytes instead of")


@pytest.mark.parametrize("flips", [300, pytest.param(3000, marks=pytest.mark.long)])
def test_every_flip_is_refused(tmp_path: Path, flips: int) -> None:
    folder = artifact(tmp_path / "out")
    whole = (folder / "model.safetensors").read_bytes()
    source = random.Random(0)
    for _ in range(flips):
        damaged = bytearray(whole)
        damaged[source.randrange(len(whole))] ^= source.randrange(1, 256)
        changed(
            folder, bytes(damaged), r"model\.safetensors is damaged: its sha256 differs from the manifest"
        )


# -- digest and differing ------------------------------------------------------------------------------------
def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifact(tmp_path / "out")
    manifest, file, hashed = manifests.read(folder), folder / "config.json", []
    whole = manifests.file_hash

    def counting(path: Path) -> str:
        hashed.append(path)
        return whole(path)

    monkeypatch.setattr(manifests, "file_hash", counting)
    for _ in range(2):  # just written: it may be written again within the grain of the clock
        manifests.verify(folder, manifest, ["config.json"])
    assert hashed == [file, file]
    monkeypatch.setattr(manifests, "GRAIN_NS", 0)
    for _ in range(3):
        manifests.verify(folder, manifest, ["config.json"])
    assert hashed == [file] * 3
    old = file.stat()
    time.sleep(0.02)  # a tick of the clock
    file.write_text("[]")
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))  # the time of its content is put back
    with pytest.raises(InputError, match=r"config\.json is damaged: its sha256 differs from the manifest"):
        manifests.verify(folder, manifest, ["config.json"])


def test_digest_ignores_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_differing() -> None:
    old = {"a": 1, "b": {"c": [1], "d": {"e": "x"}}, "gone": 2, "nan": math.nan, "plain": 1}
    new = {"a": 1, "b": {"c": [2], "d": {"e": "y"}}, "new": None, "nan": math.nan, "plain": {"deep": 1}}
    assert differing(old, new) == [
        "b.c ([1] then, [2] now)",
        "b.d.e ('x' then, 'y' now)",
        "gone (2 then, None now)",
        "plain (1 then, {'deep': 1} now)",
    ]


@settings(CALM)
@given(value=st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_nothing_differs_from_itself(value: dict[str, Any]) -> None:
    assert differing(value, json.loads(json.dumps(value))) == []
