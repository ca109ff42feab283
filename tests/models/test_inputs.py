"""What a network wants to see, and configurations that no network can be built of."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from toolbox import commit_model
from torch import Tensor

from kdcli.errors import InputError, UsageError
from kdcli.models.build import Wanted, build
from kdcli.models.checks import input_spec
from kdcli.models.timm import TimmModel

CLASSES = ["bag", "shoe"]


def views(size: int, count: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw)


def local(path: Path, name: str = "test_resnet", change: dict[str, Any] | None = None, **options: Any) -> str:
    """A directory as timm writes it, some fields of its configuration changed; a dot leads into an object."""
    torch.manual_seed(0)
    save_for_hf(timm.create_model(name, **{"num_classes": 4, **options}), path, safe_serialization=True)
    file = path / "config.json"
    config = json.loads(file.read_text())
    for dotted, value in (change or {}).items():
        outer, dot, key = dotted.partition(".")
        (config[outer] if dot else config)[key or outer] = value
    file.write_text(json.dumps(config))
    return f"local-dir:{path}"


# -- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "why", "next_ones"),
    [
        ("test_vit", 50, "should be divisible by patch size", "Take 48 or 64."),
        ("test_vit", 8, "should be divisible by patch size", "Take 16."),
        ("maxvit_nano_rw_256", 50, "must match the size of tensor", "Take 32 or 64."),
        ("xcit_nano_12_p16_224", 50, "`patch_size` should divide image dimensions evenly", "Take 48 or 64."),
        ("nest_tiny", 50, "`patch_size` must divide `img_size` evenly", ""),
        ("levit_128", 50, "must match the size of tensor", ""),
        ("efficientformer_l1", 50, "must match the size of tensor", "Leave out --image-size"),
    ],
)
def test_sizes_that_a_patch_or_window_does_not_divide(name: str, size: int, why: str, next_ones: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} does not take pictures of {size} pixels \(") as found:
        build(name, pretrained=False, size=size)
    assert why in str(found.value)
    assert next_ones in str(found.value)
    for word in str(found.value).rpartition("Take ")[2].rstrip(".").split(" or "):
        if word.isdigit():
            assert build(name, pretrained=False, size=int(word)).spec.size == (int(word), int(word))


def test_a_size_is_refused_of_artifacts_and_directories_too(tmp_path: Path) -> None:
    network = build("test_vit", Wanted(CLASSES), pretrained=False, size=32)
    path = str(commit_model(network, tmp_path / "a"))
    for name in (path, local(tmp_path / "b", "test_vit", img_size=32)):
        with pytest.raises(InputError, match=r"does not take pictures of 50 pixels .* Take 48 or 64\."):
            build(name, size=50)


def test_pixels_that_patches_leave_unseen_are_said() -> None:
    network = build("vit_tiny_patch16_224", pretrained=False, size=100)
    (note,) = network.notes
    assert note == "vit_tiny_patch16_224: patches of 16 pixels leave 4 of 100 unseen; 96 or 112 would fit"
    assert build("vit_tiny_patch16_224", pretrained=False, size=96).notes == ()
    assert build("test_resnet", pretrained=False, size=50).notes == ()


def test_a_size_beyond_all_measure_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--image-size 100000: at most 8192"):
        build("test_vit", pretrained=False, size=100_000)


def test_a_network_that_another_size_breaks_keeps_its_own() -> None:
    """MViT's tables are read by position: shapes alone do not tell."""
    with pytest.raises(
        InputError, match=r"mvitv2_tiny does not take pictures of 50 pixels \(index 11 is out of"
    ):
        build("mvitv2_tiny", pretrained=False, size=50)


# -- channels ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> str:
    return local(tmp_path_factory.mktemp("grey") / "m", "test_resnet", in_chans=1)


@torch.no_grad()
def test_a_network_of_one_channel_sees_luminance(grey: str, tmp_path: Path) -> None:
    network = build(grey, Wanted(CLASSES), size=32).eval()
    assert (network.spec.channels, network.spec.mean, network.spec.std) == (1, (0.5,), (0.5,))
    x = views(32)
    pillow = [Image.fromarray(v.permute(1, 2, 0).numpy()).convert("L") for v in x]
    expected = torch.stack([torch.tensor(list(p.get_flattened_data())).view(1, 32, 32) for p in pillow]) / 255
    torch.testing.assert_close(network.prepare(x), (expected - 0.5) / 0.5, rtol=0, atol=0.6 * 2 / 255)
    prepared = (x / 255 - 0.5) / 0.5  # of three channels, as generators make them
    torch.testing.assert_close(network(prepared), network(x))
    assert network.restore(prepared).shape == x.shape
    assert torch.equal(network.call([x], ["logits"])["logits"], network(x))
    path = commit_model(network, tmp_path / "a")
    again = build(str(path)).eval()
    assert again.spec == network.spec
    assert torch.equal(again(x), network(x))
    plain = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    torch.testing.assert_close(plain(network.prepare(x)), network(x))


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_refused_by_name(channels: int, tmp_path: Path) -> None:
    name = local(tmp_path / "m", in_chans=channels)
    with pytest.raises(
        InputError, match=rf"{name}: a network of {channels} input channels; kdcli's pictures"
    ):
        build(name)


