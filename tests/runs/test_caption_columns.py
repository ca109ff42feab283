"""Captions of training pictures: by path, embedded once by the bank's own tower; refused where they lack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toolbox import QUIET, encode, facts, rows
from vision_language import tiny_clip

from kdcli.config import resolve
from kdcli.errors import InputError, UsageError
from kdcli.models.texts import open_text_tower
from kdcli.stages import distill, probe

NAMES = ("bag", "boot", "coat")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, six of each class, a teacher, and captions of all of them."""
    root = tmp_path_factory.mktemp("captions")
    rng = np.random.default_rng(0)
    captions = {}
    for name in NAMES:
        for number in range(6):
            path = Path("train", name, f"{number}.png")
            (root / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "data" / path).write_bytes(encode(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)))
            captions[path.as_posix()] = f"a {'red' if number % 2 else 'blue'} {name}"
    (root / "captions.json").write_text(json.dumps(captions))
    tiny_clip(root / "clip")
    options = {
        "teacher": f"local-dir:{root / 'clip'}",
        "data.source": str(root / "data"),
        "data.task": "zeroshot",
    }
    made = probe.plan(resolve(probe.Config, options={**options, "out": str(root / "teacher")}), QUIET)
    probe.run(made, QUIET)
    return root


def plan(place: Path, folder: Path, **more: Any) -> Any:
    options: dict[str, Any] = {
        "method.name": "vlm-ood",
        "method.caption": 1.0,
        "data.captions": str(place / "captions.json"),
        "teacher": str(place / "teacher"),
        "student": "test_resnet",
        "from_scratch": True,
        "image_size": 32,
        "data.source": str(place / "data"),
        "data.validation_fraction": 0.34,
        "optim.max_steps": 3,
        "optim.batch_size": 6,
        "log_every": 1,
        "out": str(folder / "out"),
        "cache": str(folder / "cache"),
        **more,
    }
    kept = {key: value for key, value in options.items() if value != "absent"}
    return distill.plan(resolve(distill.Config, options=kept), QUIET)


def test_each_row_is_beside_its_own_caption(place: Path, tmp_path: Path) -> None:
    """Whatever the order of the pool, and with pictures that have none because they have no label."""
    made = plan(place, tmp_path)
    material = made.material
    said = json.loads((place / "captions.json").read_text())
    index = torch.tensor([5, 0, 3])
    batch = {"y": torch.from_numpy(material.pool.labels[index.numpy()]), "index": index}
    found = material.targets.plain(batch)["caption"]
    tower = open_text_tower(f"local-dir:{place / 'clip'}")
    for number, row in zip(index.tolist(), found):
        (part,) = material.pool.parts
        path = part.table[int(part.rows[number])]["image"]["path"]
        text = said[Path(path).relative_to(place / "data").as_posix()]
        own = torch.nn.functional.normalize(tower.encode([text]).embeddings, dim=1)[0]
        torch.testing.assert_close(row, own, atol=1e-6, rtol=0)
    assert len(set(material.targets.texts)) == len(material.targets.texts) <= 6


def test_they_are_learned_from_and_embedded_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = distill.run(plan(place, tmp_path), QUIET).path
    logged = [row for row in rows(out) if "loss" in row]
    assert all(row["caption"] > 0 for row in logged)
    assert facts(out)["method"]["caption"] == 1.0
    monkeypatch.setattr("kdcli.models.texts.TextTower.encode", None)  # the cache has them
    again = distill.run(plan(place, tmp_path, out=str(tmp_path / "again")), QUIET).path
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_other_captions_make_another_run(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    shutil.copy(place / "captions.json", file)
    first = plan(place, tmp_path, **{"data.captions": str(file)}).target.identity
    file.write_text(file.read_text().replace("blue", "small"))
    assert plan(place, tmp_path, **{"data.captions": str(file)}).target.identity != first


def test_what_does_not_go_together_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"give some, --set data\.captions=FILE, or leave it at 0"):
        plan(place, tmp_path, **{"data.captions": "absent"})
    with pytest.raises(
        UsageError, match=r"data\.captions is given, and no term of method vlm-ood reads captions"
    ):
        plan(place, tmp_path, **{"method.caption": 0.0})
    with pytest.raises(UsageError, match=r"data\.captions is for zeroshot"):
        plan(place, tmp_path, **{"method.name": "kd", "method.caption": "absent"})
    said = json.loads((place / "captions.json").read_text())
    lacking = tmp_path / "lacking.json"
    lacking.write_text(json.dumps({k: v for k, v in said.items() if "/bag/" not in k}))
    with pytest.raises(
        InputError, match=r"lacking\.json has no caption of train/bag/\d\.png and \d more: each"
    ):
        plan(place, tmp_path, **{"data.captions": str(lacking)})
    others = tmp_path / "others.json"
    others.write_text(json.dumps({f"other/{k}": v for k, v in said.items()}))
    with pytest.raises(InputError, match="these are captions of other pictures, of none of the"):
        plan(place, tmp_path, **{"data.captions": str(others)})
