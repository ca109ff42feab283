"""The network type: preparation, features as DINOv2 assembles them, heads."""

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.headed import classifier
from kdcli.models.heads import fresh
from kdcli.models.heads.linear import FEATURES, FeatureHead
from kdcli.models.timm import TimmModel

KINDS = ["test_vit", "test_vit2", "test_resnet", "test_efficientnet", "test_convnext", "test_mambaout"]


def network(name: str, size: int = 64, classes: int = 5, **options: object) -> TimmModel:
    return build(
        name, Wanted([f"c{i}" for i in range(classes)]), pretrained=False, size=size, **options
    ).eval()  # type: ignore[arg-type]


def views(size: int = 64, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def g(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Blocks(nn.Module):
    """A ViT whose last four blocks put out given tokens."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.layers = layers
        self.cls_token, self.blocks, self.feature_info = torch.zeros(1), nn.ModuleList(), [{}] * len(layers)

    def forward_intermediates(
        self, x: Tensor, indices: int, norm: bool, output_fmt: str, return_prefix_tokens: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        assert norm
        assert output_fmt == "NLC"
        assert return_prefix_tokens
        found = [(patches, token[:, None]) for patches, token in self.layers[-indices:]]
        return torch.cat([found[-1][1], found[-1][0]], dim=1), found

    def forward_features(self, x: Tensor) -> Tensor:
        return self.forward_intermediates(x, 1, True, "NLC", True)[0]

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        return x[:, 0]


# -- preparation ---------------------------------------------------------------------------------------------


def test_uint8_views_are_normalised_as_timm_does() -> None:
    from PIL import Image

    net = network("test_resnet")
    x = views()
    config = resolve_model_data_config(net.body) | {"input_size": (3, 64, 64), "crop_pct": 1.0}
    transform = create_transform(**config)
    expected = torch.stack([transform(Image.fromarray(v.permute(1, 2, 0).numpy())) for v in x])
    torch.testing.assert_close(net.prepare(x), expected, rtol=0, atol=2e-6)


def test_other_sizes_are_resampled_and_stay_in_range() -> None:
    net = network("test_resnet")
    prepared = net.prepare(views(size=97))
    assert prepared.shape == (2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (net.spec.mean, net.spec.std))
    assert (prepared * std + mean).min() >= -1e-6
    assert (prepared * std + mean).max() <= 1 + 1e-6
    flat = torch.full((1, 3, 200, 200), 51, dtype=torch.uint8)
    torch.testing.assert_close(net.prepare(flat), ((0.2 - mean) / std).expand(1, 3, 64, 64))


def test_float_pictures_are_taken_as_prepared() -> None:
    net = network("test_resnet")
    x = torch.randn(2, 3, 40, 40)
    assert net.prepare(x) is x
    assert torch.equal(net(net.prepare(views())), net(views()))


def test_odd_interpolation_of_timm_falls_back_to_bicubic() -> None:
    lanczos, bicubic = (
        TimmModel(nn.Identity(), InputSpec((32, 32), interpolation=kind), None, name="x")
        for kind in ("lanczos", "bicubic")
    )
    assert torch.equal(lanczos(views()), bicubic(views()))


# -- features ------------------------------------------------------------------------------------------------


def test_dinov2_feature_assembly_is_the_golden_one() -> None:
    layers = [(g(2, 16, 8, seed=i), g(2, 8, seed=100 + i)) for i in range(4)]
    net = TimmModel(Blocks(layers), InputSpec((8, 8)), None, name="blocks")
    parts = net.features(torch.zeros(2, 3, 8, 8), list(FEATURES))
    golden = {"pooled": (-1.8881884, 8), "pooled+avg": (-1.5686333, 16)}
    golden |= {"last4": (2.3577447, 32), "last4+avg": (2.6773005, 40)}
    for name, (total, width) in golden.items():
        feature = torch.cat([parts[p] for p in FEATURES[name]], dim=1)
        assert feature.shape == (2, width)
        assert float(feature.sum()) == pytest.approx(total, abs=2e-6), name
    # a sum sees no order: class tokens from the oldest block to the newest, then the mean patch token
    everything = torch.cat([parts[p] for p in FEATURES["last4+avg"]], dim=1)
    expected = torch.cat([*(token for _, token in layers), layers[-1][0].mean(dim=1)], dim=1)
    assert torch.equal(everything, expected)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny"])
def test_vit_features_are_class_tokens_after_the_final_norm(name: str) -> None:
    if name == "test_vit":
        net = network(name)
    else:  # as DINOv2: no classifier, layer scale, registers
        body = timm.create_model(
            "vit_small_patch14_reg4_dinov2.lvd142m",
            pretrained=False,
            img_size=56,
            embed_dim=48,
            num_heads=3,
            depth=5,
        )
        net = TimmModel(body, InputSpec((56, 56)), None, name=name).eval()
    body, prepared = net.body, net.prepare(views())
    tokens: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _m, _i, out: tokens.append(out)) for block in body.blocks]
    with torch.no_grad():
        body.forward_features(prepared)
        for handle in handles:
            handle.remove()
        normed = [body.norm(t) for t in tokens[-4:]]
        parts = net.features(views(), net.feature_names())
    expected = torch.cat(
        [*(t[:, 0] for t in normed), normed[-1][:, body.num_prefix_tokens :].mean(dim=1)], dim=1
    )
    found = torch.cat([parts[p] for p in FEATURES["last4+avg"]], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_pooled_is_what_the_classifier_takes(name: str) -> None:
    net = network(name)
    with torch.no_grad():
        parts = net.features(views(), net.feature_names())
        linear = classifier(net.body)
        torch.testing.assert_close(linear(parts["pooled"]), net(views()), rtol=1e-5, atol=1e-6)
        alone = net.features(views(), ["pooled"])["pooled"]
    torch.testing.assert_close(alone, parts["pooled"], rtol=1e-5, atol=1e-6)


def test_feature_names_follow_the_architecture() -> None:
    assert network("test_vit").feature_names() == ["pooled", "pooled+avg", "last4", "last4+avg"]
    assert network("test_vit2").feature_names() == ["pooled", "last4"]  # no class token
    assert network("test_resnet").feature_names() == ["pooled", "last4"]


def test_networks_of_fewer_than_four_blocks_repeat_their_first() -> None:
    body = timm.create_model("test_vit", pretrained=False, img_size=32, depth=2).eval()
    net = TimmModel(body, InputSpec((32, 32)), None, name="short")
    with torch.no_grad():
        parts = net.features(views(32), ["last4"])
    assert torch.equal(parts["back2"], parts["back4"])
    assert not torch.equal(parts["back2"], parts["pooled"])


# -- heads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_attached_head_equals_a_linear_layer_on_the_features(name: str) -> None:
    for feature in network(name).feature_names():
        net = network(name)
        with torch.no_grad():
            parts = net.features(views(), [feature])
        x = torch.cat([parts[p] for p in FEATURES[feature]], dim=1)
        weight, bias = g(3, x.shape[1], seed=1), g(3, seed=2)
        net.attach_linear(feature, weight, bias, ["a", "b", "c"])
        with torch.no_grad():
            torch.testing.assert_close(net(views()), x @ weight.T + bias, rtol=1e-5, atol=1e-5)
            assert torch.equal(net.call([views()], ["logits", "tokens"])["logits"], net(views()))
        assert net.classes == ["a", "b", "c"]
        assert net.layout == ("timm" if feature == "pooled" else "kdcli")


def test_a_pooled_head_lands_in_timms_own_classifier() -> None:
    net = network("test_convnext")
    weight, bias = g(3, 64, seed=1), g(3, seed=2)
    net.attach_linear("pooled", weight, bias, ["a", "b", "c"])
    assert net.head is None
    assert net.body.num_classes == 3
    assert torch.equal(net.body.state_dict()["head.fc.weight"], weight)
    assert torch.equal(net.body(net.prepare(views())), net(views()))


def test_a_head_over_blocks_runs_the_body_once() -> None:
    net = network("test_vit")
    net.attach_linear("last4", g(3, 256, seed=1), g(3, seed=2), ["a", "b", "c"])
    passes = []
    handle = net.body.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    found = net.call([views()], ["logits", "tokens", "pooled", "LayerNorm.in"])
    handle.remove()
    assert len(passes) == 1
    assert found["pooled"].shape == (2, 256)  # what the head takes
    torch.testing.assert_close(found["tokens"], net.body.forward_features(net.prepare(views())))


@pytest.mark.parametrize("feature", ["pooled", "last4"])
def test_reorder_permutes_logits(feature: str) -> None:
    net = network("test_vit", classes=4)
    if feature != "pooled":
        net.attach_linear(feature, g(4, 256, seed=1), g(4, seed=2), ["a", "b", "c", "d"])
    with torch.no_grad():
        before = net(views())
        net.reorder([2, 0, 3, 1], ["w", "x", "y", "z"])
        torch.testing.assert_close(net(views()), before[:, [2, 0, 3, 1]])
        assert net.classes == ["w", "x", "y", "z"]
        net.reorder(None, ["p", "q", "r", "s"])
        torch.testing.assert_close(net(views()), before[:, [2, 0, 3, 1]])
    assert net.classes == ["p", "q", "r", "s"]


def test_a_head_without_linear_layer_is_refused() -> None:
    body = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    with pytest.raises(InputError, match="ResNet ends in Identity, not in a linear classifier"):
        classifier(body)


def test_feature_head_concatenates_in_order() -> None:
    head = FeatureHead("last4", 4, 1)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 10, 100, 1000]]))
        head.linear.bias.zero_()
    parts = {name: torch.tensor([[float(i)]]) for i, name in enumerate(("pooled", "back2", "back3", "back4"))}
    assert head(parts).item() == 3 + 20 + 100


def test_rows_of_a_linear_classifier() -> None:
    net = network("test_vit", 32)
    assert net.class_rows() is net.body.get_parameter("head.weight")
    net.attach_linear("last4", torch.ones(5, 256), torch.zeros(5), list("abcde"))
    rows = net.class_rows()
    assert rows is not None
    assert torch.equal(rows, torch.ones(5, 256))
    net.attach(fresh("grid", net.body, 2), ["a", "b"], "segmentation")
    assert net.class_rows() is None
    assert build("deit_tiny_distilled_patch16_224", pretrained=False).class_rows() is None
