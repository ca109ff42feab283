"""Exits: parameter counts of the reference, the forward written out again, odd maps, files, early stops."""

import json
import shutil

import pytest
import timm
import torch
from toolbox import flip, model_with_exits
from torch.nn import functional as F

from kdcli.artifacts import manifest as manifests
from kdcli.errors import InputError
from kdcli.metrics.efficiency import flops
from kdcli.models.build import build
from kdcli.models.exits import ExitHead, WithExits, load_exits

CIFAR = [(64, 32, 32), (128, 16, 16), (256, 8, 8)]  # ResNet-18's maps before the last, 512 x 4 x 4


def count(module):
    return sum(p.numel() for p in module.parameters())


def cifar_body(name):
    """Parameters of timm's ResNet with 100 classes and the 3 x 3 stem of CIFAR."""
    with torch.device("meta"):
        return count(timm.create_model(name, num_classes=100)) - 3 * 64 * (7 * 7 - 3 * 3)


def test_parameters_are_the_references():
    """Attention, separable convolutions and classifier of the authors' ResNet-18 and whole ResNets."""
    with torch.device("meta"):
        heads = [ExitHead(shape, (512, 4, 4), 100) for shape in CIFAR]
        wide = [ExitHead((4 * c, h, w), (2048, 4, 4), 100) for c, h, w in CIFAR]
    assert [count(head) for head in heads] == [329_828, 342_116, 391_268]
    assert cifar_body("resnet18") + sum(map(count, heads)) == 12_283_344
    assert cifar_body("resnet50") + sum(map(count, wide)) == 38_426_576


def naive(head, x):
    """The attention exit in eval mode from its tensors, in the order in which they stand."""
    tensors = [t for name, t in head.state_dict().items() if "num_batches" not in name]

    def take(n):
        return [tensors.pop(0) for _ in range(n)]

    def norm(x):
        weight, bias, mean, var = take(4)
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    def separable(x, stride):
        for step in (stride, 1):
            depth, point = take(2)
            x = F.conv2d(x, depth, None, step, 1, groups=x.shape[1])
            x = norm(F.conv2d(x, point))
        return x

    mask = norm(separable(x, 2))
    x = x * torch.sigmoid(F.interpolate(mask, x.shape[2:], mode="bilinear", align_corners=False))
    steps = 0
    while len(tensors) > 2:
        x = separable(x, 2)
        steps += 1
    features = F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]
    return steps, features, features @ tensors[0].T + tensors[1]


@pytest.mark.parametrize(("shape", "steps"), [((4, 16, 16), 3), ((8, 8, 8), 2), ((16, 4, 4), 1)])
def test_the_forward_is_the_references(shape, steps):
    torch.manual_seed(0)
    head = ExitHead(shape, (32, 2, 2), 5)
    head(torch.randn(8, *shape))  # statistics that are not 0 and 1
    x = torch.randn(3, *shape)
    with torch.no_grad():
        found = head.eval()(x)
        assert list(found) == ["logits", "features"]
        expected = naive(head, x)
    assert expected[0] == steps
    torch.testing.assert_close(found["features"], expected[1])
    torch.testing.assert_close(found["logits"], expected[2])


@pytest.mark.parametrize("kind", ["attention", "bottleneck"])
@pytest.mark.parametrize(
    ("shape", "deepest", "steps"),
    [
        ((12, 4, 4), (12, 4, 4), 1),  # a ViT's blocks
        ((12, 1, 1), (12, 1, 1), 1),
        ((6, 7, 7), (24, 4, 4), 1),
        ((6, 5, 5), (24, 2, 2), 1),
        ((6, 15, 13), (20, 2, 2), 3),
        ((6, 3, 3), (9, 1, 1), 2),
        ((16, 8, 8), (5, 1, 1), 3),  # narrower at the end
    ],
)
def test_odd_maps(kind, shape, deepest, steps):
    head = ExitHead(shape, deepest, 3, kind, tap="map1")
    assert len(head.steps) == steps
    found = head(torch.randn(2, *shape))
    assert found["logits"].shape == (2, 3)
    assert found["features"].shape == (2, deepest[0])
    found["logits"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_a_mask_of_zeros_halves_the_map():
    """Without its own bias the attention's ReLU gives 0, whose sigmoid is one half."""
    head = ExitHead((4, 8, 8), (8, 4, 4), 2).eval()
    torch.nn.init.zeros_(head.attention[1].weight)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(head(x)["features"], head.steps(x / 2).mean((2, 3)))


def test_a_bottleneck_has_no_mask():
    head = ExitHead((4, 8, 8), (16, 4, 4), 2, "bottleneck")
    assert head.attention is None
    assert [m.kernel_size for m in head.steps[0] if isinstance(m, torch.nn.Conv2d)] == [
        (1, 1),
        (3, 3),
        (1, 1),
    ]
    assert count(head.steps) == 4 * 4 + 9 * 16 + 4 * 16 + 2 * (4 + 4 + 16)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="attention or bottleneck, not 'linear'"):
        ExitHead((4, 8, 8), (8, 4, 4), 2, "linear")


def test_rows_in_another_order():
    head = ExitHead((4, 8, 8), (8, 4, 4), 3).eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        before = head(x)["logits"]
        head.reorder(None)
        head.reorder([2, 0, 1])
        torch.testing.assert_close(head(x)["logits"], before[:, [2, 0, 1]])


# -- with their network --------------------------------------------------------------------------------------


