"""Where compactors can stand: the table of what each family gives, and why other layers are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from compacting import FAMILIES, body_of, network_of, sites_of
from torch import nn

from kdcli.errors import InputError
from kdcli.models.sites import sites


def found(name: str, which: Any = "cdd", **options: Any) -> dict[str, Any]:
    return {site.name: site for site in sites(body_of(name, **options), which).sites}


def test_a_bottleneck_has_one_site_for_cdd_and_two_for_resrep() -> None:
    options = {"channels": (8, 12, 16, 8)}
    cdd, resrep = found("resnet26", **options), found("resnet26", "resrep", **options)
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert list(cdd) == [f"{block}.act2" for block in blocks]  # CDD: behind conv2 and its norm only
    assert list(resrep) == [f"{block}.act{i}" for block in blocks for i in (1, 2)]
    site = resrep["layer2.1.act2"]
    assert (site.producer, site.norms, site.consumers, site.front) == (
        *("layer2.1.conv2", ("layer2.1.bn2",), ("layer2.1.conv3",), "layer2.1.bn2"),
    )
    assert (site.width, site.diagonal, site.last, site.kind, site.each) == (
        12,
        False,
        False,
        "convolution",
        1,
    )
    assert resrep["layer2.1.act1"].consumers == ("layer2.1.conv2",)


def test_the_number_of_compactors_of_resnet101_is_cdds() -> None:
    with torch.device("meta"):
        body = timm.create_model("resnet101")
    made = sites(body).sites
    assert len(made) == 33
    assert {site.width for site in made} == {64, 128, 256, 512}


def test_a_basic_block_is_the_same_for_both() -> None:
    body = timm.create_model("resnet10t")
    assert sites(body, "cdd") == sites(body, "resrep")
    assert [site.name for site in sites(body).sites] == [f"layer{i}.0.act1" for i in range(1, 5)]


def test_an_inverted_residual_has_a_diagonal_site_behind_its_depthwise_convolution() -> None:
    site = found("mobilenetv3_small_050")["blocks.3.0.bn2.act"]
    assert site.diagonal
    assert (site.producer, site.norms) == ("blocks.3.0.conv_pw", ("blocks.3.0.bn1", "blocks.3.0.bn2"))
    assert (site.through, site.front) == (("blocks.3.0.conv_dw",), "blocks.3.0.bn2")
    assert site.gates == (("blocks.3.0.se.conv_reduce", "blocks.3.0.se.conv_expand"),)
    assert site.consumers == ("blocks.3.0.conv_pwl",)
    assert set(site.ends) == {
        *((f"blocks.3.0.{name}", "out") for name in ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_expand")),
        *((f"blocks.3.0.{name}", "in") for name in ("conv_dw", "se.conv_reduce", "conv_pwl")),
    }


def test_a_fused_expansion_has_a_full_site_and_a_gate_behind_it() -> None:
    found_here = found("mobilenetv4_conv_small_035")
    kinds = {site.kind for site in found_here.values()}
    assert kinds == {"depthwise", "convolution"}  # with a depthwise convolution in the middle and without
    assert found("test_efficientnet")["blocks.2.0.bn1.act"].kind == "convolution"
    gated = found("regnety_002", group_size=1000)["s2.b1.conv2.bn.act"]  # one group
    assert (gated.producer, gated.norms) == ("s2.b1.conv2.conv", ("s2.b1.conv2.bn",))
    assert (gated.gates, gated.diagonal) == ((("s2.b1.se.fc1", "s2.b1.se.fc2"),), False)


def test_a_vit_has_heads_and_hidden_channels() -> None:
    made = found("test_vit")
    assert list(made) == [f"blocks.{i}.{part}" for i in range(6) for part in ("attn.norm", "mlp.act")]
    heads, hidden = made["blocks.1.attn.norm"], made["blocks.1.mlp.act"]
    assert (heads.kind, heads.width, heads.each, heads.diagonal) == ("heads", 2, 32, True)
    assert heads.ends == {("blocks.1.attn.qkv", "out"): 96, ("blocks.1.attn.proj", "in"): 32}
    assert (hidden.kind, hidden.width, hidden.last, hidden.diagonal) == ("mlp", 192, True, False)


def test_a_vit_has_channels_of_keys_and_values_too() -> None:
    network = network_of("vit channels")
    made = {site.name: site for site in sites_of("vit channels", network)}
    parts = ("attn.q_norm", "attn.norm", "attn.norm.act", "mlp.act")
    assert list(made) == [f"blocks.{i}.{part}" for i in range(6) for part in parts]
    keys, heads, values = (made[f"blocks.1.{part}"] for part in parts[:3])
    assert [(s.kind, s.width, s.each, s.times) for s in (keys, heads, values)] == [
        ("keys", 32, 1, 1), ("heads", 2, 32, 1), ("values", 32, 1, 2),
    ]  # fmt: skip
    qkv, proj = ("blocks.1.attn.qkv", "out"), ("blocks.1.attn.proj", "in")
    assert [s.ends for s in (keys, heads, values)] == [{qkv: 4}, {qkv: 96, proj: 32}, {qkv: 2, proj: 2}]
    alone = [site.name for site in sites_of("vit of one head", network_of("vit of one head"))]
    assert alone[:3] == ["blocks.0.attn.q_norm", "blocks.0.attn.norm", "blocks.0.mlp.act"]


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_and_activations_are_the_networks_own(family: str) -> None:
    network = network_of(family)
    for site in sites_of(family, network):
        if site.kind in ("keys", "values"):
            continue  # a part of what the layer gives
        layer: Any = network.body.get_submodule(site.producer)
        outputs = layer.out_features if site.last else layer.out_channels
        assert outputs == site.width * site.each * (3 if site.kind == "heads" else 1)
        activation = network.body.get_submodule(site.name)
        assert float(activation(torch.zeros(1))) == 0
        taker: Any = network.body.get_submodule(site.consumers[0])
        assert (taker.in_features if site.last else taker.in_channels) == site.width * site.each


class Bend(nn.Module):
    """An activation that mixes its channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean()


