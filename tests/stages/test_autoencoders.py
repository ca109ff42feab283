"""A masked autoencoder from pretraining to two stages of G2SD, as commands; one of MAE's files by probe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from toolbox import QUIET, autoencoder, facts, in_process, measured, rows
from torch import Tensor

from kdcli.artifacts.model import DECODER, read_tensors
from kdcli.config import resolve
from kdcli.errors import InputError, UsageError
from kdcli.models.autoencoder import Decoder
from kdcli.models.build import build
from kdcli.stages import distill, probe

SMALL = ("--image-size", "32", "--max-steps", "4", "--batch-size", "8", "--quiet")
VIT = ("--student", "test_vit,patch_size=8", "--from-scratch", *SMALL)


def test_from_pixels_to_a_student_that_answers(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    """mae → g2sd-generic → probe --finetune of the teacher → g2sd-specific → eval, each by its command."""
    data = ("--data", str(pictures), "--cache", str(tmp_path / "cache"))

    def run(*arguments: str, out: str) -> Path:
        code, answer, said = in_process(capsys, *arguments, *data, "--out", str(tmp_path / out))
        assert code == 0, said
        return Path(answer.strip())

    decoder = ("--set", "method.decoder=32", "--set", "method.decoder_depth=2")
    mae = run("distill", "--method", "mae", *VIT, *decoder, out="mae")
    assert facts(mae)["task"] == "representation"
    assert set(DECODER) <= {file.name for file in mae.iterdir()}
    more = ("--set", "method.teacher_block=1", "--teacher", str(mae))
    generic = run("distill", "--method", "g2sd-generic", *more, *VIT, *decoder, out="generic")
    assert not set(DECODER) & {file.name for file in generic.iterdir()}, "the encoder alone"
    assert all(-5 < row["explained"] < 1 for row in rows(generic) if "explained" in row)
    tuned = ("--features", "pooled", "--epochs", "2", "--finetune", "--set", "optim.max_steps=2")
    teacher = run("probe", "--teacher", str(mae), *tuned, "--quiet", out="teacher")
    assert any("is left out" in note for note in facts(teacher)["decisions"]["teacher"])
    both = ("--teacher", str(teacher), "--student", str(generic), *SMALL[2:])
    student = run("distill", "--method", "g2sd-specific", *both, out="student")
    made = measured([student, teacher], pictures, tmp_path / "report")
    report = json.loads((made.path / "report.json").read_text())
    assert [model["metrics"].keys() >= {"top1", "nll"} for model in report["models"]] == [True, True]


def test_positions_of_a_new_student_are_fixed(pictures: Path, tmp_path: Path) -> None:
    options = {
        **{"method.name": "mae", "student": "test_vit", "from_scratch": True, "image_size": 32},
        **{"method.decoder": 32, "method.decoder_depth": 1, "data.source": str(pictures)},
        **{"optim.max_steps": 2, "optim.batch_size": 8, "out": str(tmp_path / "out")},
    }
    plan = distill.plan(resolve(distill.Config, options=options), QUIET)
    assert isinstance(plan, distill.Plan)
    before = plan.material.networks["student"].body.pos_embed.clone()  # type: ignore[union-attr, operator]
    path = distill.run(plan, QUIET).path
    assert torch.equal(read_tensors(path / "model.safetensors")["pos_embed"], before)


def official(network: Any, decoder: Decoder) -> dict[str, Tensor]:
    found = {n: t for n, t in network.body.state_dict().items() if not n.startswith("head")}
    plain = {"mask_token": "mask_token", "pos_embed": "decoder_pos_embed"}
    return found | {plain.get(n, f"decoder_{n}"): t for n, t in decoder.state_dict().items()}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Pickled checkpoints as the authors of MAE write them: whole, and of the encoder alone."""
    torch.manual_seed(0)
    network = build("test_vit", pretrained=False, size=32)
    tensors = official(network, Decoder(64, 32, 3, 0, (2, 2), 3 * 16 * 16))
    torch.save({"model": tensors}, tmp_path / "full.pth")
    torch.save({"model": {n: t for n, t in tensors.items() if "decoder" not in n and n != "mask_token"}},
               tmp_path / "encoder.pth")  # fmt: skip
    return {name: tmp_path / f"{name}.pth" for name in ("full", "encoder")}


