"""Taps: every kind of name, errors, and that no hook stays behind."""

import pytest
import torch
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.taps import as_map, grid
from kdcli.models.timm import TimmModel

KINDS = ["test_vit", "test_vit2", "test_vit3", "test_resnet", "test_efficientnet", "test_convnext"]


@pytest.fixture(scope="module")
def networks() -> dict[str, TimmModel]:
    names = [*KINDS, "test_mambaout"]
    return {n: build(n, Wanted(["a", "b"]), pretrained=False, size=64).eval() for n in names}


@pytest.fixture(scope="module")
def x() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)


def hooks(net: TimmModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


@pytest.mark.parametrize("name", KINDS)
def test_own_taps(name: str, networks: dict[str, TimmModel], x: Tensor) -> None:
    net, body = networks[name], networks[name].body
    with torch.no_grad():
        found = net.call([x], ["logits", "pooled", "tokens", "grid"])
        features = body.forward_features(net.prepare(x))
        assert torch.equal(found["logits"], net(x))
        assert torch.equal(body.get_classifier()(found["pooled"]), found["logits"])
    if features.ndim == 3:
        assert torch.equal(found["tokens"], features)
        patches = features[:, body.num_prefix_tokens :]
        assert found["grid"].shape[2:] == (4, 4)
    else:
        assert torch.equal(found["grid"], features)
        patches = found["tokens"]
    assert torch.equal(found["grid"].flatten(2).transpose(1, 2), patches)
    assert hooks(net) == 0


def test_channels_last_maps_become_grids_with_channels_first(
    networks: dict[str, TimmModel], x: Tensor
) -> None:
    net = networks["test_mambaout"]
    with torch.no_grad():
        found = net.call([x], ["grid", "tokens"])
        features = net.body.forward_features(net.prepare(x))
    assert torch.equal(found["grid"], features.permute(0, 3, 1, 2))
    assert torch.equal(found["tokens"], features.flatten(1, 2))


@pytest.mark.parametrize("name", KINDS)
def test_blocks_are_the_bodys_stages(name: str, networks: dict[str, TimmModel], x: Tensor) -> None:
    net, body = networks[name], networks[name].body
    stages = [info["module"] for info in body.feature_info]
    names = [f"block{k}" for k in range(1, len(stages) + 1)]
    with torch.no_grad():
        blocks = net.call([x], names)
        paths = net.call([x], stages)
        _, maps = body.forward_intermediates(net.prepare(x))
    assert [blocks[n].shape for n in names] == [paths[s].shape for s in stages]
    for found, path, expected in zip(blocks.values(), paths.values(), maps[-len(names) :]):
        assert torch.equal(found, path)
        if found.ndim == 4:
            torch.testing.assert_close(found, expected)
        else:
            torch.testing.assert_close(grid(found, body.num_prefix_tokens), expected)
    assert hooks(net) == 0


@pytest.mark.parametrize("name", [*KINDS, "test_mambaout"])
def test_maps_are_the_blocks_as_feature_maps(name: str, networks: dict[str, TimmModel], x: Tensor) -> None:
    """Tokens without their prefix, channels last and channels first alike."""
    net, body = networks[name], networks[name].body
    count = len(body.feature_info)
    names = [*(f"map{k}" for k in range(1, count + 1)), "map-1", f"map-{count}"]
    with torch.no_grad():
        found = net.call([x], names)
        _, expected = body.forward_intermediates(net.prepare(x), output_fmt="NCHW")
    expected = expected[-count:]
    for tap, same in zip(names, [*expected, expected[-1], expected[0]]):
        assert found[tap].ndim == 4
        torch.testing.assert_close(found[tap], same)
    assert hooks(net) == 0


def test_maps_beside_the_block_they_are_made_of(networks: dict[str, TimmModel], x: Tensor) -> None:
    net = networks["test_vit3"]
    prefix = net.body.num_prefix_tokens
    assert prefix > 0
    with torch.no_grad():
        found = net.call([x], ["map2", "block2", "logits"])
        assert torch.equal(found["logits"], net(x))
    patches = found["map2"].flatten(2).transpose(1, 2)
    assert torch.equal(patches, found["block2"][:, prefix:])


def test_gradient_flows_through_maps(networks: dict[str, TimmModel], x: Tensor) -> None:
    net = networks["test_vit"]
    net.zero_grad()
    net.call([x], ["map2"])["map2"].square().mean().backward()
    grads = {n.split(".")[1] for n, p in net.body.named_parameters() if "blocks" in n and p.grad is not None}
    assert grads == {"0", "1"}
    net.zero_grad()


def test_tokens_in_the_order_of_their_pooling_are_no_maps() -> None:
    body = nn.Identity()
    assert torch.equal(as_map(body, torch.ones(1, 4, 2)), torch.ones(1, 2, 2, 2))
    body.reroll = nn.Identity()
    with pytest.raises(InputError, match="blocks of Identity are no maps"):
        as_map(body, torch.ones(1, 4, 2))
    with pytest.raises(InputError, match="blocks of Identity are no maps"):
        as_map(nn.Identity(), torch.ones(1, 4))


def test_a_network_without_stages_has_no_maps(x: Tensor) -> None:
    net = build("test_vit", pretrained=False, size=64).eval()
    net.body.feature_info = []
    with pytest.raises(InputError, match="no 'map1': VisionTransformer has no stages"):
        net.call([x], ["map1"])


def test_module_paths_give_outputs_and_inputs(networks: dict[str, TimmModel], x: Tensor) -> None:
    net = networks["test_vit"]
    with torch.no_grad():
        found = net.call(
            [x], ["blocks.1.attn", "blocks.1.mlp.fc1", "blocks.1.mlp.fc1.in", "norm.in", "block6"]
        )
        fc1 = net.body.get_submodule("blocks.1.mlp.fc1")
        assert torch.equal(fc1(found["blocks.1.mlp.fc1.in"]), found["blocks.1.mlp.fc1"])
    assert torch.equal(found["norm.in"], found["block6"])
    assert list(found) == ["blocks.1.attn", "blocks.1.mlp.fc1", "blocks.1.mlp.fc1.in", "norm.in", "block6"]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_batch_norm_lists_hold_every_layers_input(
    name: str, networks: dict[str, TimmModel], x: Tensor
) -> None:
    net = networks[name]
    layers = [m for m in net.body.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        found = net.call([x], ["BatchNorm2d.in", "BatchNorm2d.out", "logits"])
        assert len(found["BatchNorm2d.in"]) == len(layers) > 3
        channels = sorted(t.shape[1] for t in found["BatchNorm2d.in"])
        assert channels == sorted(m.num_features for m in layers)
        first = layers[0]
        assert torch.equal(first(found["BatchNorm2d.in"][0]), found["BatchNorm2d.out"][0])
    assert hooks(net) == 0


def test_taps_are_as_the_module_left_them(networks: dict[str, TimmModel], x: Tensor) -> None:
    """ResNet's blocks add the shortcut in place and its ReLUs overwrite their input."""
    net = networks["test_resnet"]
    paths = ["layer1.0.conv1", "layer1.0.bn1", "layer1.0.bn2", "layer1.0.bn2.in", "layer1.0.act1.in"]
    with torch.no_grad():
        found = net.call([x], paths)
        block = net.body.get_submodule("layer1.0")
        first = block.bn1(found["layer1.0.conv1"])
        assert torch.equal(found["layer1.0.bn1"], first)
        assert torch.equal(found["layer1.0.act1.in"], first)
        assert found["layer1.0.bn1"].min() < 0
        assert torch.equal(block.bn2(found["layer1.0.bn2.in"]), found["layer1.0.bn2"])


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "cspresnet50", "dla34", "resnet18d"])
def test_before_an_end_is_what_the_last_activation_is_given(name: str, x: Tensor) -> None:
    """Whatever order the modules are written in, and where an activation overwrites its input."""
    net = build(name, Wanted(["a", "b"]), pretrained=False, size=64).eval()
    body = net.body
    for norm in (m for m in body.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)  # a block's last is 0 at first, which leaves its positive shortcut alone
    stages = [f"stage{k}" for k in range(1, 5)]
    paths = [f"{info['module']}.pre" for info in body.feature_info[-4:]]
    with torch.no_grad():
        found = net.call([x], [*stages, *(f"{stage}.pre" for stage in stages), "map-1.pre", *paths, "logits"])
        assert torch.equal(found["logits"], net(x))
    slope = 0.01 if name == "cspresnet50" else 0.0
    for stage, path in zip(stages, paths):
        before = found[f"{stage}.pre"]
        assert before.min() < 0
        torch.testing.assert_close(nn.functional.leaky_relu(before, slope), found[stage], rtol=0, atol=0)
        assert torch.equal(found[path], before)
    assert torch.equal(found["map-1.pre"], found["stage4.pre"])
    assert hooks(net) == 0


