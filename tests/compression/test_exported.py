"""torch.export: the program answers what the network does, holds no pickle, and names no place."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from compacting import CLASSES, compacted, masks, network_of
from torch import Tensor

from kdcli.compression.exported import export_torch
from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.folding import fold
from kdcli.models.protocol import Model

TASKS = {
    "classification": Wanted(CLASSES),
    "segmentation": Wanted(CLASSES, "segmentation", "grid4"),
    "retrieval": Wanted(CLASSES, "retrieval", "bnneck24"),
}


def network(task: str = "classification", name: str = "test_resnet") -> Model:
    return build(name, TASKS[task], pretrained=False, size=64).eval()


def folded() -> Model:
    made = compacted("basic", network_of("basic"))
    return fold(made, masks(made)).eval()


def views(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "make",
    [*(lambda t=t: network(t) for t in TASKS), lambda: network(name="test_vit"), folded],
    ids=[*TASKS, "vit", "folded"],
)
@torch.no_grad()
def test_the_program_answers_what_the_network_does(make: Any, inside: bool, tmp_path: Path) -> None:
    own = make()
    facts = export_torch(own, tmp_path, inside=inside)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 3, 4):
        x = views(count, own.spec.size)
        wanted = own(x)
        found = program(x if inside else own.prepare(x))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert facts["bytes"] == (tmp_path / "model.pt2").stat().st_size
    dtype = "uint8" if inside else "float32"
    assert facts["input"] == {"dtype": dtype, "shape": ["batch", 3, *own.spec.size]}
    assert facts["versions"] == {"torch": torch.__version__}


def test_it_holds_no_pickle_and_names_no_place(tmp_path: Path) -> None:
    export_torch(network(), tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert [name for name, data in files.items() if name.endswith((".pt", ".pkl")) and data] == []
    stored = [json.loads(data)["config"] for name, data in files.items() if name.endswith("_config.json")]
    entries = [entry for config in stored for entry in config.values()]
    assert len(entries) > 50
    assert not any(entry["use_pickle"] for entry in entries)
    assert b"stack_trace" not in files["models/model.json"]
    assert b".py" not in files["models/model.json"]


def test_the_same_network_gives_the_same_bytes_and_stays_as_it_is(tmp_path: Path) -> None:
    own = network().train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    for name in "ab":
        (tmp_path / name).mkdir()
        export_torch(own, tmp_path / name)
    one, other = ((tmp_path / name / "model.pt2").read_bytes() for name in "ab")
    assert one == other
    assert all(module.training for module in own.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


def test_what_cannot_be_traced_is_refused_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    own = network()
    monkeypatch.setattr(type(own), "forward", lambda self, x: x if x.sum() > 0 else -x)
    with pytest.raises(InputError) as caught:
        export_torch(own, tmp_path)
    text = str(caught.value)
    assert text.startswith(
        "--export torch: test_resnet (test_resnet): it cannot be traced (Could not guard on"
    )
    assert text.endswith(" Leave --export out.")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
