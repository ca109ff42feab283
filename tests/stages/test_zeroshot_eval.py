"""Zero-shot classification measured: candidates, spaces, other texts, classes that training never sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, facts, in_process, measured
from vision_language import tiny_clip, tiny_siglip

from kdcli.config import resolve
from kdcli.data.open_classes import read_open_classes
from kdcli.data.views import evaluation_view
from kdcli.errors import InputError, UsageError
from kdcli.metrics import spaces
from kdcli.models.build import build
from kdcli.models.texts import open_text_tower
from kdcli.stages import distill, evaluate, probe

Run = Callable[..., Any]

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress"]
MORE = ["bag", "boot", "cat", "dog", "bird", "coat"]
ZERO = {"data.task": "zeroshot"}


def written(file: Path, said: Any) -> str:
    file.write_text(json.dumps(said))
    return str(file)


def report_of(models: list[Path], pictures: Path, out: Path, **more: Any) -> dict[str, Any]:
    split = {} if "split" in more else {"split": "test"}
    return json.loads(
        (measured(models, pictures, out, **ZERO, **split, **more).path / "report.json").read_text()
    )


def embedded(model: Path, pictures: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, D] of the test pictures by plain means, one picture at a time, and their labels."""
    import datasets

    table, network = datasets.load_from_disk(str(pictures))["test"], build(str(model)).eval()
    views = [evaluation_view(row["image"].convert("RGB"), network.spec) for row in table]
    with torch.no_grad():
        found = [network.call([network.prepare(view[None])], ["embedding"])["embedding"] for view in views]
    return torch.cat(found), torch.tensor(table["label"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zeroshot")
    tiny_clip(folder / "clip")
    tiny_clip(folder / "other", seed=9)
    tiny_siglip(folder / "siglip")
    return folder


@pytest.fixture(scope="module")
def probed(home: Path, pictures: Path) -> Run:
    def run(name: str, **more: Any) -> Path:
        options = {"teacher": f"local-dir:{home / 'clip'}", **ZERO, "out": str(home / name), **more}
        return probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path

    return run


@pytest.fixture(scope="module")
def train(home: Path, pictures: Path, teacher: Path) -> Run:
    def run(name: str, **more: Any) -> Path:
        options = {
            **{"student": "test_resnet", "from_scratch": True, "image_size": 32, "teacher": [str(teacher)]},
            **{"method.name": "vlm-ood", "data.source": str(pictures), "optim.max_steps": 4},
            **{"optim.batch_size": 8, "out": str(home / name), "cache": str(home / "cache"), **more},
        }
        return distill.run(distill.plan(resolve(distill.Config, options=options), QUIET), QUIET).path

    return run


@pytest.fixture(scope="module")
def teacher(probed: Run, pictures: Path) -> Path:
    """The tiny CLIP and what the names of the four classes say."""
    return probed("teacher", **{"data.source": str(pictures)})


@pytest.fixture(scope="module")
def student(train: Run) -> Path:
    return train("student")


# -- candidates ----------------------------------------------------------------------------------------------


def test_only_classes_of_the_data_are_candidates(
    probed: Run, pictures: Path, home: Path, tmp_path: Path
) -> None:
    said = written(home / "ten.json", dict.fromkeys([*MORE[:3], *CLASSES[::-1], *MORE[3:]], ""))
    words = {name: name.lower() for name in json.loads(Path(said).read_text())}
    ten = probed("ten", **{"texts.file": written(home / "ten.json", words)})
    report = report_of([ten], pictures, tmp_path / "r")
    embeddings, y = embedded(ten, pictures)
    network = build(str(ten))
    assert network.classes is not None
    unit = torch.nn.functional.normalize(embeddings) @ network.tensor("classifier").t()
    among_ten = unit.argmax(1)
    of_data = [network.classes.index(name) for name in CLASSES]
    answers = unit[:, of_data].argmax(1)
    assert (among_ten != torch.tensor(of_data)[answers]).any()  # else the candidates would not matter
    (model,) = report["models"]
    assert report["data"]["classes"] == CLASSES
    assert "absent" not in report["data"]
    assert model["metrics"]["top1"] == pytest.approx((answers == y).double().mean().item())
    each = [(answers[y == c] == c).double().mean() for c in range(4)]
    assert model["metrics"]["mean_per_class"] == pytest.approx(float(sum(each)) / 4)
    assert model["texts"]["count"] == 4
    auto = measured([ten], pictures, tmp_path / "auto", split="test").path
    plain = json.loads((auto / "report.json").read_text())["models"][0]["metrics"]
    assert plain["top1"] == model["metrics"]["top1"]


def test_data_with_a_class_that_the_bank_lacks(
    probed: Run, pictures: Path, home: Path, tmp_path: Path
) -> None:
    two = probed(
        "two", **{"texts.file": written(home / "two.json", {"Dress": "dress", "Trouser": "trouser"})}
    )
    with pytest.raises(InputError, match="its bank of texts has no text for 'T-shirt/top', 'Pullover'"):
        report_of([two], pictures, tmp_path / "r")


# -- spaces --------------------------------------------------------------------------------------------------


def test_spaces_are_those_of_embeddings_by_hand(
    student: Path, teacher: Path, pictures: Path, tmp_path: Path
) -> None:
    gates = ["spaces.relative_retrieval>=0", "spaces.text_order2<=1.5", "spaces.degrees<=0"]
    gated = {**ZERO, "split": "test", "teacher": str(teacher), "require": gates}
    failed = measured([student], pictures, tmp_path / "gates", **gated).failed
    assert [text.split()[:2] for text in failed] == [["student:", "spaces.degrees<=0"]]
    gated.pop("require")
    result = measured([student, teacher], pictures, tmp_path / "r", **gated)
    report = json.loads((result.path / "report.json").read_text())
    ours, theirs = (embedded(path, pictures)[0] for path in (student, teacher))
    texts = build(str(teacher)).tensor("classifier")
    mine, itself = report["models"]
    assert itself["spaces"]["relative_retrieval"] == 1
    assert itself["spaces"]["squared_distance"] == 0
    assert mine["spaces"].keys() == spaces.figures(ours, theirs, texts).keys()
    for name, value in spaces.figures(ours, theirs, texts).items():
        assert mine["spaces"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    s, t = (torch.nn.functional.normalize(one.double()) for one in (ours, theirs))
    nearest = [
        int(min(range(len(t)), key=lambda j: float((t[j] - s[i]).square().sum()))) for i in range(len(s))
    ]
    assert mine["spaces"]["relative_retrieval"] == pytest.approx(
        np.mean([i == j for i, j in enumerate(nearest)])
    )
    assert mine["spaces"]["squared_distance"] == pytest.approx(
        (2 - 2 * (s * t).sum(1)).mean().item(), rel=1e-4
    )
    assert report["spaces"]["pictures"] == 24
    assert report["spaces"]["chance"]["relative_retrieval"] == pytest.approx(1 / 24)
    page = (result.path / "report.html").read_text()
    assert "Spaces of student and teacher" in page
    assert "Own picture (M_rel)" in page
    assert "The singular values of the texts less their mean" in page


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "siglip",
            "student embeds pictures in 16 numbers and the teacher in 24: their spaces are not compared",
        ),
        ("other", "student and the teacher embed pictures in spaces of other text towers"),
    ],
)
def test_spaces_that_are_not_compared(
    probed: Run, student: Path, pictures: Path, home: Path, tmp_path: Path, name: str, why: str
) -> None:
    other = probed(f"of {name}", teacher=f"local-dir:{home / name}", **{"data.source": str(pictures)})
    report = report_of([student], pictures, tmp_path / "r", teacher=str(other))
    assert "spaces" not in report["models"][0]
    assert "spaces" not in report
    assert any(note.startswith(why) for note in report["notes"])