def test_gradient_flows_through_what_an_activation_is_given(
    networks: dict[str, TimmModel], x: Tensor
) -> None:
    """Also where the activation itself stops it."""
    net = networks["test_resnet"]
    net.zero_grad()
    before = net.call([x], ["stage2.pre"])["stage2.pre"]
    before.clamp(max=0).sum().backward()
    grads = {n.split(".")[0] for n, p in net.body.named_parameters() if p.grad is not None}
    assert {"layer1", "layer2"} <= grads
    assert not {"layer3", "layer4"} & grads
    net.zero_grad()


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "test_mambaout"])
def test_what_ends_in_no_activation_has_nothing_before_it(
    name: str, networks: dict[str, TimmModel], x: Tensor
) -> None:
    net = networks[name]
    message = f"no 'stage4.pre': what it names of {name} does not end in an activation"
    with pytest.raises(InputError, match=message):
        net.call([x], ["stage4.pre"])
    assert hooks(net) == 0


def test_an_activation_whose_output_is_changed_in_place_is_no_end(x: Tensor) -> None:
    net = build("test_resnet", pretrained=False, size=64).eval()

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(x)
            x += 1
            return x

    net.body.layer2.append(Shifted())
    with torch.no_grad(), pytest.raises(InputError, match=r"no 'layer2.pre': .* does not end in an activ"):
        net.call([x], ["layer2.pre"])
    net.body.layer2.append(nn.ReLU())
    with torch.inference_mode():
        assert (net.call([x], ["layer2.pre"])["layer2.pre"] >= 1).all()


