"""Students of vision-language teachers: what they learn, what they are afterwards, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import QUIET, StopAfter, facts, flip, in_process, rows
from vision_language import WIDTH, tiny_clip, tiny_siglip

from kdcli.config import resolve
from kdcli.errors import InputError, Preempted, UsageError
from kdcli.models.build import build
from kdcli.models.texts import open_text_tower
from kdcli.stages import compress, distill, evaluate, probe

Run = Callable[..., Any]

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress"]
SAID = {
    "T-shirt/top": {"name": "shirt", "description": "short sleeves"},
    "Trouser": {"name": "trouser", "description": "blue"},
    "Pullover": {"name": "pullover", "description": ["long sleeves", "red"]},
    "Dress": {"name": "dress", "description": "long"},
}
VLM = {"method.name": "vlm-ood"}


def described(artifact: Path) -> dict[str, Any]:
    return json.loads((artifact / "texts.json").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zeroshot")
    tiny_clip(folder / "clip")
    tiny_clip(folder / "other", seed=9)
    tiny_siglip(folder / "siglip")
    (folder / "said.json").write_text(json.dumps(SAID))
    return folder


@pytest.fixture(scope="module")
def unlabelled(pictures: Path, home: Path) -> Path:
    """The test pictures in a folder, without their classes."""
    import datasets

    (home / "unlabelled").mkdir()
    for number, row in enumerate(datasets.load_from_disk(str(pictures))["test"]):
        row["image"].save(home / "unlabelled" / f"{number}.png")
    return home / "unlabelled"


@pytest.fixture(scope="module")
def teacher(home: Path, pictures: Path) -> Path:
    """The tiny CLIP with what is said of the four classes."""
    options = {"teacher": f"local-dir:{home / 'clip'}", "data.task": "zeroshot", "data.source": str(pictures)}
    options |= {"texts.file": str(home / "said.json"), "out": str(home / "teacher")}
    return probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path


@pytest.fixture
def train(home: Path, pictures: Path, teacher: Path, tmp_path: Path) -> Run:
    def run(out: str = "s", *, dry: bool = False, stop: Any = None, **more: Any) -> Any:
        options = {
            **{"student": "test_resnet", "from_scratch": True, "image_size": 32, "teacher": [str(teacher)]},
            **{"data.source": str(pictures), "optim.max_steps": 4, "optim.batch_size": 8, "log_every": 1},
            **{"out": str(tmp_path / out), "cache": str(home / "cache"), **more},
        }
        given = {key: value for key, value in options.items() if value is not None}
        plan = distill.plan(resolve(distill.Config, options=given), QUIET)
        return plan if dry else distill.run(plan, QUIET, stop=stop).path

    return run


def test_a_student_learns_the_teachers_space(train: Run, teacher: Path, home: Path, pictures: Path) -> None:
    plan = train("first", dry=True, cache=str(home / "own"), **VLM)
    assert plan.material.teacher_forwards == 32
    first = distill.run(plan, QUIET).path
    found = facts(first)
    assert (found["task"], found["classes"]) == ("zeroshot", CLASSES)
    assert found["texts"] == {**facts(teacher)["texts"], "scale": pytest.approx(1 / 0.07)}
    assert described(first)["texts"] == described(teacher)["texts"]
    assert torch.equal(*(build(str(path)).tensor("classifier") for path in (first, teacher)))
    terms = {"class", "distance", "contrast", "proximal"}
    logged = [row for row in rows(first) if "loss" in row]
    assert all(row["loss"] == pytest.approx(sum(row[name] for name in terms), rel=1e-4) for row in logged)
    again = train("again", student="test_vit", teacher=[str(first)], **VLM)  # its bank is a teacher's too
    assert described(again)["texts"] == described(teacher)["texts"]


def test_students_begin_with_random_weights_unless_others_are_asked_for(
    train: Run, weights: dict[str, Path]
) -> None:
    """The paper's do, since trained ones may know classes that are held back; others are labelled."""
    silent = train(dry=True, from_scratch=None, **VLM)
    assert silent.config.from_scratch
    (network,) = (silent.material.networks["student"],)
    assert network.trained == "random"
    assert any("from_scratch=false takes trained ones" in note for note in network.notes)
    own = train(dry=True, from_scratch=None, weights=str(weights["test_resnet"]), **VLM)
    assert not own.config.from_scratch
    notes = own.material.networks["student"].notes
    assert any("may hold classes that are held back here" in note for note in notes)
    first = train("first", **VLM)
    again = train(dry=True, from_scratch=None, student=str(first), **VLM)
    assert again.material.networks["student"].trained == "artifact"
    assert train(dry=True, from_scratch=True, **VLM).material.networks["student"].notes == ()


