"""The segmentation head: grids of ViTs and CNNs, its place in a network, as files and in an ensemble."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.store import open_output
from kdcli.errors import InputError
from kdcli.models.build import build
from kdcli.models.ensemble import Ensemble
from kdcli.models.heads.dense import GRIDS, DenseHead, feature_maps, grid_size, grid_width
from kdcli.models.timm import TimmModel

CLASSES = ["sky", "sea", "ship"]


def network(name: str = "test_vit", size: int = 64, seed: int = 0, head: str = "grid4") -> TimmModel:
    wanted = {"task": "segmentation", "head": head}
    return build(name, classes=CLASSES, **wanted, pretrained=False, size=size, seed=seed).eval()


def views(size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("feature", GRIDS)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_vit", 64),
        ("test_vit2", 64),
        ("test_resnet", 64),
        ("test_resnet", 70),
        ("test_efficientnet", 64),
        ("test_mambaout", 64),
        ("test_convnext", 64),
        ("tf_efficientnet_lite0", 96),
        ("mobilenetv3_small_050", 64),
        ("swin_tiny_patch4_window7_224", 224),
    ],
)
def test_logits_have_the_grid_that_was_foretold(name: str, size: int, feature: str) -> None:
    made = network(name, size, head=feature)
    with torch.no_grad():
        logits = made(views(size))
    assert logits.shape == (2, 3, *grid_size(made.body, feature, (size, size)))
    assert made.logit_count == logits[0].numel()
    assert made.head.linear.weight.shape == (3, grid_width(made.body, feature), 1, 1)
    assert (made.task, made.layout) == ("segmentation", "kdcli")


def test_the_grid_of_a_vit_is_its_patch_tokens_after_the_norm() -> None:
    made = network()
    x = made.prepare(views())
    with torch.no_grad():
        tokens = made.body.forward_features(x)[:, made.body.num_prefix_tokens :]
        grid = feature_maps(made.body, x, "grid")[-1]
        torch.testing.assert_close(grid.flatten(2).transpose(1, 2), tokens)
        four = feature_maps(made.body, x, "grid4")
    assert len(four) == 4
    torch.testing.assert_close(four[-1], grid)


def test_the_stages_of_a_cnn_meet_at_stride_eight() -> None:
    made = network("test_resnet")
    x = made.prepare(views())
    with torch.no_grad():
        maps = feature_maps(made.body, x, "grid4")
        grid = made.assembled(maps)
        assert [64 // m.shape[-1] for m in maps] == [4, 8, 16, 32]
        assert grid.shape == (2, sum(m.shape[1] for m in maps), 8, 8)
        first = maps[0].shape[1]
        torch.testing.assert_close(grid[:, first : first + maps[1].shape[1]], maps[1])
        torch.testing.assert_close(
            grid[:, :first], F.interpolate(maps[0], (8, 8), mode="bilinear", align_corners=False)
        )
        expected = made.head.linear(made.head.norm(grid))
        torch.testing.assert_close(made(views()), expected)


def test_it_is_trained_whole() -> None:
    made = network("test_resnet").train()
    made(views()).square().mean().backward()
    assert all(p.grad is not None for p in made.parameters())
    dropped = DenseHead("grid", 8, 2, dropout=0.5).train()
    x = torch.randn(2, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    assert not torch.equal(dropped(x), dropped(x))


def saved(made: TimmModel, folder: Path) -> Path:
    with open_output(folder, {"seed": 0}) as output:
        manifest = Manifest("model", "probe", {"seed": 0})
        manifest.facts = {"classes": made.classes}
        output.commit(manifest, made.save(output.partial))
    return folder


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_as_files_it_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    made = network(name)
    made.head.norm.running_mean.normal_()
    again = build(str(saved(made, tmp_path / "m"))).eval()
    assert (again.task, again.classes) == ("segmentation", CLASSES)
    with torch.no_grad():
        assert torch.equal(again(views()), made(views()))
    same = build(str(tmp_path / "m"), classes=CLASSES, task="segmentation", head="grid")
    assert same.head.feature == "grid4"  # it keeps its head
    other = build(str(tmp_path / "m"), classes=["a", "b"], task="segmentation", head="grid")
    assert (other.head.feature, other.head.linear.out_channels) == ("grid", 2)
    classifier = build(str(tmp_path / "m"), classes=CLASSES).eval()
    assert classifier.task == "classification"
    with torch.no_grad():
        assert classifier(views()).shape == (2, 3)


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = saved(network(), tmp_path / "m")
    tensors = load_file(folder / "head.safetensors")
    tensors["norm.weight"] = tensors["norm.weight"][:-1]
    made = network()
    (tmp_path / "n").mkdir()
    with open_output(tmp_path / "bad", {}) as output:
        manifest = Manifest("model", "probe", {})
        manifest.facts = {"classes": CLASSES}
        names = made.save(output.partial)
        save_file(tensors, output.partial / "head.safetensors")
        output.commit(manifest, names)
    with pytest.raises(InputError, match="its head is none that this kdcli knows"):
        build(str(tmp_path / "bad"))


def test_classes_are_reordered() -> None:
    made = network()
    with torch.no_grad():
        before = made(views())
        made.reorder([2, 0, 1], ["ship", "sky", "sea"])
        torch.testing.assert_close(made(views()), before[:, [2, 0, 1]])


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_teachers_of_other_grids_have_a_mean(mean: str) -> None:
    members = [network(), network("test_resnet", 96)]
    made = Ensemble(members, mean).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        first, second = (m(views()) for m in members)
        assert (first.shape[-1], second.shape[-1]) == (4, 12)
        grown = F.interpolate(first, (12, 12), mode="bilinear", align_corners=False)
        found = made(views())
        if mean == "logits":
            expected = (grown + second) / 2
        else:
            expected = ((grown.softmax(1) + second.softmax(1)) / 2).log()
    torch.testing.assert_close(found, expected)
    assert (made.task, made.logit_count) == ("segmentation", 3 * 12 * 12)


def test_several_processes_share_their_statistics() -> None:
    made = network("test_resnet")
    names = list(made.state_dict())
    made.synchronise()
    assert isinstance(made.head.norm, nn.SyncBatchNorm)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in made.body.modules())
    assert list(made.state_dict()) == names


def test_taps_of_a_network_with_this_head() -> None:
    made = network()
    with torch.no_grad():
        found = made.call([views()], ("logits", "grid", "pooled"))
    torch.testing.assert_close(found["logits"], made.head.linear(found["pooled"]))
    assert found["grid"].shape == found["pooled"].shape