def make(name, taps):
    """A toy network and exits on some of its maps, random but fixed."""
    network = build(name, pretrained=False, size=32, classes=["a", "b", "c"]).eval()
    with torch.no_grad():
        maps = network.call([torch.zeros(1, 3, 32, 32)], [*taps, "map-1"])
    torch.manual_seed(1)
    deepest = maps["map-1"].shape[1:]
    heads = {f"exit{i}": ExitHead(maps[t].shape[1:], deepest, 3, tap=t) for i, t in enumerate(taps, 1)}
    return network, {name: head.eval() for name, head in heads.items()}


TOYS = {
    "test_resnet": ("map2", "map3"),
    "test_vit": ("map1", "map3"),
    "test_mambaout": ("map1", "map-2"),
    "test_efficientnet": ("map2", "map4"),
}


@pytest.fixture(scope="module", params=TOYS)
def made(request):
    return make(request.param, TOYS[request.param])


def test_logits_of_all_exits_are_those_of_their_taps(made):
    network, exits = made
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found = WithExits(network, exits)(x)
        taps = network.call([x], [head.tap for head in exits.values()])
        expected = [*(head(taps[head.tap])["logits"] for head in exits.values()), network(x)]
        assert found.shape == (2, 3, 3)
        torch.testing.assert_close(found, torch.stack(expected, 1))
        for upto in (1, 2, 3):
            torch.testing.assert_close(WithExits(network, exits, upto)(x), found[:, :upto])
    assert not any(m._forward_hooks for m in network.modules())


def test_an_exit_costs_what_lies_before_it(made):
    network, exits = made
    x = torch.zeros(1, 3, 32, 32)
    cost = [flops(WithExits(network, exits, upto), x) for upto in (1, 2, 3)]
    taps = network.call([x], [head.tap for head in exits.values()])
    heads = [flops(head, taps[head.tap]) for head in exits.values()]
    assert cost[-1] == flops(network, x) + sum(heads)
    assert heads[0] < cost[0] < cost[1] - heads[1] < cost[2] - heads[1]
    assert not any(m._forward_hooks for m in network.modules())


def test_hooks_go_when_the_forward_fails(made):
    network, exits = made
    with pytest.raises(RuntimeError):
        WithExits(network, exits)(torch.zeros(1, 4, 32, 32))
    assert not any(m._forward_hooks for m in network.modules())


def test_an_exit_of_another_networks_block_is_refused(made):
    network, _ = made
    with pytest.raises(InputError, match=r"no 'map9': .* has blocks 1 to"):
        WithExits(network, {"exit1": ExitHead((4, 8, 8), (8, 4, 4), 3, tap="map9")})


# -- files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    network, exits = make("test_resnet", ("map2", "map3"))
    exits["deep"] = ExitHead((4, 4, 4), (4, 4, 4), 3, "bottleneck", tap="map4")
    for head in exits.values():
        head.reorder([1, 2, 0])
    return model_with_exits(tmp_path_factory.mktemp("exits") / "model", network, exits), exits


def test_exits_come_back_as_they_were_saved(saved):
    path, exits = saved
    state = torch.random.get_rng_state()
    found = load_exits(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(found) == ["exit1", "exit2", "deep"]
    for name, head in exits.items():
        assert found[name].describe() == head.describe()
        assert not found[name].training
        own, read = head.state_dict(), found[name].state_dict()
        assert own.keys() == read.keys()
        assert all(torch.equal(own[k], read[k]) for k in own)
        assert all(p.requires_grad for p in found[name].parameters())
    assert build(str(path)).classes == ["a", "b", "c"]
    assert set(manifests.read(path).files) == {
        "model.safetensors", "config.json", "exits.safetensors", "exits.json",
    }  # fmt: skip


def test_no_artifact_and_no_exits(weights, probed):
    assert load_exits("resnet18") == {}
    assert load_exits(str(weights["test_vit"])) == {}
    assert load_exits(str(probed("test_vit"))) == {}


def test_a_flipped_bit_is_refused(saved, tmp_path):
    path = tmp_path / "copy"
    for file, at in (("exits.safetensors", -1), ("exits.json", 5)):
        shutil.copytree(saved[0], path)
        flip(path / file, at)
        with pytest.raises(InputError, match=f"{file} is damaged: its sha256 differs"):
            load_exits(path)
        shutil.rmtree(path)


def edited(path, out, change):
    """The artifact again, its ``exits.json`` changed and committed."""
    shutil.copytree(path, out)
    facts = change(json.loads((out / "exits.json").read_text()))
    (out / "exits.json").write_text(json.dumps(facts))
    manifest = manifests.read(out)
    file = out / "exits.json"
    manifest.files["exits.json"] = {"sha256": manifests.file_hash(file), "size": file.stat().st_size}
    (out / "kdcli.json").write_text(manifest.to_json())
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: [], "exits.json does not describe exits"),
        (lambda facts: {"exit1": {"shape": [4]}}, "exits.json does not describe exits"),
        (lambda facts: {**facts, "exit1": {**facts["exit1"], "kind": "mlp"}}, "not 'mlp'"),
        (lambda facts: {**facts, "exit1": {**facts["exit1"], "shape": [8, 0, 0]}}, "does not describe exits"),
        (lambda facts: {**facts, "exit1": {**facts["exit1"], "classes": 10**12}}, "does not fit exits.json"),
        (lambda facts: {"exit1": facts["exit1"]}, "exits.safetensors does not fit exits.json"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_exits(edited(saved[0], tmp_path / "edited", change))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network, exits = make("test_resnet", ("map2",))
    torch.nn.init.constant_(exits["exit1"].linear.bias, float("nan"))
    with pytest.raises(InputError, match=r"holds NaN or Inf in exit1.linear.bias"):
        load_exits(model_with_exits(tmp_path / "model", network, exits))
