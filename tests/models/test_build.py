"""The one door: names, weights, sizes, seeds, and the artifact that plain timm loads."""

import importlib.util
import json
import socket
import threading
import time
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.store import open_output
from kdcli.errors import InputError, UsageError
from kdcli.models.build import ALIASES, build, input_spec
from kdcli.models.timm import TimmModel

CLASSES = ["bag", "shoe", "shirt"]
VIT, RESNET = "test_vit", "test_resnet"


def tiny(
    name: str = VIT, size: int | None = 64, seed: int = 0, classes: list[str] | None = None
) -> TimmModel:
    return build(name, pretrained=False, size=size, seed=seed, classes=classes or CLASSES).eval()


def views(size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


def write(network: TimmModel, path: Path, member: str = "") -> Path:
    """Commit a network as a model artifact, as the stages do."""
    with open_output(path, {"made": "by a test"}) as output:
        assert output is not None
        names = network.save(output.partial)
        if member:
            (output.partial / member).mkdir()
            names += [f"{member}/{n}" for n in network.save(output.partial / member)]
        facts = {"classes": network.classes, "layout": network.layout, "task": "classification"}
        output.commit(Manifest("model", "distill", {"made": "by a test"}, facts=facts), names)
    return path


def logits(network: TimmModel, size: int | None = None) -> Tensor:
    with torch.no_grad():
        return network.eval()(views(size or network.spec.size[0]))


def same_weights(a: TimmModel, b: TimmModel) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


# -- names ---------------------------------------------------------------------------------------------------


def test_every_alias_is_a_pretrained_timm_model_with_its_tag() -> None:
    known = set(timm.list_pretrained())
    assert {name: target for name, (target, _) in ALIASES.items() if target not in known} == {}
    for target, options in ALIASES.values():
        assert options.get("img_size", 224) % int(target.partition("patch")[2][:2]) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_vitx", r"no model named 'dinov2_vitx'. Did you mean 'dinov2_vit\w+'\?"),
        ("resnet81", r"no model named 'resnet81'. Did you mean 'resnet\d+'\?.*hf-hub:OWNER/NAME"),
        ("resnet18.a1_in1", r"no weights named 'resnet18.a1_in1'. Did you mean 'resnet18.a1_in1k'\?"),
        ("runs/nowhere", r"runs/nowhere does not exist \(a hub model is named hf-hub:runs/nowhere\)"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, pretrained=False)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a kdcli artifact"):
        build(str(tmp_path))


# -- without a hub -------------------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The hub client as a user has it: online, with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def refuse(name: str) -> float:
    start = time.monotonic()
    with pytest.raises(InputError) as found:
        build(name)
    message = str(found.value)
    assert message.startswith(f"no weights for {name} (the hub cannot be reached")
    for way in ("--weights FILE", "HF_HUB_OFFLINE=1", "local-dir:PATH", "--from-scratch", "hf auth login"):
        assert way in message
    return time.monotonic() - start


@pytest.mark.parametrize("name", ["test_resnet", "dinov2_vits", "hf-hub:timm/resnet18.a1_in1k"])
def test_a_refused_connection_ends_at_once_with_the_ways_out(name: str, online: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    online.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refuse(name) < 10
    assert constants.HF_HUB_OFFLINE is False  # the client is left as it was


def test_a_silent_hub_costs_one_timeout(online: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    held.append(server.accept()[0])
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        online.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
        assert refuse("test_resnet") < 8
        assert len(held) == 1  # asked once, not once per file and retry
        for connection in held:
            connection.close()


# -- local directories and artifacts -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tiny(), tmp_path_factory.mktemp("models") / "vit", member="last")


def test_an_artifact_comes_back_bit_for_bit(artifact: Path) -> None:
    network = build(str(artifact))
    assert same_weights(network, tiny())
    assert network.classes == CLASSES
    assert network.trained == "artifact"
    assert network.spec == tiny().spec
    assert network.source
    assert build(str(artifact)).source == network.source
    assert torch.equal(logits(network), logits(tiny()))


def test_a_member_of_an_artifact_is_a_model_too(artifact: Path) -> None:
    last = build(str(artifact / "last"))
    assert same_weights(last, tiny())
    assert last.classes == CLASSES
    assert last.source == build(str(artifact)).source  # the same weights and configuration


def test_local_dir_reads_an_artifact_as_plain_timm_does(artifact: Path) -> None:
    network = build(f"local-dir:{artifact}")
    assert torch.equal(logits(network), logits(tiny()))
    assert network.classes == CLASSES  # from label_names
    assert network.trained == "pretrained"


def test_other_classes_get_a_fresh_head_and_the_same_get_the_trained_one(artifact: Path) -> None:
    kept = build(str(artifact), classes=CLASSES)
    assert torch.equal(kept.tensor("head.weight"), tiny().tensor("head.weight"))
    fresh = build(str(artifact), classes=["a", "b"], seed=3)
    assert fresh.classes == ["a", "b"]
    assert logits(fresh).shape == (2, 2)
    assert torch.equal(fresh.tensor("blocks.5.attn.qkv.weight"), kept.tensor("blocks.5.attn.qkv.weight"))
    renamed = build(str(artifact), classes=[*CLASSES[1:], CLASSES[0]])
    assert not torch.equal(renamed.tensor("head.weight"), kept.tensor("head.weight"))


def test_an_artifact_from_scratch_keeps_the_architecture_only(artifact: Path) -> None:
    network = build(str(artifact), pretrained=False, seed=5)
    assert network.trained == "random"
    assert network.source == ""
    assert network.spec == tiny().spec
    assert not same_weights(network, tiny())


def test_weights_beside_an_artifact_are_a_usage_error(artifact: Path) -> None:
    with pytest.raises(UsageError, match="is an artifact and has its weights"):
        build(str(artifact), weights="x.pth")


def test_a_half_written_artifact_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    for name in ("run", "run.partial"):
        with pytest.raises(InputError, match="is half-written: the run that writes it has not finished"):
            build(str(tmp_path / name))


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = write(tiny(RESNET), tmp_path / "resnet")
    data = bytearray((path / artifacts.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (path / artifacts.WEIGHTS).write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        build(str(path))


@pytest.mark.parametrize("feature", ["pooled+avg", "last4", "last4+avg"])
def test_a_feature_head_round_trips(feature: str, tmp_path: Path) -> None:
    network = tiny()
    generator = torch.Generator().manual_seed(1)
    width = {"pooled+avg": 128, "last4": 256, "last4+avg": 320}[feature]
    weight, bias = torch.randn(3, width, generator=generator), torch.randn(3, generator=generator)
    network.attach_linear(feature, weight, bias, CLASSES)
    path = write(network, tmp_path / "probed")
    assert (path / artifacts.HEAD).is_file()
    found = build(str(path))
    assert found.head is not None
    assert found.head.feature == feature
    assert found.classes == CLASSES
    assert same_weights(found, network)
    assert torch.equal(logits(found), logits(network))
    student = build(str(path), classes=["a", "b"])  # its own head goes, timm's is fresh
    assert student.head is None
    assert logits(student).shape == (2, 2)


def test_an_unknown_head_is_refused(tmp_path: Path) -> None:
    network = tiny()
    network.attach_linear("last4", torch.zeros(3, 256), torch.zeros(3), CLASSES)
    assert network.head is not None
    network.head.feature = "last9"
    path = write(network, tmp_path / "odd")
    with pytest.raises(InputError, match="its head is none that this kdcli knows"):
        build(str(path))


# -- what save writes ----------------------------------------------------------------------------------------


def lite0(size: int) -> TimmModel:
    """A convolutional network of a real family, at another size than its own."""
    return build("tf_efficientnet_lite0", pretrained=False, size=size, classes=CLASSES)


def reset() -> TimmModel:
    body = timm.create_model("test_resnet", pretrained=False, num_classes=7)
    network = TimmModel(body, input_spec(body), [str(i) for i in range(7)], name="x")
    network.attach_linear("pooled", torch.randn(4, 96), torch.randn(4), list("abcd"))
    return network


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: tiny(VIT, 96), 96),
        (lambda: tiny(RESNET, 80), 80),
        (lambda: tiny("test_efficientnet", None), 160),
        (lambda: tiny("test_convnext", 64), 64),
        (lambda: lite0(96), 96),
        (reset, 160),
    ],
    ids=["vit-resized", "resnet", "efficientnet", "convnext", "lite0-96px", "classes-reset"],
)
def test_plain_timm_loads_what_save_writes(make: object, size: int, tmp_path: Path) -> None:
    network: TimmModel = make()  # type: ignore[operator]
    assert network.spec.size == (size, size)
    assert network.layout == "timm"
    write(network, tmp_path / "out")
    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = views(size)
    with torch.no_grad():
        found = plain(network.prepare(x))
    torch.testing.assert_close(found, logits(network, size), rtol=0, atol=1e-5)
    config = resolve_model_data_config(plain)
    spec = network.spec
    assert config["input_size"] == (3, *spec.size)
    assert (tuple(config["mean"]), tuple(config["std"])) == (spec.mean, spec.std)
    assert (config["interpolation"], config["crop_pct"], config["crop_mode"]) == (
        spec.interpolation,
        spec.crop,
        spec.crop_mode,
    )
    assert input_spec(plain) == spec
    again = build(str(tmp_path / "out"))
    assert again.spec == spec
    assert torch.equal(logits(again, size), logits(network, size))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == network.classes


def test_save_writes_given_tensors_and_nothing_pickled(tmp_path: Path) -> None:
    network, other = tiny(), tiny(seed=9)
    (tmp_path / "best").mkdir()
    names = network.save(tmp_path / "best", dict(other.state_dict()))
    assert sorted(names) == sorted(p.name for p in (tmp_path / "best").iterdir())
    assert sorted(names) == ["config.json", "model.safetensors"]
    plain = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(plain(other.prepare(views())), logits(other))


# -- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 96])
def test_position_embeddings_are_resampled_as_timm_does(size: int, artifact: Path) -> None:
    found = build(str(artifact), size=size)
    plain = timm.create_model(f"local-dir:{artifact}", pretrained=True, img_size=size)
    assert found.spec.size == (size, size)
    assert torch.equal(found.tensor("pos_embed"), plain.pos_embed)
    assert found.tensor("pos_embed").shape[1] == 1 + (size // 16) ** 2
    assert logits(found).shape == (2, 3)
    assert found.source != build(str(artifact)).source
    local = build(f"local-dir:{artifact}", size=size)
    assert torch.equal(local.tensor("pos_embed"), plain.pos_embed)


def test_convolutional_networks_take_any_size(tmp_path: Path) -> None:
    path = write(tiny(RESNET, 64), tmp_path / "resnet")
    for name in (str(path), f"local-dir:{path}"):
        found = build(name, size=40)
        assert found.spec.size == (40, 40)
        assert torch.equal(found.tensor("conv1.0.weight"), tiny(RESNET).tensor("conv1.0.weight"))
        assert logits(found, 64).shape == (2, 3)


# -- the user's own weights ----------------------------------------------------------------------------------


def body_tensors(name: str = VIT, seed: int = 4, **options: object) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(timm.create_model(name, pretrained=False, **options).state_dict())


@pytest.mark.parametrize("kind", ["safetensors", "pth", "state_dict", "ema", "module"])
def test_weights_of_every_wrapping(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = body_tensors(RESNET)
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(tensors, file)
    else:
        prefixed = {f"module._orig_mod.{k}" if kind == "module" else k: v for k, v in tensors.items()}
        wrapped = {"state_dict": {"state_dict": prefixed, "epoch": 3}, "ema": {"model_ema": prefixed}}
        torch.save(wrapped.get(kind, prefixed), file)
    network = build(RESNET, weights=str(file))
    assert network.trained == "pretrained"
    assert all(torch.equal(v, tensors[k]) for k, v in network.body.state_dict().items())
    assert network.classes is not None
    assert len(network.classes) == 1000
    assert network.source == build(RESNET, weights=str(file)).source
    assert network.source != build(RESNET, weights=str(file), size=64).source


def test_a_checkpoint_brings_its_own_number_of_classes(tmp_path: Path) -> None:
    torch.save(body_tensors(VIT, num_classes=7), tmp_path / "w.pth")
    network = build(VIT, weights=str(tmp_path / "w.pth"))
    assert network.classes == [str(i) for i in range(7)]
    assert logits(network).shape == (2, 7)


def test_an_encoder_without_classifier_has_no_classes(tmp_path: Path) -> None:
    tensors = body_tensors(VIT)
    torch.save({k: v for k, v in tensors.items() if not k.startswith("head.")}, tmp_path / "w.pth")
    network = build(VIT, weights=str(tmp_path / "w.pth"))
    assert network.classes is None  # 1000 random logits are no trained classifier
    assert torch.equal(network.tensor("blocks.3.mlp.fc1.weight"), tensors["blocks.3.mlp.fc1.weight"])
    assert build(VIT, weights=str(tmp_path / "w.pth"), classes=CLASSES).classes == CLASSES


def test_official_dinov2_names_and_positions_are_converted(tmp_path: Path) -> None:
    """facebookresearch's key names: mask_token, register_tokens, one position for the class token."""
    options = {"embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 0}
    name = "vit_small_patch14_reg4_dinov2"
    tensors = body_tensors(name, img_size=70, **options)
    generator = torch.Generator().manual_seed(2)
    class_position = torch.randn(1, 1, 48, generator=generator)
    official = {k: v for k, v in tensors.items() if k not in ("reg_token", "pos_embed")}
    official |= {"mask_token": torch.zeros(1, 48), "register_tokens": tensors["reg_token"]}
    official["pos_embed"] = torch.cat([class_position, tensors["pos_embed"]], dim=1)
    from kdcli.models.build import _load_strict

    body = timm.create_model(name, pretrained=False, img_size=70, **options)
    torch.save({"teacher": official}, tmp_path / "dinov2.pth")
    from kdcli.models.legacy import read_weights

    assert _load_strict(body, read_weights(tmp_path / "dinov2.pth"), "dinov2.pth")
    assert torch.equal(body.reg_token, tensors["reg_token"])
    torch.testing.assert_close(body.cls_token, tensors["cls_token"] + class_position)
    assert torch.equal(body.pos_embed, tensors["pos_embed"])
    assert torch.equal(body.blocks[1].ls1.gamma, tensors["blocks.1.ls1.gamma"])
    smaller = timm.create_model(name, pretrained=False, img_size=28, **options)
    _load_strict(smaller, read_weights(tmp_path / "dinov2.pth"), "dinov2.pth")
    assert smaller.pos_embed.shape == (1, 4, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.0.norm1.weight"), "it misses blocks.0.norm1.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "it has the unknown extra"),
        (lambda t: t.update({"norm.weight": torch.ones(5)}), "it has another shape of norm.weight"),
        (lambda t: t["norm.weight"].fill_(float("nan")), "w.pth holds NaN or Inf in norm.weight"),
        (lambda t: t["head.bias"].fill_(float("inf")), "w.pth holds NaN or Inf in head.bias"),
    ],
    ids=["missing", "unknown", "shape", "nan", "inf"],
)
def test_weights_that_do_not_fit_are_refused(change: object, message: str, tmp_path: Path) -> None:
    tensors = body_tensors(VIT)
    change(tensors)  # type: ignore[operator]
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        build(VIT, weights=str(tmp_path / "w.pth"))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(body_tensors(RESNET), tmp_path / "w.pth")
    with pytest.raises(InputError, match="does not fit VisionTransformer"):
        build(VIT, weights=str(tmp_path / "w.pth"))


# -- seeds ---------------------------------------------------------------------------------------------------


def test_the_seed_alone_decides_random_weights() -> None:
    torch.manual_seed(1)
    a = tiny(seed=5)
    torch.manual_seed(2)
    assert same_weights(a, tiny(seed=5))
    assert not same_weights(a, tiny(seed=6))


def test_building_leaves_the_global_generator_alone(artifact: Path) -> None:
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    tiny(seed=3)
    build(str(artifact), classes=["a", "b"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_drop_path_reaches_the_blocks(artifact: Path) -> None:
    network = build(str(artifact), drop_path=0.2)
    assert network.body.get_submodule("blocks.5").drop_path1.drop_prob == pytest.approx(0.2)
    assert torch.equal(logits(network), logits(tiny()))


def test_the_reader_of_pth_is_the_only_one() -> None:
    root = Path(str(importlib.util.find_spec("kdcli").origin)).parent  # type: ignore[union-attr]
    readers = [p.name for p in root.rglob("*.py") if "torch.load(" in p.read_text()]
    assert readers == ["legacy.py"]
