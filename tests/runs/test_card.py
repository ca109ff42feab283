"""The card says what the manifest knows, in a form that the hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdcli.artifacts.manifest import Manifest
from kdcli.models.build import Wanted, build
from kdcli.runs.card import write_card


def text(tmp_path: Path, classes: list[str], **facts: Any) -> str:
    network = build("test_resnet", Wanted(classes), pretrained=False, size=32)
    manifest = Manifest("model", "compress", {}, facts.pop("parents", []))
    manifest.facts = {"layout": network.layout, "versions": {"kdcli": "1.2"}, **facts}
    assert write_card(network, manifest, tmp_path) == "README.md"
    return (tmp_path / "README.md").read_text()


def test_what_a_model_is_made_of_and_how_good_it_was(tmp_path: Path) -> None:
    data = {
        "source": "cars/", "licence": "CC-BY: \"4.0\"", "fingerprint": "abcdef0123456789",
        "splits": {"train": {"samples": 1200}, "validation": {"samples": 80}},
    }  # fmt: skip
    card = text(
        tmp_path,
        ["cat", "dog"],
        data=data,
        metrics={"validation/top1": 0.75},
        selection="best on validation, step 7 of 9",
        method={"name": "magnitude", "target": 0.5},
        parents=[{"role": "teacher", "path": "runs/t", "hash": "0123456789abcdef"}],
        compression={"removed": 3, "flops": [4, 2], "parameters": [10, 1]},
        decisions={"student": ["its head was kept"]},
    )
    head = yaml.safe_load(card.split("---")[1])
    assert head == {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["kdcli"],
    }
    for line in (
        "# test_resnet: classification",
        "* 2 classes: cat, dog",
        "* Made by `kdcli compress` 1.2, method magnitude (target=0.5)",
        "* Teacher: runs/t (sha256 0123456789ab)",
        "* 3 channels removed: 50.0% of the FLOPs and 10.0% of the parameters are left",
        "* Student: its head was kept",
        "* Data: cars/ (train 1,200, validation 80), fingerprint abcdef012345",
        '* Licence of the data: CC-BY: "4.0"',
        "On validation pictures (best on validation, step 7 of 9):",
        "| validation/top1 | 0.7500 |",
    ):
        assert line in card.splitlines(), line


@pytest.mark.parametrize(("name", "side"), [("test_resnet", 64), ("rtdetr_r18vd", 160)])
def test_detectors_have_cards_too(tmp_path: Path, name: str, side: int) -> None:
    kind = "light,num_queries=12" if name == "test_resnet" else None
    wanted = Wanted(["cat"], task="detection", head=kind or "light", kind=kind)
    network = build(name, wanted, pretrained=False, size=side)
    manifest = Manifest("model", "compress", {}, [])
    manifest.facts = {"layout": network.layout, "versions": {"kdcli": "1.2"}}
    write_card(network, manifest, tmp_path)
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert head["pipeline_tag"] == "object-detection"


def test_little_is_known_of_a_network_as_it_came(tmp_path: Path) -> None:
    card = text(tmp_path, ["a", "b"])
    assert "Data" not in card
    assert "metric" not in card
    assert "license" not in card


@pytest.mark.parametrize("name", ["x\n# not a title", "\x1b[31mred", "a\u202eb"])
def test_names_cannot_write_lines_of_their_own(tmp_path: Path, name: str) -> None:
    card = text(tmp_path, [name, "b"])
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# test_resnet: classification"]
    assert not {"\x1b", "\u202e"} & set(card)
