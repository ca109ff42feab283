"""Checkpoints that users have: what of them is read, what is said of it, and that nothing is ever run."""

import argparse
import collections
import sys
import types
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from toolbox import Payload
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.models.build import build
from kdcli.models.checkpoints import load
from kdcli.models.legacy import read_weights

VIT = "test_vit"


def tensors(name: str = VIT, seed: int = 4, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(timm.create_model(name, img_size=32, **{"num_classes": 4, **options}).state_dict())


def prefixed(prefix: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


LIGHTNING = "pytorch_lightning.utilities.parsing"
AttributeDict = type("AttributeDict", (dict,), {"__module__": LIGHTNING})  # its hyperparameters


def saved(path: Path, content: Any, zipped: bool = True) -> str:
    """The file of a training where Lightning was installed."""
    names = [LIGHTNING.rsplit(".", i)[0] for i in range(3)]
    modules = {name: types.ModuleType(name) for name in names}
    modules[LIGHTNING].AttributeDict = AttributeDict  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, modules):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return str(path)


def reads(weights: str, expected: dict[str, Tensor]) -> tuple[str, ...]:
    """The notes of a network built of a file, whose tensors are these."""
    network = build(VIT, weights=weights, size=32)
    own = network.body.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in expected.items())
    assert network.outputs == len(expected["head.bias"])
    return network.notes


HYPERPARAMETERS = {
    "namespace": lambda: argparse.Namespace(lr=0.1, data=Path("/data"), model=VIT, betas=(0.9, 0.99)),
    "numpy": lambda: [
        np.float64(0.1),
        np.float32(1),
        np.int64(3),
        np.bool_(True),
        np.arange(4.0),
        np.str_("a"),
    ],
    "paths": lambda: {"root": Path("/data"), "pure": PurePosixPath("a/b")},
    "containers": lambda: [collections.OrderedDict(a=1), collections.defaultdict(list, {"a": [1]}), {1, 2}],
    "lightning": lambda: AttributeDict(lr=0.1, sizes=[1, 2], inner=AttributeDict(seed=np.int64(1))),
    "random": lambda: np.random.RandomState(0).get_state(),
}


@pytest.mark.parametrize("kind", HYPERPARAMETERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_values_beside_the_tensors_are_read(kind: str, zipped: bool, tmp_path: Path) -> None:
    content = {"state_dict": tensors(), "epoch": 3, "args": HYPERPARAMETERS[kind]()}
    file = saved(tmp_path / "train.pth.tar", content, zipped)
    assert reads(file, tensors()) == ()


class Configuration:
    """A user's own class."""


@pytest.mark.parametrize("kind", ["payload", "class", "callable", "range"])
def test_other_objects_are_refused_by_name_and_nothing_runs(kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    odd = {
        "payload": Payload(mark),
        "class": Configuration(),
        "callable": [collections.defaultdict(Configuration)],
        "range": range(10**12),
    }[kind]
    args = argparse.Namespace(lr=0.1, odd=odd)
    file = saved(tmp_path / "train.pth", {"state_dict": tensors(), "args": args})
    with pytest.raises(InputError, match=r"holds pickled code or objects \(.*\), not just tensors") as found:
        read_weights(file)
    assert "never runs those" in str(found.value)
    if kind == "class":
        assert "Configuration" in str(found.value)
    assert not mark.exists()


def test_a_long_list_is_not_made(tmp_path: Path) -> None:
    """``list`` itself may be named by a defaultdict, and stands for nothing that can be filled."""

    class Filled:
        def __reduce__(self) -> Any:
            return (list, ([0],))

    content = {"state_dict": tensors(), "x": [Filled()]}
    assert set(read_weights(saved(tmp_path / "x.pth", content)).tensors) == set(tensors())


# -- entries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "ema"])
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_which_of_two_states_is_read_is_said_and_can_be_chosen(
    average: str, plain: str, tmp_path: Path
) -> None:
    content = {plain: tensors(), average: tensors(seed=5), "epoch": 3}
    file = saved(tmp_path / "last.pth", content)
    (note,) = reads(file, tensors(seed=5))
    assert note == (
        f"{file} holds {average} and {plain}: {average}, an average over its training, is read. --weights "
        f"{file}:{plain} takes the other."
    )
    assert reads(f"{file}:{plain}", tensors()) == ()
    assert reads(f"{file}:{average}", tensors(seed=5)) == ()
    sources = {build(VIT, weights=w, size=32).source for w in (file, f"{file}:{plain}", f"{file}:{average}")}
    assert len(sources) == 3  # what is chosen is part of a cache's key


def test_entries_within_entries_and_of_averaged_models(tmp_path: Path) -> None:
    inner = {**prefixed("module.", tensors()), "n_averaged": torch.tensor(7)}
    assert reads(saved(tmp_path / "swa.pth", {"ema": {"state_dict": inner, "decay": 0.99}}), tensors()) == ()


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    file = saved(tmp_path / "last.pth", {"state_dict": tensors(), "state_dict_ema": tensors(), "epoch": 1})
    with pytest.raises(
        InputError, match=r"last.pth has no 'state_dict_em'. Did you mean 'state_dict_ema'\? It has"
    ):
        build(VIT, weights=f"{file}:state_dict_em")
    with pytest.raises(InputError, match=r"holds no state_dict \(it is a int\)"):
        build(VIT, weights=f"{file}:epoch")
    with pytest.raises(InputError, match=r"nothing\.pth does not exist"):
        build(VIT, weights=f"{tmp_path}/nothing.pth:state_dict")


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path: Path) -> None:
    assert reads(saved(tmp_path / "a:state_dict", {"state_dict": tensors()}), tensors()) == ()


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "module.", "_orig_mod.", "model._orig_mod.", "module._orig_mod.", "lit.student.net."],
)
def test_one_prefix_of_all_names_is_nothing_to_speak_of(prefix: str, tmp_path: Path) -> None:
    content = {"state_dict": prefixed(prefix, tensors()), "hyper_parameters": AttributeDict(lr=0.1)}
    assert reads(saved(tmp_path / "lightning.ckpt", content), tensors()) == ()
    save_file(content["state_dict"], tmp_path / "w.safetensors")
    assert reads(str(tmp_path / "w.safetensors"), tensors()) == ()