def test_a_second_run_asks_the_teacher_nothing(
    train: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcli.models.transformers import PictureTower

    asked: list[int] = []
    call = PictureTower.call
    cache = {"cache": str(home / "shared"), **VLM}

    def counted(self: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        asked.append(len(inputs[0]))
        return call(self, inputs, *args, **more)

    train("first", **cache)
    plan = train("second", dry=True, student="test_vit", **cache)
    fresh = train("third", dry=True, **{**cache, "cache": str(home / "fresh")})
    monkeypatch.setattr(PictureTower, "call", counted)
    distill.run(plan, QUIET)
    assert asked == []
    distill.run(fresh, QUIET)
    assert sum(asked) == 32


def test_pictures_without_labels_enter_two_terms(train: Run, unlabelled: Path) -> None:
    hidden = train("hidden", **VLM, **{"data.labels_per_class": 2})
    assert facts(hidden)["data"]["splits"]["train"]["labelled"] == 8
    plan = train("extra", dry=True, **VLM, **{"data.extra": [str(unlabelled)], "optim.batch_size": 16})
    assert len(plan.material.pool) == len(plan.data.split("train")) + 24
    assert int((plan.material.pool.labels >= 0).sum()) == len(plan.data.split("train"))
    distill.run(plan, QUIET)
    alone = train("alone", **VLM, **{"data.source": str(unlabelled)})
    assert (facts(alone)["classes"], facts(alone)["metrics"]) == (CLASSES, {})
    for row in (row for row in rows(alone) if "loss" in row):
        assert row["loss"] == pytest.approx(row["distance"] + row["contrast"], rel=1e-4)


def test_a_training_continues_bit_for_bit(train: Run) -> None:
    whole = train("whole", **VLM)
    with pytest.raises(Preempted):
        train("cut", stop=StopAfter(2), **VLM)
    cut = train("cut", **VLM)
    for name in ("model.safetensors", "head.safetensors", "texts.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_an_ordinary_student_of_a_zero_shot_teacher(train: Run, unlabelled: Path) -> None:
    made = {name: train(name, **{"method.name": name}) for name in ("kd", "task-specific")}
    made["alone"] = train("alone", **{"data.source": str(unlabelled)})
    for path in made.values():
        found = facts(path)
        assert (found["task"], found["layout"], found["classes"]) == ("classification", "timm", CLASSES)
        assert "texts" not in found
    assert facts(made["alone"])["metrics"] == {}
    texts = train("texts", **{"method.name": "kd", "data.task": "zeroshot"})
    assert facts(texts)["task"] == "zeroshot"


def test_a_network_is_aligned_with_texts_by_labels(train: Run, home: Path) -> None:
    more = {"method.name": "supervised", "teacher": None, "data.task": "zeroshot"}
    texts = {"texts.file": str(home / "said.json"), "texts.tower": str(home / "siglip")}
    found = facts(train(**more, **texts))
    assert found["texts"]["width"] == WIDTH
    assert found["texts"]["hash"] == open_text_tower(str(home / "siglip")).hash


def test_a_student_is_exported(train: Run, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    first = train(**VLM)
    options = {"student": str(first), "method.name": "none", "export": ["onnx"], "data.source": str(pictures)}
    plan = compress.plan(resolve(compress.Config, options={**options, "out": str(tmp_path / "o")}), QUIET)
    made = compress.run(plan, QUIET).path
    assert described(made) == described(first)
    assert facts(made)["texts"] == facts(first)["texts"]
    assert (made / "onnx" / "labels.txt").read_text().split("\n")[:4] == CLASSES
    options = {"models": [str(first), str(made / "onnx")], "data.source": str(pictures), "cost": False}
    options |= {"teacher": str(first), "out": str(tmp_path / "r")}  # of a zero-shot task, which is not named
    plan = evaluate.plan(resolve(evaluate.Config, options=options), QUIET)
    assert plan.data.task == "zeroshot"
    report = json.loads((evaluate.run(plan, QUIET).path / "report.json").read_text())
    own, form = report["models"]
    assert form["metrics"]["top1"] == own["metrics"]["top1"]
    assert any("answers with logits alone: its space is not compared" in note for note in report["notes"])


def test_a_text_tower_that_moved_is_named_anew(
    train: Run, teacher: Path, home: Path, pictures: Path, tmp_path: Path
) -> None:
    """Its texts, descriptions among them, stay what they are; another tower is refused."""
    moved = shutil.copytree(home / "clip", tmp_path / "moved")
    student = train(**VLM, **{"texts.tower": str(moved)})
    assert described(student)["texts"] == described(teacher)["texts"]
    assert described(student)["tower"] == {**described(teacher)["tower"], "name": str(moved)}

    def measured(tower: Path) -> Any:
        options = {"models": [str(student)], "data.source": str(pictures), "texts.tower": str(tower)}
        options |= {"cost": False, "out": str(tmp_path / f"report of {tower.name}")}
        return evaluate.plan(resolve(evaluate.Config, options=options), QUIET)

    (network,) = measured(moved).networks.values()
    assert network.bank is not None
    assert dict(zip(network.bank.classes, map(list, network.bank.texts))) == described(teacher)["texts"]
    with pytest.raises(InputError, match="is another text tower than the one whose space"):
        measured(home / "other")


def test_a_smaller_student_keeps_its_texts(train: Run, pictures: Path, tmp_path: Path) -> None:
    """Without a task being named: it is that of the student."""
    first = train(**VLM)
    options = {"student": str(first), "method.name": "magnitude", "data.source": str(pictures)}
    options |= {
        "method.target": 0.8,
        "optim.max_steps": 2,
        "optim.batch_size": 8,
        "out": str(tmp_path / "small"),
    }
    plan = compress.plan(resolve(compress.Config, options=options), QUIET)
    small = compress.run(plan, QUIET).path
    assert described(small)["texts"] == described(first)["texts"]
    assert build(str(small)).bank is not None


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({**VLM, "teacher": None}, UsageError, "method vlm-ood needs --teacher"),
        (
            {**VLM, "teacher": ["test_vit"]},
            UsageError,
            "zeroshot tells classes apart by texts: give a --teacher",
        ),
        ({**VLM, "data.task": "classification"}, UsageError, "method vlm-ood is for zeroshot"),
        ({**VLM, "texts.tower": "HOME/other"}, InputError, "is another text tower than the one whose space"),
        (
            {**VLM, "texts.templates": ["clip7"]},
            UsageError,
            r"texts\.templates is given, and the texts are those",
        ),
        (
            {**VLM, "texts.described": False},
            UsageError,
            r"texts\.described is given, and the texts are those",
        ),
        ({**VLM, "head": "linear"}, UsageError, "head=linear: zeroshot has one head only"),
        ({**VLM, "optim.label_smoothing": 0.1}, UsageError, r"optim\.label_smoothing: zeroshot has none"),
        ({**VLM, "optim.mixup": 0.1}, UsageError, "no mixup"),
        ({**VLM, "data.class_balance": "loss"}, UsageError, "--class-balance loss: zeroshot weighs no rows"),
        ({**VLM, "views.store": "top5"}, UsageError, r"views\.store is given, and topK keeps logits"),
        (
            {**VLM, "method.caption": 1.0},
            UsageError,
            r"method\.caption compares pictures with their captions",
        ),
        ({"method.name": "kd", "texts.file": "HOME/said.json"}, UsageError, "--texts: networks for class"),
        ({"method.name": "clip-kd", "data.extra": ["ALONE"]}, UsageError, "clip-kd reads the labels of all"),
        (
            {"method.name": "clip-kd", "data.source": "ALONE"},
            InputError,
            "clip-kd learns from labelled pictures",
        ),
        ({"method.name": "supervised", "data.source": "ALONE"}, InputError, "ALONE has no labels"),
        ({**VLM, "data.source": "ALONE", "data.labels_per_class": 2}, UsageError, "has no labels to hide"),
    ],
)
def test_what_a_training_refuses(
    train: Run, home: Path, unlabelled: Path, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    def real(value: Any) -> Any:
        if isinstance(value, list):
            return [real(one) for one in value]
        return (
            value.replace("HOME", str(home)).replace("ALONE", str(unlabelled))
            if isinstance(value, str)
            else value
        )

    with pytest.raises(error, match=real(message)):
        train(dry=True, **{key: real(value) for key, value in more.items()})


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("texts.json", "gone", "texts.json is missing from its artifact"),
        ("head.safetensors", "flip", "head.safetensors is damaged"),
    ],
)
def test_a_damaged_teacher_is_refused(
    train: Run, teacher: Path, tmp_path: Path, file: str, how: str, message: str
) -> None:
    copied = shutil.copytree(teacher, tmp_path / "copied")
    {"gone": os.remove, "flip": flip}[how](copied / file)
    with pytest.raises(InputError, match=message):
        train(dry=True, teacher=[str(copied)], **VLM)


def test_the_commands_in_a_row(
    home: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = ("--data", str(pictures)), ("--cache", str(tmp_path / "cache"))
    clip, task, texts = (
        f"local-dir:{home / 'clip'}",
        ("--task", "zeroshot"),
        ("--texts", str(home / "said.json")),
    )

    def run(*arguments: str, code: int = 0) -> str:
        found, answer, said = in_process(capsys, *arguments)
        assert found == code, said
        return answer.strip()

    taught = run("probe", "--teacher", clip, *task, *texts, *cache, "--out", str(tmp_path / "t"))
    steps = ("--max-steps", "3", "--batch-size", "8", "--image-size", "32", "--from-scratch", *cache)
    student = ("distill", "--teacher", taught, "--student", "test_resnet", "--method", "vlm-ood")
    learned = run(*student, *steps, *data, "--out", str(tmp_path / "s"))
    measured = ("eval", learned, "--teacher", taught, *task, *data, "--no-cost", "--split", "test")
    gate = ("--require", "spaces.relative_retrieval>=0")
    assert run(*measured, *gate, "--out", str(tmp_path / "r")) == str(tmp_path / "r")
    hard = ("--require", "spaces.degrees<=0")
    run(*measured, *hard, "--out", str(tmp_path / "h"), code=5)
    run(*measured, "--texts", "none.json", "--out", str(tmp_path / "n"), code=3)