@pytest.mark.parametrize(
    ("name", "options", "path", "reason"),
    [
        ("resnext26ts", {}, "stem.conv1", "in a ConvNormAct, conv: no chain of layers that is known here"),
        ("resnet26", {"cardinality": 4}, "layer1.0.conv2", "layer1.0.conv2 has 4 groups"),
        ("regnetx_002", {}, "s1.b1.conv2.conv", "s1.b1.conv2.conv has 3 groups"),
        (
            "resnet26",
            {"aa_layer": timm.layers.BlurPool2d},
            "layer2.0.conv2",
            "aa is a BlurPool2d, which has weights of its own",
        ),
        (
            "resnet26",
            {"act_layer": "prelu"},
            "layer1.0.conv2",
            "act2 is a PReLU, which has weights of its own",
        ),
        ("resnet26", {"act_layer": "sigmoid"}, "layer1.0.conv2", "act2 is a Sigmoid, which gives 0.5 for 0"),
        ("convnextv2_atto", {}, "stages.0.blocks.0.mlp.fc1", "GlobalResponseNorm, which normalises over"),
        ("test_efficientnet_gn", {}, "blocks.3.0.conv_pw", "bn1 is a GroupNormAct, which normalises over"),
        ("mixnet_s", {}, "blocks.2.0.conv_pw", "conv_dw is a MixedConv2d"),
        (
            "test_vit",
            {"scale_mlp_norm": True},
            "blocks.0.mlp.fc1",
            "mlp.norm is a LayerNorm, which normalises",
        ),
        (
            "test_vit",
            {"scale_attn_norm": True},
            "blocks.0.attn",
            "attn.norm is a LayerNorm, which normalises",
        ),
        ("test_vit", {"num_heads": 1}, "blocks.0.attn", "it has one head"),
        ("test_efficientnet", {}, "blocks.0.0", "nothing in it stands between two plain layers"),
        (
            "mobilenetv3_small_050",
            {},
            "blocks.0.0",
            "depthwise convolution takes the channels that other blocks",
        ),
        ("test_convnext", {}, "stages.0.blocks.0", "in a ConvNeXtBlock, conv_dw: no chain of layers"),
        (
            "vit_tiny_patch16_224",
            {"mlp_layer": timm.layers.SwiGLU},
            "blocks.0.mlp",
            "in a SwiGLU, fc1_g, fc1_x",
        ),
    ],
)
def test_what_is_refused_and_why(name: str, options: dict[str, Any], path: str, reason: str) -> None:
    said = reasons(timm.create_model(name, **options))
    assert re.search(rf"{re.escape(path)}: [^;]*{re.escape(reason)}", said), said