# -- configurations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_args.features_only": True}, r"model_args\.features_only makes a network of maps, without"),
        ({"model_args.out_indices": [1]}, r"model_args\.out_indices makes a network of maps"),
        ({"model_args": "depth=3"}, "model_args is a str, not an object"),
        ({"model_args": [1]}, "model_args is a list, not an object"),
        ({"pretrained_cfg": 3}, "pretrained_cfg is a int, not an object"),
        ({"architecture": 3}, "names no architecture of timm"),
        ({"architecture": None}, "names no architecture of timm"),
        ({"model_args.depth": 10**7}, r"model_args\.depth is 1e\+07, beyond what a network has"),
        ({"model_args.layers": [10**9]}, r"model_args\.layers is 1e\+09, beyond"),
        ({"num_classes": 10**9}, r"num_classes is 1e\+09, beyond"),
        ({"pretrained_cfg.input_size": [3, 10**9, 10**9]}, r"pretrained_cfg\.input_size is 1e\+09"),
        ({"pretrained_cfg.mean": [float("nan")] * 3}, r"pretrained_cfg\.mean is nan, beyond"),
        (
            {"pretrained_cfg.std": [0, 0.5, 0.5]},
            r"the deviations \(0\.0, 0\.5, 0\.5\) are none of 3 channels, above 0",
        ),
        ({"pretrained_cfg.std": [-1.0] * 3}, "the deviations .* above 0"),
        ({"pretrained_cfg.std": [0.5, 1e-39, 0.5]}, "the deviations .* above 0 in float32"),
        ({"pretrained_cfg.std": [1e-300] * 3}, "the deviations .* above 0 in float32"),
        ({"pretrained_cfg.mean": [0.5, 0.5]}, r"the mean \(0\.5, 0\.5\) is none of 3 channels"),
        ({"pretrained_cfg.mean": "abc"}, "describes no input"),
        ({"pretrained_cfg.crop_pct": "much"}, "describes no input"),
        ({"pretrained_cfg.crop_pct": -1}, "an input of .* pixels, cut to -1 of its side"),
        ({"pretrained_cfg.input_size": [3, 0, 0]}, "an input of 0x0 pixels"),
        ({"pretrained_cfg.input_size": [3, 64, 90_000]}, "an input of 64x90000 pixels"),
        ({"pretrained_cfg.interpolation": 7}, "timm knows no interpolation '7'"),
        ({"pretrained_cfg.crop_mode": "middle"}, "or no crop 'middle'"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    name = local(tmp_path / "m", change=change)
    with pytest.raises(InputError, match=rf"{tmp_path / 'm'}.*{message}"):
        build(name)


@pytest.mark.parametrize(
    "change",
    [
        {"model_args.layers": [900_000, 1, 1, 1]},
        {"model_args.channels": [900_000, 900_000, 900_000, 900_000]},
        {"model_args.num_classes": 900_000},
    ],
)
def test_what_is_beyond_its_file_is_refused_before_it_takes_memory(change: Any, tmp_path: Path) -> None:
    name = local(tmp_path / "m", "resnet18", change=change)
    before, start = psutil.Process().memory_info().rss, time.monotonic()
    with pytest.raises(InputError, match=r"asks for more than [\d,]+ parameters|cannot|no weights for"):
        build(name)
    assert psutil.Process().memory_info().rss - before < 1.5e9
    assert time.monotonic() - start < 60


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    nested: Any = 1
    for _ in range(200):
        nested = [nested]
    with pytest.raises(InputError, match="is nested more than 32 deep"):
        build(local(tmp_path / "m", change={"extra": nested}))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_configuration_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    name = local(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is not"):
        build(name)


def test_an_artifact_is_checked_like_a_directory(tmp_path: Path) -> None:
    def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
        return lambda config: config["model_args"].update(fields)

    network = build("test_vit", Wanted(CLASSES), pretrained=False, size=32)
    for number, (fields, message) in enumerate(
        [
            ({"features_only": True}, "makes a network of maps"),
            ({"depth": 10**7}, "beyond what a network has"),
        ]
    ):
        path = commit_model(network, tmp_path / str(number), change(**fields))
        with pytest.raises(InputError, match=message):
            build(str(path))


@pytest.mark.parametrize("classes", [["a"], ["a", "b", "c"], 7, "ab", [1, 2], {"a": 1}])
def test_an_artifact_of_other_names_than_logits_is_refused(classes: Any, tmp_path: Path) -> None:
    names = isinstance(classes, list) and isinstance(classes[0], str)
    message = "manifest has no 2 class names for its 2 logits" if names else "its classes is malformed"
    network = build("test_vit", Wanted(CLASSES), pretrained=False, size=32)
    network.classes = classes
    path = commit_model(network, tmp_path / "m", labels=False)
    with pytest.raises(InputError, match=message):
        build(str(path))


def test_input_of_a_timm_model() -> None:
    body = timm.create_model("test_vit", img_size=64)
    assert input_spec(body).size == (64, 64)
    assert isinstance(TimmModel(body, input_spec(body), None, name="x").spec.mean, tuple)
