"""ONNX: what is written answers what the network does, whatever the batch, and nothing is printed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from compacting import CLASSES, body_of, compacted, masks, network_of
from toolbox import sample_photographs
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.compression import onnx as writing
from kdcli.compression.onnx import check_onnx, compare, embeds, export_onnx, shape_of
from kdcli.data.views import EvaluationCut
from kdcli.errors import EnvironmentFault, InputError
from kdcli.models.build import Wanted, build
from kdcli.models.folding import fold
from kdcli.models.onnx import session
from kdcli.models.protocol import Model
from kdcli.models.timm import TimmModel


def views(network: Model, count: int = 4) -> Tensor:
    """Parts of real photographs, cut for a network: uint8 [N, 3, H, W]."""
    cut, found = EvaluationCut(network.spec), list(sample_photographs().values())
    return torch.stack([cut(found[i % 2].crop((40 * i, 10, 40 * i + 300, 260)), 0, i) for i in range(count)])


def small(name: str = "test_resnet", wanted: Wanted | None = None, **options: Any) -> Model:
    """A network of 64 pixels and random weights."""
    return build(name, wanted or Wanted(CLASSES), pretrained=False, size=64, **options).eval()


def folded() -> TimmModel:
    made = compacted("basic", network_of("basic"))
    return fold(made, masks(made)).eval()


def narrowed() -> TimmModel:
    made = compacted("vit channels", network_of("vit channels"))
    return fold(made, masks(made)).eval()


def transformer() -> Model:
    return small("test_vit")


def segmenter() -> Model:
    return small("test_vit", Wanted(CLASSES, "segmentation", "grid4"))


def searcher() -> Model:
    return small("test_resnet", Wanted(CLASSES, "retrieval", "bnneck24"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path, dict[str, Any]]:
    """A small network, its file, and what was told of it."""
    network, folder = small(), tmp_path_factory.mktemp("written")
    facts = export_onnx(network, folder)
    return network, folder / "model.onnx", facts


def answers_alone(file: Path, given: Tensor) -> Tensor:
    return torch.from_numpy(session(file).run(None, {"pixels": given.numpy()})[0])


@pytest.mark.parametrize(
    ("make", "inside"),
    [
        *((small, False), (small, True), (transformer, True), (folded, False), (segmenter, False)),
        (narrowed, False),
        *((searcher, False), (searcher, True)),
    ],
)
@torch.no_grad()
def test_the_file_answers_what_the_network_does(make: Any, inside: bool, tmp_path: Path) -> None:
    network = make()
    x = views(network)
    before, wanted = {k: v.clone() for k, v in network.state_dict().items()}, network(x)
    facts = export_onnx(network, tmp_path, inside=inside)
    found = check_onnx(tmp_path / "model.onnx", network, [x, x[:2]])
    assert found["difference"] <= 1e-4 * max(1, found["largest"])
    assert found["largest"] == pytest.approx(float(wanted.abs().max()), rel=1e-4)
    assert (found["pictures"], found["batches"]) == (6, [1, 2, 3, 4])
    for count in (1, 3):  # again, without the functions under test
        given = x[:count] if inside else network.prepare(x[:count]).contiguous()
        torch.testing.assert_close(
            answers_alone(tmp_path / "model.onnx", given), wanted[:count], atol=1e-3, rtol=1e-3
        )
    assert facts["input"] == {
        "name": "pixels",
        "dtype": "uint8" if inside else "float32",
        "shape": ["batch", 3, *network.spec.size],
    }
    assert facts["output"]["name"] == ("embedding" if make is searcher else "logits")
    assert facts["output"]["shape"] == ["batch", *wanted.shape[1:]]
    assert (facts["inside"], facts["opset"], facts["files"]) == (inside, 20, ["model.onnx"])
    assert facts["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert set(facts["versions"]) == {"onnx", "onnxscript", "onnxruntime"}
    assert [o.version for o in onnx.load(tmp_path / "model.onnx").opset_import if not o.domain] == [20]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(network(x), wanted)


def test_a_network_in_training_stays_in_training(tmp_path: Path) -> None:
    network = small().train()
    export_onnx(network, tmp_path)
    assert network.training
    assert all(module.training for module in network.modules())
    check_onnx(tmp_path / "model.onnx", network, [views(network)])


@pytest.mark.parametrize("inside", [False, True])
def test_a_grey_network(inside: bool, tmp_path: Path) -> None:
    network = TimmModel(
        body_of("test_resnet", in_chans=1), InputSpec((64, 64), (0.4,), (0.2,)), CLASSES, name="grey"
    )
    facts = export_onnx(network.eval(), tmp_path, inside=inside)
    assert facts["input"]["shape"] == ["batch", 3 if inside else 1, 64, 64]
    assert check_onnx(tmp_path / "model.onnx", network, [views(network)])["difference"] < 1e-4


def test_it_is_an_embedding_that_a_backbone_answers() -> None:
    assert embeds(searcher())
    assert embeds(TimmModel(body_of("test_resnet"), InputSpec((64, 64)), None, name="bare"))
    assert not embeds(small())
    assert not embeds(segmenter())


def test_the_same_network_gives_the_same_bytes_and_no_place_is_named(written: Any, tmp_path: Path) -> None:
    export_onnx(small(), tmp_path)
    one, other = written[1].read_bytes(), (tmp_path / "model.onnx").read_bytes()
    assert one == other
    assert b"stack_trace" not in one
    assert b".py" not in one
    assert b"pkg.torch" not in one


def test_an_older_opset(tmp_path: Path) -> None:
    facts = export_onnx(small(), tmp_path, opset=18)
    assert facts["opset"] == 18
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 18


def test_nothing_is_printed_not_even_of_what_cannot_be_traced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = small()
    export_onnx(network, tmp_path)
    check_onnx(tmp_path / "model.onnx", network, [views(network)])
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(
        InputError, match=r"odd \(an odd one\): it cannot be traced \(Could not guard on data"
    ):
        export_onnx(Odd(network, "branch"), tmp_path)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_weights_of_more_than_a_message_stand_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_SINGLE", 1000)
    network = small()
    facts = export_onnx(network, tmp_path)
    assert facts["files"] == ["model.onnx", "model.onnx.data"]
    weights = sum(p.nbytes for p in network.parameters())
    assert (tmp_path / "model.onnx.data").stat().st_size > 0.9 * weights
    assert (tmp_path / "model.onnx").stat().st_size < 0.2 * weights
    check_onnx(tmp_path / "model.onnx", network, [views(network)])


def test_facts_in_words(written: Any) -> None:
    facts = written[2]
    assert shape_of(facts, "input") == "float32 [batch, 3, 64, 64]"
    assert shape_of(facts, "output") == "float32 [batch, 3]"


# -- what is refused -----------------------------------------------------------------------------------------


class Odd(Model):
    """A network with something that cannot be written."""

    def __init__(self, inner: Model, what: str) -> None:
        super().__init__(inner.spec, inner.classes, name="odd")
        self.inner, self.what = inner, what

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "branch":
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))
        return torch.linalg.svdvals(x.flatten(2))

    architecture = property(lambda self: "an odd one")
    layout = property(lambda self: "kdcli")
    prepare = restore = call = tappable = tensor = save = lambda self, *_: self._refuse("use")  # type: ignore[assignment]


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        export_onnx(Odd(small(), "svd"), tmp_path)
    assert str(caught.value) == (
        "--export onnx: odd (an odd one): ONNX has no operator for aten._linalg_svd. Try --export torch."
    )
    assert not list(tmp_path.iterdir())


def test_another_network_is_told_from_the_one_that_was_written(written: Any) -> None:
    network, file, _ = written
    other = small(seed=1)
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime's answers differ from those of .* by"):
        check_onnx(file, other, [views(network)])
    assert compare(file, other, [views(network)])["difference"] > 1e-2
    with pytest.raises(InputError, match=r"answers \[4, 3\], and .* \[4, 2\]"):
        check_onnx(file, small(wanted=Wanted(["a", "b"])), [views(network)])


def test_not_a_number_is_above_every_bound(tmp_path: Path) -> None:
    network = small()
    with torch.no_grad():
        next(m for m in network.modules() if isinstance(m, nn.Linear)).weight.fill_(float("nan"))
    export_onnx(network, tmp_path)
    with pytest.raises(InputError, match=r"differ from those of .* by nan"):
        check_onnx(tmp_path / "model.onnx", network, [views(network)], bound=1e9)


def test_no_pictures_prove_nothing(written: Any) -> None:
    network, file, _ = written
    with pytest.raises(InputError, match="cannot be checked without pictures"):
        check_onnx(file, network, [])


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="ONNX Runtime does not load it"):
        session(tmp_path / "model.onnx")


def test_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a)
    )
    with pytest.raises(EnvironmentFault) as caught:
        export_onnx(small(), tmp_path)
    assert str(caught.value) == (
        "--export onnx: onnxscript is not installed. Install it with: pip install 'kdcli[export]'"
    )