def reasons(body: nn.Module) -> str:
    """What is said of the layers of a network that are refused, whether all are or some."""
    try:
        return "; ".join(f"{path}: {reason}" for path, reason in sites(body).refused.items())
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda block: setattr(block, "act2", Bend()),
            "act2 is a Bend, no function of each channel by itself",
        ),
        (
            lambda block: setattr(block, "act2", nn.GLU()),
            "act2 is a GLU, no function of each channel by itself",
        ),
        (lambda block: setattr(block, "act2", nn.Identity()), "no activation stands between"),
        (
            lambda block: setattr(block, "bn2", nn.BatchNorm2d(8, affine=False)),
            "a batch norm without weights",
        ),
        (
            lambda block: setattr(block, "bn2", nn.InstanceNorm2d(8)),
            "bn2 is a InstanceNorm2d, which normalises",
        ),
        (
            lambda block: setattr(block, "conv3", timm.layers.StdConv2d(8, 32, 1)),
            "conv3 is a StdConv2d, no plain convolution",
        ),
        (lambda block: setattr(block, "conv2", nn.Conv2d(8, 1, 3)), "it has one channel"),
        (
            lambda block: setattr(block, "act2", nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8))),
            "act2.1 is a Batch",
        ),
        (lambda block: setattr(block, "bn2", nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8))), "2 norms"),
    ],
)
def test_a_changed_bottleneck_is_refused_alone(change: Any, reason: str) -> None:
    body: Any = body_of("resnet26", channels=(8, 12, 16, 8))
    change(body.layer1[1])
    made = sites(body)
    assert len(made.sites) == 7
    assert list(made.refused) == ["layer1.1.conv2"]
    assert reason in made.refused["layer1.1.conv2"]


def test_a_network_without_any_site_is_refused_with_layers_and_reasons() -> None:
    with pytest.raises(
        InputError, match=r"^DenseNet has no layer whose channels a compactor can remove \(fea"
    ):
        sites(timm.create_model("densenet121"))
    message = r"s1\.b1\.conv2\.conv has 3 groups, which would have to lose channels alike; .*and \d+ more\)"
    with pytest.raises(InputError, match=message):
        sites(timm.create_model("regnetx_002"))
    with pytest.raises(InputError, match=r"\(none of its blocks is known here\)"):
        sites(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))


def test_another_which_is_refused() -> None:
    with pytest.raises(ValueError, match="which is cdd or resrep, not 'both'"):
        sites(nn.Identity(), "both")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "path", "reason"),
    [
        (
            {"qk_norm": True},
            "blocks.0.attn.q_norm",
            "q_norm is a LayerNorm, which normalises over its channels",
        ),
        ({"scale_attn_norm": True}, "blocks.0.attn.norm", "attn.norm is a LayerNorm, which normalises"),
        ({"num_heads": 64}, "blocks.0.attn.q_norm", "its keys have one channel"),
        ({"num_heads": 64}, "blocks.0.attn.norm", "its values have one channel"),
    ],
)
def test_channels_of_an_attention_that_stay(options: dict[str, Any], path: str, reason: str) -> None:
    found = sites(timm.create_model("test_vit", **options), "resrep")
    assert reason in found.refused[path]
    assert path not in [site.name for site in found.sites if site.kind != "heads"]