def kept(file: Path, out: Path, **more: Any) -> Path:
    options = {
        **{"teacher": "test_vit", "weights": str(file), "image_size": 32, "head": "decoder", "out": str(out)},
        **more,
    }
    return probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path  # type: ignore[arg-type]


def test_a_file_with_its_decoder_becomes_a_teacher(files: dict[str, Path], tmp_path: Path) -> None:
    path = kept(files["full"], tmp_path / "mae")
    network = build(str(path))
    assert network.decoder is not None
    assert network.decoder.depth == 3
    stored = torch.load(files["full"], weights_only=True)["model"]
    assert torch.equal(network.decoder.mask_token, stored["mask_token"])
    assert timm.create_model(f"local-dir:{path}", pretrained=True).num_classes == 0
    assert facts(path)["task"] == "representation"


def test_a_file_of_the_encoder_alone_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoder\.pth has no decoder: .*Take the file with both"):
        kept(files["encoder"], tmp_path / "mae")
    assert not (tmp_path / "mae").exists()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"data.source": "somewhere"}, UsageError, "--data is given, and --head decoder reads no pictures"),
        ({"finetune": True}, UsageError, "--finetune trains a fitted head further; leave out --head decoder"),
        (
            {"statistics.record": True},
            UsageError,
            r"--statistics needs training pictures \(no --head decoder\)",
        ),
    ],
)
def test_what_a_kept_decoder_does_not_need(
    given: dict[str, Any], error: type[Exception], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        kept(files["full"], tmp_path / "mae", **given)


def generic_plan(teacher: Path, pictures: Path, out: Path, **more: Any) -> Any:
    options = {
        **{
            "method.name": "g2sd-generic",
            "teacher": str(teacher),
            "student": "test_vit",
            "from_scratch": True,
        },
        **{"image_size": 32, "method.decoder": 32, "method.teacher_block": 2, "data.source": str(pictures)},
        **{"optim.max_steps": 2, "optim.batch_size": 8, "out": str(out)},
        **more,
    }
    return distill.plan(resolve(distill.Config, options=options), QUIET)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": 64}, "divides a picture into 2x2 patches, and another network of this run into 16"),
        ({"student": "test_vit,patch_size=8"}, "divides a picture into 2x2 patches, and another network"),
        ({"student": "test_resnet"}, "has no patches that could be hidden from it"),
        ({"method.teacher_block": 4}, r"no 'decoder4': the decoder of .* has blocks 1 to 3"),
        ({"method.mask_ratio": 0.9}, "a mask of 0.9 shows 0 of 4 patches"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_plan(
    given: dict[str, Any], message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        generic_plan(autoencoder(tmp_path / "mae"), pictures, tmp_path / "out", **given)


def test_a_teacher_without_its_decoder_is_refused(pictures: Path, probed: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no decoder, and 'decoder2' is a block of one"):
        generic_plan(probed("test_vit"), pictures, tmp_path / "out")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("patch_size", "test_vit,patch_size: KEY=VALUE is wanted behind a name"),
        ("img_size=64", "--image-size says it"),
        ("num_classes=3", "the data say it"),
        ("features_only=true", "it makes a network of maps"),
        ("patch_size={}", "a number, a word, true or false is wanted"),
        ("depth=2,depth=3", "depth is given a second time"),
        ("embed_dim=99999999", "beyond what a network has"),
    ],
)
def test_arguments_of_a_student_that_are_refused(
    argument: str, message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        generic_plan(
            autoencoder(tmp_path / "mae"), pictures, tmp_path / "out", student=f"test_vit,{argument}"
        )


def test_an_argument_that_timm_has_not_is_bad_input(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot build test_vit,colour=red: .*colour"):
        generic_plan(autoencoder(tmp_path / "mae"), pictures, tmp_path / "out", student="test_vit,colour=red")