def test_gradient_flows_through_taps(networks: dict[str, TimmModel], x: Tensor) -> None:
    net = networks["test_vit"]
    net.zero_grad()
    net.call([x], ["block3"])["block3"].square().mean().backward()
    grads = {n for n, p in net.body.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("blocks.2.") for n in grads)
    assert not any(n.startswith("blocks.3.") for n in grads)
    net.zero_grad()


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("blocks.1.atn", r"test_vit has no module 'blocks.1.atn' to tap. Did you mean 'blocks.1.attn'\?"),
        ("block9", "no 'block9': VisionTransformer has blocks 1 to 6"),
        ("block0", "no 'block0': VisionTransformer has blocks 1 to 6"),
        ("map7", "no 'map7': VisionTransformer has blocks 1 to 6"),
        ("map0", "no 'map0': VisionTransformer has blocks 1 to 6"),
        ("map-7", "no 'map-7': VisionTransformer has blocks 1 to 6"),
        ("map-", "no module 'map-' to tap"),
        ("blocks.1.atn.in", "no module 'blocks.1.atn.in' to tap"),
        ("BatchNorm2d.in", "no module 'BatchNorm2d.in' to tap"),
        ("stage5.pre", "no 'stage5': VisionTransformer has 6 stages; name maps by 'map1' and so on"),
        ("layer2.pre", "no module 'layer2.pre' to tap"),
    ],
)
def test_unknown_taps_name_the_nearest_and_leave_no_hook(
    tap: str, message: str, networks: dict[str, TimmModel], x: Tensor
) -> None:
    net = networks["test_vit"]
    with pytest.raises(InputError, match=message):
        net.call([x], ["block1", "pooled", tap])
    assert hooks(net) == 0


def test_hooks_go_when_the_forward_fails(networks: dict[str, TimmModel]) -> None:
    net = networks["test_vit"]
    with pytest.raises(AssertionError, match="Input height"):
        net.call([torch.zeros(1, 3, 50, 50)], ["block1", "pooled", "Linear.in"])
    assert hooks(net) == 0


def test_a_module_that_does_not_run_is_no_tap(x: Tensor) -> None:
    net = build("test_vit", pretrained=False, size=64).eval()
    net.body.add_module("spare", nn.Linear(2, 2))
    with pytest.raises(InputError, match="has a module 'spare', but does not run it"):
        net.call([x], ["spare"])


def test_several_classifiers_have_no_pooled_feature() -> None:
    net = build("deit_tiny_distilled_patch16_224", pretrained=False).eval()
    with pytest.raises(InputError, match="has several classifiers, so no one 'pooled' feature"):
        net.call([torch.zeros(1, 3, 224, 224)], ["pooled"])


def test_oblong_grids_are_refused() -> None:
    with pytest.raises(InputError, match="7 patch tokens are no square grid"):
        grid(torch.zeros(1, 8, 4), prefix=1)


def test_parameters_and_buffers_by_name(networks: dict[str, TimmModel]) -> None:
    net = networks["test_resnet"]
    assert net.tensor("fc.weight") is net.body.get_parameter("fc.weight")
    assert net.tensor("bn1.running_mean") is net.body.get_buffer("bn1.running_mean")
    with pytest.raises(InputError, match=r"no parameter or buffer 'fc.weigth'. Did you mean 'fc.weight'\?"):
        net.tensor("fc.weigth")