def test_a_gate_of_spaces_takes_the_task_and_a_teacher(student: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it takes --task zeroshot, --teacher, and a network"):
        report_of([student], pictures, tmp_path / "g", require=["spaces.degrees>=0"])


# -- other texts ---------------------------------------------------------------------------------------------


def test_other_texts_are_asked(
    student: Path, teacher: Path, pictures: Path, home: Path, tmp_path: Path
) -> None:
    said = {name: {"name": word, "description": "red"} for name, word in zip(CLASSES, MORE)}
    file = {"texts.file": written(home / "said.json", {"zebra": {"name": "cat", "description": "a"}, **said})}
    report = report_of([student], pictures, tmp_path / "r", teacher=str(teacher), **file)
    assert report["data"]["classes"] == CLASSES
    texts = [f"a photo of {word} . red" for word in MORE[:4]]
    rows = torch.nn.functional.normalize(open_text_tower(str(home / "clip")).encode(texts).embeddings)
    embeddings, y = embedded(student, pictures)
    answers = (torch.nn.functional.normalize(embeddings) @ rows.t()).argmax(1)
    assert report["models"][0]["metrics"]["top1"] == pytest.approx((answers == y).double().mean().item())
    assert report["models"][0]["texts"]["cosine"] == pytest.approx(spaces.mean_cosine(rows), abs=1e-5)
    theirs = embedded(teacher, pictures)[0]
    wanted = spaces.figures(embeddings, theirs, rows)["text_order2"]
    assert report["models"][0]["spaces"]["text_order2"] == pytest.approx(wanted, abs=1e-5)


def test_a_scale_alone_leaves_the_texts(probed: Run, pictures: Path, home: Path, tmp_path: Path) -> None:
    said = {name: {"name": word, "description": "red"} for name, word in zip(CLASSES, MORE)}
    model = probed("said", **{"texts.file": written(home / "s.json", said)})
    plain = report_of([model], pictures, tmp_path / "a")["models"][0]
    scaled = report_of([model], pictures, tmp_path / "b", **{"texts.scale": 0.5})["models"][0]
    assert scaled["texts"] == plain["texts"]
    assert scaled["metrics"]["top1"] == plain["metrics"]["top1"]
    assert scaled["metrics"]["nll"] < plain["metrics"]["nll"]


@pytest.mark.parametrize(
    ("model", "more", "error", "message"),
    [
        ("student", {"texts.tower": "other"}, InputError, "is another text tower than the one whose space"),
        ("student", {"texts.file": "lack.json"}, InputError, "nothing is said about 'Trouser', 'Pullover'"),
        ("student", {"texts.file": "none.json"}, InputError, "cannot read .*none.json"),
        ("raw", {}, InputError, "compares pictures with no texts. kdcli probe --task zeroshot makes a bank"),
        ("raw", {"texts.file": "lack.json"}, InputError, "only such a model can be asked so. kdcli probe"),
        ("classifier", {}, InputError, "does classification, the data is for zeroshot"),
        (
            "classifier",
            {"texts.file": "lack.json", "data.task": "classification"},
            UsageError,
            "--texts: networks",
        ),
        ("student", {"data.captions": "c.json"}, UsageError, "only kdcli distill reads captions"),
        ("student", {"window": 8}, UsageError, "window: only masks"),
        ("student", {"rerank": True}, UsageError, "rerank"),
        ("student", {"data.class_balance": "sampler"}, UsageError, "nothing is trained here"),
    ],
)
def test_what_a_measurement_refuses(
    student: Path,
    home: Path,
    pictures: Path,
    probed: Run,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    model: str,
    more: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    written(home / "lack.json", {"T-shirt/top": "shirt", "Bag": "bag", "Dress": "boot"})
    more = {key: str(home / value) if key.startswith("texts.") else value for key, value in more.items()}
    name = str(student if model == "student" else f"local-dir:{home / 'clip'}")
    if model == "classifier":
        name = str(request.getfixturevalue("normed"))
    options = {"models": [name], "data.source": str(pictures), "split": "test", "cost": False, **ZERO, **more}
    with pytest.raises(error, match=message):
        evaluate.plan(resolve(evaluate.Config, options={**options, "out": str(tmp_path / "r")}), QUIET)


# -- classes that training never sees ------------------------------------------------------------------------


@pytest.fixture
def division(home: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    file = home / "split.json"
    arguments = ("classes", "split", "--data", str(pictures), "--out", str(file), "--quiet")
    code, answer, said = in_process(capsys, *arguments)
    assert (code, answer.strip()) == (0, str(file)), said
    return file


def test_unseen_classes_are_no_candidates_and_in_no_training(
    train: Run, probed: Run, teacher: Path, division: Path, pictures: Path, tmp_path: Path
) -> None:
    drawn, opened = read_open_classes(division), {"data.open_classes": str(division)}
    halves = {half: list(names) for half, names in drawn.classes.items()}
    assert not set(halves["id"]) & set(halves["ood"])
    learned = train("open", **opened)
    assert facts(learned)["classes"] == halves["id"]
    assert build(str(learned)).tensor("classifier").shape == (2, 16)
    blind = probed("blind", **{"data.source": str(pictures), **opened})  # knows no unseen class at all
    assert facts(blind)["classes"] == halves["id"]
    alike = train("alike", teacher=[str(blind)], **opened)
    words = {"texts.file": written(tmp_path / "words.json", dict(zip(halves["id"], MORE)))}
    other = train("differing", **opened, **words)
    weights = [load_file(path / "model.safetensors") for path in (learned, alike, other)]
    far = [max(float((mine[n] - w).abs().max()) for n, w in weights[0].items()) for mine in weights[1:]]
    assert far[0] < 3e-5 < 1e-4 < far[1]  # a text's embedding is rounded by what is padded beside it
    for split in ("id", "ood"):
        report = report_of([learned], pictures, tmp_path / split, split=split, teacher=str(teacher), **opened)
        assert report["data"]["classes"] == halves[split]
        assert report["data"]["samples"] == len(drawn.splits[split])
        assert report["models"][0]["texts"]["count"] == 2
    with pytest.raises(InputError, match="its bank of texts has no text for"):
        report_of([alike], pictures, tmp_path / "lack", split="ood", **opened)
    said = {"texts.file": written(tmp_path / "all.json", {name: name for name in CLASSES})}
    asked = report_of([alike], pictures, tmp_path / "asked", split="ood", **opened, **said)
    assert asked["data"]["classes"] == halves["ood"]
    assert asked["models"][0]["metrics"]["top1"] == report["models"][0]["metrics"]["top1"]
    with pytest.raises(UsageError, match=r"has no split 'test' where .* divides its classes"):
        report_of([learned], pictures, tmp_path / "test", split="test", **opened)


def test_few_shot_pictures_are_learned_and_never_measured(
    train: Run, division: Path, pictures: Path, tmp_path: Path
) -> None:
    drawn, opened = read_open_classes(division), {"data.open_classes": str(division)}
    few = {**opened, "data.shots": 2}

    def ids(split: str, **more: Any) -> set[str]:
        options = {
            "models": [str(learned)],
            "data.source": str(pictures),
            "split": split,
            "cost": False,
            **more,
        }
        options |= {**ZERO, "out": str(tmp_path / "x")}
        plan = evaluate.plan(resolve(evaluate.Config, options=options), QUIET)
        return {f"{one:016x}" for one in plan.samples.ids.tolist()}

    learned = train("few", **few)
    assert facts(learned)["classes"] == [*drawn.classes["id"], *drawn.classes["ood"]]
    trained = ids("train", **few) | ids("validation", **few)
    shots = trained & set(drawn.splits["ood"])
    assert len(shots) == 4
    assert trained - shots == set(drawn.splits["train"])
    assert ids("ood", **few) == set(drawn.splits["ood"]) - shots
    assert not ids("id", **few) & trained
    honest = report_of([learned], pictures, tmp_path / "honest", split="ood", **few)
    leaking = report_of([learned], pictures, tmp_path / "leaking", split="ood", **opened)
    assert [r["data"]["samples"] for r in (honest, leaking)] == [40, 44]
    told = [any("learned from 2 pictures of each unseen" in n for n in r["notes"]) for r in (honest, leaking)]
    assert told == [False, True]
