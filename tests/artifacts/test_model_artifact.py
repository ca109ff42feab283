"""Model artifacts: what is read is what was committed, and everything else is refused by name."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from toolbox import Payload

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts import model as models
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.model import InputSpec, read_tensors
from kdcli.artifacts.store import open_output, write_bytes, write_tensors
from kdcli.errors import InputError

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3)}
LAST = {"w": torch.ones(2, 3)}


def commit(
    out: Path,
    kind: str = "model",
    config: bytes = b'{"architecture": "toy"}',
    without: str = "",
    head: bool = True,
) -> Path:
    with open_output(out, {"kind": kind}) as output:
        (output.partial / "last").mkdir()
        keep = ["last"]
        for folder, tensors in ((output.partial, WEIGHTS), (output.partial / "last", LAST)):
            write_tensors(folder / "model.safetensors", tensors)
            write_bytes(folder / "config.json", config)
        keep += [name for name in ("model.safetensors", "config.json") if name != without]
        if head:
            write_tensors(output.partial / "head.safetensors", {"h": torch.zeros(4)})
            keep.append("head.safetensors")
        output.commit(Manifest(kind, "distill", {"kind": kind}, facts={"classes": ["a", "b"]}), keep)
    return out


def test_read(tmp_path: Path) -> None:
    found = models.read(commit(tmp_path / "out"))
    assert found.path == tmp_path / "out"
    assert found.config == {"architecture": "toy"}
    assert found.classes == ["a", "b"]
    assert torch.equal(found.tensors()["w"], WEIGHTS["w"])
    assert torch.equal(found.tensors(models.HEAD)["h"], torch.zeros(4))
    assert models.parent("teacher", found) == {
        "role": "teacher",
        "path": str(tmp_path / "out"),
        "hash": found.hash,
    }


def test_read_the_last_one(tmp_path: Path) -> None:
    out = commit(tmp_path / "out")
    best, last = models.read(out), models.read(str(out / "last"))
    assert last.path == out / "last"
    assert models.find(out / "last") == out
    assert torch.equal(last.tensors()["w"], LAST["w"])
    assert last.manifest.facts == best.manifest.facts
    assert last.hash != best.hash


def test_the_hash_is_of_weights_and_configuration(tmp_path: Path) -> None:
    one, same = models.read(commit(tmp_path / "a")), models.read(commit(tmp_path / "b"))
    assert one.hash == same.hash
    assert models.read(commit(tmp_path / "c", config=b'{"architecture": "other"}')).hash != one.hash
    assert models.read(commit(tmp_path / "d", head=False)).hash != one.hash


def test_find(tmp_path: Path) -> None:
    out = commit(tmp_path / "out")
    assert models.find(out) == out
    assert models.find(tmp_path) is None
    assert models.find("resnet18") is None
    assert models.find("hf-hub:timm/resnet18") is None
    assert models.find(out / "config.json") is None


def test_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="out is a report artifact, not a model"):
        models.read(commit(tmp_path / "out", kind="report"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_manifest_that_lacks_a_file(tmp_path: Path, name: str) -> None:
    out = commit(tmp_path / "out", without=name)
    with pytest.raises(InputError, match=r"its manifest names no model\.safetensors or config\.json"):
        models.read(out)


@pytest.mark.parametrize("member", ["", "last/"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_missing_and_changed_files(tmp_path: Path, name: str, member: str) -> None:
    out = commit(tmp_path / "out")
    file = out / member / name
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole + b" ", whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{file} is damaged"):
            models.read(out / member)
    file.unlink()
    if file == out / "last" / "config.json":  # then it is no member directory any more
        with pytest.raises(InputError, match="last is not a kdcli artifact"):
            models.read(out / member)
    else:
        with pytest.raises(InputError, match=f"{file} is missing"):
            models.read(out / member)


def test_a_damaged_head(tmp_path: Path) -> None:
    out = commit(tmp_path / "out")
    (out / "head.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"head\.safetensors is damaged: 0 bytes"):
        models.read(out)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
    ],
    ids=["open", "empty", "bytes", "deep", "list", "null"],
)
def test_a_configuration_that_is_none(tmp_path: Path, config: bytes, message: str) -> None:
    out = commit(tmp_path / "out", config=config)
    with pytest.raises(InputError, match=rf"out/config\.json {message}"):
        models.read(out)


def test_a_configuration_of_absurd_size_is_not_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = commit(tmp_path / "out")
    with open(out / "config.json", "wb") as stream:
        stream.truncate(1 << 40)
    manifest = manifests.read(out)
    manifest.files["config.json"]["size"] = 1 << 40
    (out / "kdcli.json").write_text(manifest.to_json())
    monkeypatch.setattr(manifests, "file_hash", lambda path: pytest.fail("hashed"))
    with pytest.raises(
        InputError, match=r"config\.json: it has 1,099,511,627,776 bytes, more than 33,554,432"
    ):
        models.read(out)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "last/model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "zeros"])
def test_a_file_that_would_be_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    out = commit(tmp_path / "out")
    (out / name).unlink()
    os.mkfifo(out / name) if kind == "pipe" else (out / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is missing from its artifact" if kind == "pipe" else "outside"):
        models.read(out / "last" if "/" in name else out)


def test_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_output(out, {}) as output:
        write_tensors(output.partial / "model.safetensors", WEIGHTS)
        write_bytes(output.partial / "config.json", b"{}")
    for place in (out, tmp_path / "out.partial"):
        with pytest.raises(InputError, match=f"{place} is half-written.* same command again to continue"):
            models.read(place)
    commit(tmp_path / "cut")
    (tmp_path / "cut").rename(tmp_path / "cut.partial")  # cut off just before its rename
    for place in ("cut", "cut.partial", "cut.partial/last"):
        with pytest.raises(InputError, match="is half-written"):
            models.read(tmp_path / place)


def test_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="folder is not a kdcli artifact"):
        models.read(tmp_path / "folder")
    with pytest.raises(InputError, match="nowhere does not exist"):
        models.read(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is not a kdcli artifact"):
        models.read(".")


def test_a_member_that_leads_outside(tmp_path: Path) -> None:
    out, other = commit(tmp_path / "out"), commit(tmp_path / "other")
    (out / "last" / "model.safetensors").unlink()
    (out / "last" / "model.safetensors").symlink_to(other / "last" / "model.safetensors")
    with pytest.raises(InputError, match=r"names a file outside its artifact: 'last/model\.safetensors'"):
        models.read(out / "last")


# -- tensors -------------------------------------------------------------------------------------------------
def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.safetensors").write_bytes(pickle.dumps(Payload(Path("executed"))))
    torch.save({"w": Payload(Path("executed"))}, tmp_path / "torch.safetensors")
    for name in ("plain", "torch"):
        with pytest.raises(InputError, match=rf"{name}\.safetensors is not a readable safetensors file"):
            read_tensors(tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "executed").exists()


def test_what_is_no_file_of_tensors(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("empty", "missing", ".", "pipe", "zeros"):
        with pytest.raises(InputError, match="is not a readable safetensors file"):
            read_tensors(tmp_path / name)


def test_truncated_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", WEIGHTS)
    whole = (tmp_path / "a").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "b").write_bytes(whole[:length])
        with pytest.raises(InputError, match="b is not a readable safetensors file"):
            read_tensors(tmp_path / "b")


def test_flips_without_a_hash_raise_nothing_else(tmp_path: Path) -> None:
    """Some load silently, which is why artifacts have hashes; none may end in anything but an InputError."""
    write_tensors(tmp_path / "a", WEIGHTS)
    whole, source, loaded = (tmp_path / "a").read_bytes(), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[source.randrange(len(whole))] ^= 1 << source.randrange(8)
        (tmp_path / "b").write_bytes(damaged)
        try:
            read_tensors(tmp_path / "b")
            loaded += 1
        except InputError:
            continue
    assert 0 < loaded < 300


def test_input_spec_is_plain() -> None:
    spec = InputSpec((32, 48), crop=0.875)
    assert InputSpec(**{**spec.to_json(), "size": (32, 48)}).to_json() == spec.to_json()
    assert manifests.digest(spec.to_json()) != manifests.digest(InputSpec((32, 48)).to_json())
