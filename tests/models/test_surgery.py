"""Structure that no architecture has: written down, replayed, loaded with strict keys, in a new process."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from toolbox import commit_model
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.models import surgery
from kdcli.models.attention import NarrowAttention
from kdcli.models.build import Wanted, build
from kdcli.models.checks import input_spec
from kdcli.models.timm import TimmModel

CLASSES = ["bag", "shoe", "shirt"]
Modules = dict[str, dict[str, int]]


def chain(*paths: str, width: int, into: str = "") -> Modules:
    """Widths where a convolution gives fewer channels to what follows it, the last of which takes them."""
    found: Modules = {path: {"out": width} for path in paths}
    return {**found, **({into: {"in": width}} if into else {})}


RESNET: Modules = {
    **chain("layer1.0.conv1", "layer1.0.bn1", width=20, into="layer1.0.conv2"),
    **chain("layer4.0.conv1", "layer4.0.bn1", width=50),
    # the last stage, to which its shortcut is added, and the classifier behind it
    "layer4.0.conv2": {"in": 50, "out": 70},
    **chain("layer4.0.bn2", width=70, into="fc"),
    **chain("layer4.0.downsample.1", "layer4.0.downsample.2", width=70),
}
# expansion, depthwise convolution, squeeze-and-excitation and projection of a block
MOBILENET: Modules = {
    **chain("blocks.1.0.conv_pw", "blocks.1.0.bn1", width=30),
    "blocks.1.0.conv_dw": {"in": 30, "out": 30},
    "blocks.1.0.bn2": {"out": 30},
    "blocks.1.0.conv_pwl": {"in": 30},
    "blocks.3.0.se.conv_reduce": {"in": 70, "out": 10},
    "blocks.3.0.se.conv_expand": {"in": 10, "out": 70},
    **chain("blocks.3.0.conv_pw", "blocks.3.0.bn1", width=70),
    "blocks.3.0.conv_dw": {"in": 70, "out": 70},
    "blocks.3.0.bn2": {"out": 70},
    "blocks.3.0.conv_pwl": {"in": 70},
    **chain("conv_head", width=100, into="classifier"),
}
# a block's hidden width and one of its two heads, then 48 of 64 dimensions of all tokens
VIT: Modules = {
    "blocks.0.attn": {"heads": 1},
    "blocks.0.mlp.fc1": {"in": 48, "out": 100},
    "blocks.0.mlp.fc2": {"in": 100, "out": 48},
    "blocks.0.attn.qkv": {"in": 48, "out": 96},
    "blocks.0.attn.proj": {"in": 32, "out": 48},
    **{
        f"blocks.{i}.{part}": widths
        for i in range(1, 6)
        for part, widths in {
            "attn.qkv": {"in": 48},
            "attn.proj": {"out": 48},
            "mlp.fc1": {"in": 48},
            "mlp.fc2": {"out": 48},
        }.items()
    },
    **{f"blocks.{i}.norm{j}": {"out": 48} for i in range(6) for j in (1, 2)},
    **{f"blocks.{i}.ls{j}.gamma": {"out": 48} for i in range(6) for j in (1, 2)},
    **{name: {"out": 48} for name in ("cls_token", "pos_embed", "norm", "patch_embed.proj")},
    "head": {"in": 48},
}
BODIES = {
    "test_resnet": (RESNET, {}),
    "mobilenetv3_small_050": (MOBILENET, {}),
    "test_vit": (VIT, {"img_size": 64, "init_values": 0.5}),
}


def by_hand(body: Any, modules: Modules) -> Any:
    """The body with the first channels of these modules, their weights sliced, without our own code."""
    body = copy.deepcopy(body)
    for path, widths in modules.items():
        parent, _, name = path.rpartition(".")
        part = body.get_submodule(parent) if name in body.get_submodule(parent)._parameters else None
        if part is not None:
            setattr(part, name, nn.Parameter(part.get_parameter(name)[..., : widths["out"]]))
            continue
        module = body.get_submodule(path)
        if "heads" in widths:
            module.num_heads, module.attn_dim = widths["heads"], widths["heads"] * module.head_dim
            continue
        inputs, outputs = widths.get("in"), widths.get("out")
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1
            module.weight = nn.Parameter(module.weight[:outputs, : None if depthwise else inputs])
            module.out_channels, width = module.weight.shape[:2]
            module.in_channels, module.groups = (inputs, inputs) if depthwise else (width, 1)
        elif isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight[:outputs, :inputs])
            module.out_features, module.in_features = module.weight.shape
        else:
            module.weight = nn.Parameter(module.weight[:outputs])
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias[:outputs])
        if isinstance(module, nn.BatchNorm2d):
            module.num_features = outputs
            module.running_mean, module.running_var = (
                module.running_mean[:outputs],
                module.running_var[:outputs],
            )
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = (outputs,)
    return body


def narrowed(name: str, modules: Modules | None = None) -> TimmModel:
    own, options = BODIES.get(name, ({}, {}))
    modules = own if modules is None else modules
    torch.manual_seed(3)
    body = timm.create_model(name, num_classes=len(CLASSES), **options)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    body = by_hand(body, modules)
    spec = input_spec(body)
    operation = {"op": "remove channels", "modules": modules}
    return TimmModel(body, spec, CLASSES, name=name, operations=[operation]).eval()


def views(network: Any) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (2, 3, *network.spec.size), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize(
    "name", [name if name == "test_vit" else pytest.param(name, marks=pytest.mark.long) for name in BODIES]
)
@torch.no_grad()
def test_a_narrowed_network_comes_back_in_a_new_process(name: str, tmp_path: Path) -> None:
    made = narrowed(name)
    full = timm.create_model(name, num_classes=3, **BODIES[name][1])
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in full.parameters())
    assert made.layout == "kdcli"
    path, x = commit_model(made, tmp_path / "out"), views(made)
    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "from kdcli.models.build import build\n"
        "network = build(sys.argv[1]).eval()\n"
        "with torch.no_grad(): save_file({'logits': network(load_file(sys.argv[2])['x'])}, sys.argv[3])\n"
    )
    save_file({"x": x}, tmp_path / "x.safetensors")
    answer = tmp_path / "logits.safetensors"
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path / "x.safetensors"), str(answer)]
    found = subprocess.run(arguments, text=True, capture_output=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert torch.equal(load_file(answer)["logits"], made(x))
    again = build(str(path))
    assert list(again.state_dict()) == list(made.state_dict())
    assert all(torch.equal(t, made.state_dict()[n]) for n, t in again.state_dict().items())
    assert (again.layout, again.operations, again.classes) == ("kdcli", made.operations, CLASSES)
    with pytest.raises(RuntimeError, match="size mismatch"):  # and says so: plain timm has no such network
        timm.create_model(f"local-dir:{path}", pretrained=True)
    with pytest.raises(InputError, match="has structure that timm has not: leave out local-dir:"):
        build(f"local-dir:{path}")


@pytest.mark.parametrize("name", BODIES)
@torch.no_grad()
def test_a_narrowed_network_gets_any_head_and_its_maps_have_their_widths(name: str, tmp_path: Path) -> None:
    path = str(commit_model(narrowed(name), tmp_path / "out"))
    student = build(path, Wanted(["a", "b"]), seed=1)
    x = views(student)
    assert student(x).shape == (2, 2)
    assert student.layout == "kdcli"
    again = build(str(commit_model(student, tmp_path / "student"))).eval()
    assert torch.equal(again(x), student.eval()(x))
    dense = build(path, Wanted(["a", "b"], "segmentation", "grid4"), seed=1)
    assert dense(x).shape[:2] == (2, 2)
    widths = [m.shape[1] for m in dense.maps(x, "grid4")]
    assert widths == [info["num_chs"] for info in dense.body.feature_info[-4:]]
    linear = build(path)
    width = sum(part.shape[1] for part in linear.features(x, ["last4"]).values())
    linear.attach_linear("last4", torch.ones(2, width), torch.zeros(2), ["a", "b"])
    twice = commit_model(linear, tmp_path / "linear")
    assert [o["op"] for o in json.loads((twice / "config.json").read_text())["kdcli_operations"]] == [
        "remove channels",
        "replace head",
    ]
    assert torch.equal(build(str(twice)).eval()(x), linear.eval()(x))


@torch.no_grad()
def test_a_decode_head_stands_on_narrowed_maps(tmp_path: Path) -> None:
    path = str(commit_model(narrowed("test_resnet"), tmp_path / "out"))
    made = build(path, Wanted(["a", "b"], "segmentation", "grid4", "segformer")).eval()
    again = build(str(commit_model(made, tmp_path / "decoded"))).eval()
    x = views(made)
    assert torch.equal(again(x), made(x))


def test_grouped_convolutions_and_group_norms() -> None:
    body = nn.Sequential(nn.Conv2d(8, 16, 3, groups=4), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 1, groups=2))
    whole = surgery.remove_channels(body, {"modules": {"0": {"in": 4, "out": 8, "groups": 2}}})
    assert (whole[0].weight.shape, whole[0].groups) == ((8, 2, 3, 3), 2)
    within = surgery.remove_channels(
        body, {"modules": {"0": {"in": 4, "out": 12}, "1": {"out": 12}, "2": {"in": 12, "out": 6}}}
    )
    assert (within[0].weight.shape, within[1].num_channels) == ((12, 1, 3, 3), 12)
    assert within(torch.randn(1, 4, 5, 5)).shape == (1, 6, 3, 3)
    assert body[0].weight.shape == (16, 2, 3, 3)  # left as it was


def operation(**modules: Any) -> list[dict[str, Any]]:
    return [{"op": "remove channels", "modules": modules}]


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ("remove channels", "kdcli_operations is no list of at most 100 operations"),
        (
            [{"op": "remove channel"}],
            r"operation 1: this kdcli knows no 'remove channel'. Did you mean 'remove ch",
        ),
        ([{}], "operation 1: this kdcli knows no 'None'"),
        (["remove channels"], "operation 1: this kdcli knows no 'None'"),
        ([{"op": ["remove channels"]}], "operation 1: this kdcli knows no"),
        ([{"op": "remove channels"}] * 101, "no list of at most 100"),
        (
            [{"op": "replace head", "feature": "last4"}, {"op": "remove channels"}],
            "1: 'replace head' is the last",
        ),
        ([{"op": "remove channels"}], r"operation 1 \(remove channels\): modules is no object of paths"),
        ([{"op": "remove channels", "modules": ["conv1"]}], "modules is no object of paths"),
        (
            operation(layer9={"out": 3}),
            r"operation 1 \(remove channels\): there is no module 'layer9'. Did you mean",
        ),
        (operation(**{"": {"out": 3}}), "there is no module ''"),
        (
            operation(fc={"in": 97}),
            r"operation 1 \(remove channels\): fc: in is 96 in the architecture, not 97",
        ),
        (
            operation(fc={"in": 10**12}),
            "kdcli_operations.modules.fc.in is 1e\\+12, beyond what a network has",
        ),
        (operation(fc={"in": 0}), "fc: in is 0, not a number of 1 or more"),
        (operation(fc={"in": -1}), "fc: in is -1, not a number"),
        (operation(fc={"in": True}), "fc: in is True, not a number"),
        (operation(fc={"in": "3"}), "fc: in is '3', not a number"),
        (operation(fc={"in": 3.5}), "fc: in is 3.5, not a number"),
        (operation(fc={"width": 3}), "fc: its widths are no object of in, out, groups, heads"),
        (operation(fc=3), "fc: its widths are no object"),
        (operation(fc={}), "fc: its widths are no object"),
        (operation(**{"layer1.0.bn1": {"in": 3, "out": 4}}), "layer1.0.bn1 has one width, 'out'"),
        (operation(**{"layer1.0.conv1": {"groups": 2}}), "groups is 1 in the architecture, not 2"),
        (operation(layer1={"out": 3}), "layer1 is a Sequential, whose channels cannot be removed"),
        (operation(**{"layer1.0.conv1": {"out": 3}}), "its widths do not fit together"),
    ],
)
def test_operations_that_make_no_sense_are_refused(operations: Any, message: str, tmp_path: Path) -> None:
    made = narrowed("test_resnet", {})
    made.operations = ()

    def write(config: dict[str, Any]) -> None:
        config["kdcli_operations"] = operations

    path = commit_model(made, tmp_path / "odd", change=write)
    with pytest.raises(
        InputError, match=rf"{path / 'config.json'}: .*{message}" if "at most" not in message else message
    ):
        build(str(path))


def test_weights_that_were_not_narrowed_are_refused(tmp_path: Path) -> None:
    made = narrowed("test_resnet", {})
    made.operations = tuple(operation(**RESNET))
    with pytest.raises(InputError, match="does not fit ResNet: it has another shape of layer1"):
        build(str(commit_model(made, tmp_path / "odd")))


@pytest.mark.parametrize("old", ["upernet", ["upernet"], 3, None])
def test_a_head_of_0_1_that_is_no_object_is_refused(old: Any, tmp_path: Path) -> None:
    network = narrowed("test_resnet", {})
    network.operations = ()
    path = commit_model(network, tmp_path / "odd", change=lambda c: c.update(kdcli_head=old))
    with pytest.raises(
        InputError, match=r"config\.json: kdcli_head is a \w+, not an object that describes a head"
    ):
        build(str(path))


def test_two_descriptions_of_one_structure_are_refused(tmp_path: Path) -> None:
    network = narrowed("test_resnet", {})
    path = commit_model(network, tmp_path / "odd", change=lambda c: c.update(kdcli_head={"feature": "last4"}))
    with pytest.raises(InputError, match=r"config\.json has both kdcli_head and kdcli_operations"):
        build(str(path))


def test_a_head_as_0_1_wrote_it_is_read(tmp_path: Path) -> None:
    network = narrowed("test_vit", {})
    network.operations = ()
    network.attach_linear("last4", torch.randn(3, 256), torch.randn(3), CLASSES)

    def before(config: dict[str, Any]) -> None:
        assert config.pop("kdcli_operations") == [{"op": "replace head", "feature": "last4"}]
        config["kdcli_head"] = {"feature": "last4"}

    again = build(str(commit_model(network, tmp_path / "old", change=before))).eval()
    x = views(network)
    with torch.no_grad():
        assert torch.equal(again(x), network.eval()(x))


@pytest.mark.parametrize(
    ("options", "widths", "message"),
    [
        ({}, {"keys": 40}, "blocks.0.attn: keys is 32 in the architecture, not 40"),
        ({}, {"values": 3, "out": 4}, "blocks.0.attn is a Attention, whose channels cannot be removed"),
        ({"qk_norm": True}, {"keys": 3}, "blocks.0.attn normalises or scales its channels"),
    ],
)
def test_channels_that_an_attention_cannot_lose(
    options: dict[str, Any], widths: dict[str, int], message: str
) -> None:
    body = timm.create_model("test_vit", **options)
    with pytest.raises(ValueError, match=message):
        surgery.remove_channels(body, {"modules": {"blocks.0.attn": widths}})


def test_a_narrow_attention_has_no_gate() -> None:
    from timm.layers.attention import Attention

    with pytest.raises(ValueError, match="an attention with a gate keeps its channels"):
        NarrowAttention(Attention(16, num_heads=2, gated=True), 2, 3, 3)
