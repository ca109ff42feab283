"""The decode heads of transformers: their maps, their place in a network, as files, as teachers."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.store import open_output
from kdcli.errors import InputError
from kdcli.models.build import build
from kdcli.models.ensemble import Ensemble
from kdcli.models.heads import fresh
from kdcli.models.heads.decoders import DECODERS, DecodeHead, pyramid, pyramid_widths
from kdcli.models.timm import TimmModel

CLASSES = ["sky", "sea", "ship"]
NAMES = ("test_resnet", "test_vit")


def network(kind: str, name: str = "test_resnet", size: int = 64, width: int | None = 16) -> TimmModel:
    made = build(name, pretrained=False, size=size)
    if width is None:
        return build(
            name, classes=CLASSES, task="segmentation", head="grid4", kind=kind, pretrained=False, size=size
        ).eval()
    torch.manual_seed(0)
    head = DecodeHead(kind, pyramid_widths(made.body), len(CLASSES), width)
    made.attach(head, CLASSES, "segmentation")
    return made.eval()


def views(size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


def saved(made: TimmModel, folder: Path) -> Path:
    with open_output(folder, {"seed": 0}) as output:
        manifest = Manifest("model", "distill", {"seed": 0})
        manifest.facts = {"classes": made.classes}
        output.commit(manifest, made.save(output.partial))
    return folder


def by_hand(kind: str, made: TimmModel, maps: list[torch.Tensor]) -> torch.Tensor:
    """Logits of transformers' own module with the network's weights."""
    from transformers import SegformerConfig, UperNetConfig
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
    from transformers.models.upernet.modeling_upernet import UperNetHead

    widths = [m.shape[1] for m in maps]
    head: Any
    if kind == "segformer":
        head = SegformerDecodeHead(SegformerConfig(hidden_sizes=widths, num_labels=3))
    else:
        head = UperNetHead(UperNetConfig(num_labels=3), widths)
    weights: Any = made.head
    head.load_state_dict(weights.decoder.state_dict())
    return head.eval()(maps)


@pytest.mark.parametrize("kind", DECODERS)
def test_over_stages_it_is_the_head_of_transformers(kind: str) -> None:
    made = network(kind, width=None)
    x = made.prepare(views())
    with torch.no_grad():
        body: Any = made.body
        first = body.act1(body.bn1(body.conv1(x)))
        maps = [body.layer1(body.maxpool(first))]
        for layer in (body.layer2, body.layer3, body.layer4):
            maps.append(layer(maps[-1]))
        assert [64 // m.shape[-1] for m in maps] == [4, 8, 16, 32]
        logits = made(views())
        assert torch.equal(logits, by_hand(kind, made, maps))
    assert logits.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", DECODERS)
def test_over_a_vit_it_is_the_head_of_transformers(kind: str) -> None:
    made = network(kind, "test_vit", width=None)
    x = made.prepare(views())
    with torch.no_grad():
        body: Any = made.body
        tokens, maps = body.norm_pre(body.patch_drop(body._pos_embed(body.patch_embed(x)))), []
        for number, block in enumerate(body.blocks, start=1):
            tokens = block(tokens)
            if number in (2, 3, 5, 6):  # of six, rounded up
                patches = body.norm(tokens)[:, body.num_prefix_tokens :]
                maps.append(patches.transpose(1, 2).reshape(2, 64, 4, 4))
        maps[0] = nn.Upsample(scale_factor=4, mode="bilinear")(maps[0])
        maps[1] = nn.Upsample(scale_factor=2, mode="bilinear")(maps[1])
        maps[3] = nn.MaxPool2d(2)(maps[3])
        assert [64 // m.shape[-1] for m in maps] == [4, 8, 16, 32]
        for found, expected in zip(pyramid(body, x), maps, strict=True):
            torch.testing.assert_close(found, expected)
        logits = made(views())
        torch.testing.assert_close(logits, by_hand(kind, made, maps))
    assert logits.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("test_resnet", 70, 18),
        ("test_resnet", 33, 9),
        ("test_vit", 48, 12),  # three patches: the coarsest map has two
        ("test_vit", 16, 4),  # one patch
        ("test_efficientnet", 64, 16),
        ("test_convnext", 64, 16),
        ("swin_tiny_patch4_window7_224", 224, 56),
    ],
)
def test_logits_have_the_size_that_was_foretold(name: str, size: int, grid: int) -> None:
    made = network("upernet", name, size)
    with torch.no_grad():
        logits = made(views(size))
    assert logits.shape == (2, 3, grid, grid)
    assert made.logit_count == logits[0].numel()
    assert (made.task, made.layout) == ("segmentation", "kdcli")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", DECODERS)
def test_it_is_trained_whole(kind: str, name: str) -> None:
    made = network(kind, name).train()
    made(views()).square().mean().backward()
    assert all(p.grad is not None for p in made.parameters())
    # a bias that a batch norm takes away again has no gradient but rounding
    head = [(n, p.grad) for n, p in made.head.named_parameters() if not n.endswith("proj.bias")]  # type: ignore[union-attr]
    assert not [name for name, grad in head if not grad.any()]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", DECODERS)
def test_its_weights_begin_as_transformers_has_them(kind: str) -> None:
    head = network(kind, width=None).head
    assert isinstance(head, DecodeHead)
    assert head.linear.in_channels == DECODERS[kind]
    assert not head.linear.bias.any()
    weight = max(head.parameters(), key=lambda p: p.numel())
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    again = network(kind, width=None).head
    assert again is not None
    assert torch.equal(again.linear.weight, head.linear.weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", DECODERS)
def test_as_files_it_gives_the_same_logits(kind: str, name: str, tmp_path: Path) -> None:
    made = network(kind, name)
    for module in made.head.modules():  # type: ignore[union-attr]
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
    folder = saved(made, tmp_path / "m")
    again = build(str(folder)).eval()
    assert (again.task, again.classes) == ("segmentation", CLASSES)
    with torch.no_grad():
        assert torch.equal(again(views()), made(views()))
    assert set(load_file(folder / "head.safetensors")) == set(made.head.state_dict())  # type: ignore[union-attr]


def test_a_student_keeps_its_head_unless_told_otherwise(tmp_path: Path) -> None:
    folder = str(saved(network("segformer"), tmp_path / "m"))

    def student(classes: list[str], kind: str | None) -> Any:
        return build(folder, classes=classes, task="segmentation", head="grid4", kind=kind).head

    kept = load_file(tmp_path / "m" / "head.safetensors")["decoder.classifier.weight"]
    for kind in (None, "segformer"):
        assert torch.equal(student(CLASSES, kind).linear.weight, kept)
    assert student(CLASSES, "linear").feature == "grid4"
    assert student(CLASSES, "upernet").kind == "upernet"
    assert student(["a", "b"], None).feature == "grid4"
    other = student(["a", "b"], "segformer")
    assert (other.kind, other.linear.out_channels) == ("segformer", 2)
    linear = str(
        saved(
            build("test_vit", classes=CLASSES, task="segmentation", head="grid", pretrained=False),
            tmp_path / "l",
        )
    )
    assert (
        build(linear, classes=CLASSES, task="segmentation", head="grid4", kind="linear").head.feature
        == "grid"
    )  # type: ignore[union-attr]
    assert (
        build(linear, classes=CLASSES, task="segmentation", head="grid4", kind="segformer").head.kind
        == "segformer"
    )  # type: ignore[union-attr]
    assert build(folder, classes=CLASSES).task == "classification"


@pytest.mark.parametrize(
    "change", [{"kind": "segformer"}, {"kind": "fcn"}, {"kind": ["upernet"]}, {"feature": "grid"}]
)
def test_a_head_that_does_not_fit_its_name_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    import json

    made = network("upernet")
    with open_output(tmp_path / "bad", {}) as output:
        manifest = Manifest("model", "distill", {})
        manifest.facts = {"classes": CLASSES}
        names = made.save(output.partial)
        config = json.loads((output.partial / "config.json").read_text())
        assert config["kdcli_head"] == {"kind": "upernet"}
        config["kdcli_head"] = change
        (output.partial / "config.json").write_text(json.dumps(config))
        output.commit(manifest, names)
    with pytest.raises(InputError, match="its head is none that this kdcli knows"):
        build(str(tmp_path / "bad"))


def test_a_network_without_four_maps_is_refused() -> None:
    made = build("test_resnet", pretrained=False, size=64)
    made.body.feature_info = made.body.feature_info[:3]  # type: ignore[assignment, index]
    with pytest.raises(InputError, match="ResNet has 3 stages, and such a head reads four maps"):
        fresh("upernet", made.body, len(CLASSES))


@pytest.mark.parametrize("kind", DECODERS)
def test_classes_taps_and_shared_statistics(kind: str) -> None:
    made = network(kind)
    with torch.no_grad():
        before = made(views())
        found = made.call([views()], ("logits", "pooled"))
        torch.testing.assert_close(made.linear(found["pooled"]), before)
        made.reorder([2, 0, 1], ["ship", "sky", "sea"])
        torch.testing.assert_close(made(views()), before[:, [2, 0, 1]])
        with pytest.raises(InputError, match="ends in several maps: no 'tokens' and no 'grid'"):
            made.call([views()], ("grid",))
    names = list(made.state_dict())
    made.synchronise()
    norms = [m for m in made.head.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # type: ignore[union-attr]
    assert norms
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert list(made.state_dict()) == names


def test_teachers_of_other_heads_have_a_mean() -> None:
    members = [
        network("segformer"),
        build("test_vit", classes=CLASSES, task="segmentation", head="grid", size=64, pretrained=False),
    ]
    made = Ensemble([m.eval() for m in members], "logits").eval()
    with torch.no_grad():
        fine, coarse = (m(views()) for m in members)
        grown = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(made(views()), (fine + grown) / 2)
    assert made.logit_count == 3 * 16 * 16


def test_transformers_is_imported_where_such_a_head_is_built() -> None:
    from kdcli.models.heads import decoders

    tree = ast.parse(Path(str(decoders.__file__)).read_text())
    top = [node for node in tree.body if isinstance(node, ast.ImportFrom | ast.Import)]
    assert not any("transformers" in ast.unparse(node) for node in top)
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node not in top]
    inside = [node for node in inside if not str(node.module).startswith("kdcli")]  # for types only
    assert {str(node.module).split(".")[0] for node in inside} == {"transformers"}