def test_what_a_lightning_module_has_beside_its_network_is_left_out_and_said(tmp_path: Path) -> None:
    content = {
        **prefixed("model.", tensors()),
        "criterion.weight": torch.ones(4),
        **prefixed("ema_model.", tensors(seed=5)),
    }
    file = saved(tmp_path / "lightning.ckpt", {"state_dict": content})
    (note,) = reads(file, tensors())
    count = len(tensors())
    left = f"criterion.weight and {count} more"
    assert note == f"{file}: read is what begins with 'model.', left out are {left}"
    assert reads(f"{file}:ema_model", tensors(seed=5)) == ()


def test_an_entry_may_be_called_by_its_number(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", {0: tensors(seed=1), 1: tensors(seed=2)})
    found = build(VIT, weights=f"{file}:1")
    assert torch.equal(found.tensor("head.bias"), tensors(seed=2)["head.bias"])


def test_tensors_keyed_by_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names its tensors 0 and so on: names of parameters are wanted"):
        build(VIT, weights=saved(tmp_path / "w.pth", {0: torch.ones(2), 1: torch.ones(3)}))
    with pytest.raises(InputError, match=r"holds no state_dict|names its tensors"):
        build(VIT, weights=saved(tmp_path / "w.pth", {"state_dict": {0: torch.ones(2)}}))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch drops its quantised tensors one day
@pytest.mark.parametrize(
    "odd",
    [
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: t.to(torch.complex64),
        Tensor.to_sparse,
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to("meta"),
        lambda t: torch.nested.nested_tensor([t, t]),
    ],
    ids=["quantised", "complex", "sparse", "float8", "meta", "nested"],
)
def test_tensors_that_no_network_has_are_refused(odd: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    content = {**tensors(), "head.bias": odd(torch.ones(4))}
    with pytest.raises(InputError, match=r"holds head\.bias in a form that is no plain tensor"):
        build(VIT, weights=saved(tmp_path / "w.pth", content))


def test_float8_of_safetensors_is_refused_too(tmp_path: Path) -> None:
    content = {**tensors(), "head.bias": torch.ones(4).to(torch.float8_e4m3fn)}
    save_file(content, tmp_path / "w.safetensors")
    with pytest.raises(
        InputError, match=r"holds head\.bias in a form that is no plain tensor \(float8_e4m3fn"
    ):
        build(VIT, weights=str(tmp_path / "w.safetensors"))


def test_numbers_that_float32_has_not_are_refused(tmp_path: Path) -> None:
    content = {**tensors(), "head.bias": torch.full((4,), 1e300, dtype=torch.float64)}
    with pytest.raises(InputError, match=r"holds numbers beyond float32 in head\.bias"):
        build(VIT, weights=saved(tmp_path / "w.pth", content))


def test_parts_of_a_pretraining_are_left_out_and_said(tmp_path: Path) -> None:
    """The names of facebookresearch/mae: a decoder beside an encoder without classifier."""
    encoder = {name: t for name, t in tensors().items() if not name.startswith("head.")}
    decoder = (
        "decoder_pos_embed",
        "decoder_embed.weight",
        "decoder_blocks.0.norm1.weight",
        "decoder_pred.bias",
    )
    content = {**encoder, "mask_token": torch.ones(1, 1, 64), **{name: torch.ones(3) for name in decoder}}
    file = saved(
        tmp_path / "mae.pth", {"model": content, "optimizer": {}, "args": argparse.Namespace(seed=0)}
    )
    network = build(VIT, weights=file, size=32)
    assert network.notes == (f"{file}: left out, as parts of its pretraining: mask_token and 4 more",)
    assert (network.classes, network.outputs) == (None, 0)
    assert all(torch.equal(t, network.body.state_dict()[name]) for name, t in encoder.items())


def test_a_training_of_dinov2_gives_its_teacher(tmp_path: Path) -> None:
    """The names of facebookresearch/dinov2's own training: backbone and heads of a teacher and a student."""
    options = {"embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 0}
    name = "vit_small_patch14_reg4_dinov2"
    own = dict(timm.create_model(name, img_size=28, **options).state_dict())
    official = {k: v for k, v in own.items() if k not in ("reg_token", "pos_embed", "cls_token")}
    official |= {
        "mask_token": torch.zeros(1, 48),
        "register_tokens": own["reg_token"],
        "cls_token": own["cls_token"],
        "pos_embed": torch.cat([torch.zeros(1, 1, 48), own["pos_embed"]], dim=1),
    }
    heads = {"dino_head.mlp.0.weight": torch.ones(2), "ibot_head.last_layer.weight": torch.ones(2)}
    teacher = {**prefixed("backbone.", official), **heads}
    student = {name: t + 1 for name, t in teacher.items()}
    found = read_weights(
        saved(tmp_path / "dinov2.pth", {"teacher": teacher, "student": student, "iteration": 9})
    )
    assert "holds teacher and student: teacher is read" in found.notes[0]
    body = timm.create_model(name, img_size=28, **options)
    loaded = load(body, found.tensors, "dinov2.pth")
    assert all(torch.equal(t, body.state_dict()[n]) for n, t in own.items())
    assert loaded.notes == (
        "dinov2.pth: read is what begins with 'backbone.', left out are dino_head.mlp.0.weight and 1 more",
        "dinov2.pth: left out, as parts of its pretraining: mask_token",
    )


def test_official_deit_is_read(tmp_path: Path) -> None:
    own = dict(timm.create_model("deit_tiny_patch16_224", depth=1).state_dict())
    body = timm.create_model("deit_tiny_patch16_224", depth=1)
    found = read_weights(saved(tmp_path / "deit.pth", {"model": own}))
    assert load(body, found.tensors, "deit.pth").classified
    assert all(torch.equal(t, body.state_dict()[n]) for n, t in own.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.blocks.0.norm1.weight"), "misses|unknown"),
        (lambda t: t.update({"model.norm.weight": torch.ones(5)}), "misses|unknown"),
        (lambda t: t.update({"model.odd": torch.ones(5)}), "misses|unknown"),
        (lambda t: t["model.norm.weight"].fill_(float("nan")), "NaN or Inf in norm.weight"),
    ],
)
def test_a_prefix_excuses_nothing(
    change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    content = prefixed("model.", tensors())
    change(content)
    with pytest.raises(InputError, match=message):
        build(VIT, weights=saved(tmp_path / "w.pth", {"state_dict": content}), size=32)


def test_a_prefix_that_is_a_block_is_none() -> None:
    """A block of a ResNet has convolutions of the same names as its stem."""
    body = timm.create_model("test_resnet", num_classes=4)
    inner = nn.ModuleDict({"trunk": timm.create_model("test_resnet", num_classes=4)}).state_dict()
    assert load(body, inner, "w.pth").classified
    assert all(torch.equal(t, body.state_dict()[n.removeprefix("trunk.")]) for n, t in inner.items())
