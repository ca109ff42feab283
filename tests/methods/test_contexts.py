"""Contexts learned beside a student: end to end, bit for bit, in artifacts, with texts of other classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, StopAfter, facts, measured, method_options, rows
from vision_language import tiny_clip

from kdcli.artifacts.store import open_output
from kdcli.config import resolve
from kdcli.engine.turn import TurnModule
from kdcli.errors import InputError, Preempted, UsageError
from kdcli.models.banks import TextBank, mean_of_texts
from kdcli.models.build import Wanted, build
from kdcli.models.prompts import PromptedTexts, encode
from kdcli.models.texts import open_text_tower
from kdcli.runs.banks import bank_of_artifact
from kdcli.stages import distill

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress")
SAID = ("t shirt", "trouser", "pullover . it has long sleeves", "dress")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("contexts") / "clip")


@pytest.fixture(scope="module")
def taught(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights that compares pictures with texts, which the tower has embedded."""
    from kdcli.artifacts.manifest import Manifest

    tower = open_text_tower(str(clip))
    texts = tuple((f"a photo of a {said}",) for said in SAID)
    rows_ = mean_of_texts(tower.encode([text for (text,) in texts]).embeddings, [1] * len(texts))
    bank = TextBank(CLASSES, rows_, texts, str(clip), tower.hash, 20.0, ("a photo of a {}",))
    wanted = Wanted(list(CLASSES), task="zeroshot", bank=bank)
    network = build("test_resnet", wanted, pretrained=False, size=32, seed=1)
    path = tmp_path_factory.mktemp("contexts") / "teacher"
    with open_output(path, {"a": 1}) as output:
        assert output is not None
        names = network.save(output.partial)
        manifest = Manifest("model", "probe", {"a": 1})
        manifest.facts = {"task": "zeroshot", "classes": network.classes, "layout": network.layout}
        output.commit(manifest, names)
    return path


@pytest.fixture
def plan(
    pictures: Path, probed: Callable[[str], Path], taught: Path, tmp_path: Path
) -> Callable[..., distill.Plan]:
    def make(**more: Any) -> distill.Plan:
        given = {"method.contexts": 2, "teacher": str(taught), **more}
        options = method_options("vlm-ood", pictures, probed, tmp_path, **given)
        found = distill.plan(resolve(distill.Config, options=options), QUIET)
        assert isinstance(found, distill.Plan)
        return found

    return make


def rederived(clip: Path, contexts: torch.Tensor, texts: tuple[str, ...]) -> torch.Tensor:
    return mean_of_texts(encode(open_text_tower(str(clip)), texts, contexts).embeddings, [1] * len(texts))


def test_contexts_learn_and_are_written_with_the_bank_that_they_make(
    plan: Callable[..., distill.Plan], clip: Path
) -> None:
    made = plan(**{"optim.lr": 0.01, "evaluate_steps": 2})
    (term,) = (term for term in made.method.turns[0].terms if term.name == "proximal")
    assert "s:classifier" in term.args
    start = made.material.networks["student"].head.linear.contexts.detach().clone()  # type: ignore[union-attr]
    out = distill.run(made, QUIET).path
    assert [row["step"] for row in rows(out) if "loss" in row] == [1, 2, 3, 4]
    assert facts(out)["method"]["contexts"] == 2
    for folder in (out, out / "last"):
        contexts = load_file(folder / "prompts.safetensors")["contexts"]
        assert contexts.shape == (2, 24)
        assert (contexts - start).abs().max() > 1e-4
        head = load_file(folder / "head.safetensors")
        assert set(head) == {"linear.scale", "linear.weight", "neck.bias", "neck.weight"}
        torch.testing.assert_close(head["linear.weight"], rederived(clip, contexts, SAID))
        described = json.loads((folder / "texts.json").read_text())
        assert (described["contexts"], described["templates"]) == (2, [])
        assert described["texts"]["Pullover"] == ["pullover . it has long sleeves"]
    again = build(str(out))
    assert again.bank is not None
    assert again.bank.contexts is not None
    assert len(again.bank.contexts) == 2


def test_what_is_judged_is_the_learned_bank(
    plan: Callable[..., distill.Plan], pictures: Path, tmp_path: Path
) -> None:
    """Validation during training is what eval finds of the artifact afterwards."""
    more = {"optim.lr": 0.05, "evaluate_steps": 1, "optim.ema": 0.5}
    out = distill.run(plan(**more), QUIET).path
    by_step = {row["step"]: row for row in rows(out) if "validation/top1" in row}
    made = measured([out / "last"], pictures, tmp_path / "report", split="validation")
    (model,) = json.loads((made.path / "report.json").read_text())["models"]
    for name in ("top1", "nll"):
        assert model["metrics"][name] == pytest.approx(by_step[4][f"validation/{name}"], rel=1e-5)


def test_gradients_reach_student_and_contexts_and_no_tower(plan: Callable[..., distill.Plan]) -> None:
    made = plan()
    assembly, side = made.material.assembly, made.material.view.size
    turn = made.method.turns[0]
    student: Any = assembly.parties["student"]
    linear = student.head.linear
    assert isinstance(linear, PromptedTexts)
    x = torch.randint(256, (8, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = torch.arange(8) % 4
    batch = {"x": x, "x@plain": x, "y": y, "target": y, "labelled": torch.ones(8, dtype=torch.bool)}
    module = TurnModule(turn, assembly.parties).train()
    module(batch, torch.ones(2), 0.3)["loss"].backward()
    first = linear.contexts.grad.clone()
    assert first.abs().max() > 1e-6
    assert all(p.grad is None for p in linear.tower.body.parameters())
    assert all(p.grad is None for p in assembly.parties["teacher"].parameters())
    module(batch, torch.ones(2), 0.3)["loss"].backward()  # a second micro-batch
    assert not torch.equal(linear.contexts.grad, first)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_stopped_run_continues_bit_for_bit(
    stop: int, plan: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    more = {"optim.accumulate": 2, "optim.lr": 0.01, "optim.ema": 0.9}
    whole = distill.run(plan(**more, out=str(tmp_path / "whole")), QUIET).path
    made = plan(**more, out=str(tmp_path / "stopped"))
    with pytest.raises(Preempted, match=r"after step \d of 4"):
        distill.run(made, QUIET, stop=StopAfter(stop))
    stopped = distill.run(made, QUIET).path
    files = sorted(p.relative_to(whole) for p in whole.rglob("*.safetensors"))
    assert Path("prompts.safetensors") in files
    assert Path("last/prompts.safetensors") in files
    for file in files:
        assert (whole / file).read_bytes() == (stopped / file).read_bytes(), file


def test_other_texts_stand_behind_the_learned_contexts(
    plan: Callable[..., distill.Plan], clip: Path, pictures: Path, tmp_path: Path
) -> None:
    out = distill.run(plan(), QUIET).path
    file = tmp_path / "texts.json"
    said = {"T-shirt/top": "top", "Trouser": "red trouser", "Pullover": "coat", "Dress": "large dress"}
    file.write_text(json.dumps(said))
    from kdcli.runs import banks
    from kdcli.sections import TextSection

    network = build(str(out))
    banks.attach(network, TextSection(file=str(file)), list(CLASSES), str(out), QUIET)
    bank = network.bank
    assert bank is not None
    contexts = load_file(out / "prompts.safetensors")["contexts"]
    torch.testing.assert_close(bank.embeddings, rederived(clip, contexts, tuple(said.values())))
    assert bank.templates == ()
    made = measured([out], pictures, tmp_path / "report", **{"texts.file": str(file)})
    assert json.loads((made.path / "report.json").read_text())["models"][0]["texts"]["count"] == 4
    with pytest.raises(UsageError, match=r"texts\.templates is given, and the 2 contexts .* Leave it out"):
        measured([out], pictures, tmp_path / "no", **{"texts.file": str(file), "texts.templates": ["{}"]})
    taught_by_it = plan(**{"teacher": str(out), "method.contexts": 0, "out": str(tmp_path / "second")})
    second = distill.run(taught_by_it, QUIET).path
    own = bank_of_artifact(str(second))
    assert own is not None
    assert own.contexts is not None
    assert torch.equal(own.contexts, contexts)


def test_a_student_goes_on_from_its_contexts(
    plan: Callable[..., distill.Plan], tmp_path: Path, warnings: list[str]
) -> None:
    out = distill.run(plan(), QUIET).path
    more = {"student": str(out), "from_scratch": False, "image_size": None, "out": str(tmp_path / "second")}
    made = plan(**more)
    student: Any = made.material.networks["student"]
    contexts = load_file(out / "prompts.safetensors")["contexts"]
    assert torch.equal(student.head.linear.contexts.detach(), contexts)
    assert f"the 2 contexts go on from those that {out} has learned" in student.notes
    assert any("without them: only method.contexts=2 goes on from them" in text for text in warnings)
    with pytest.raises(
        InputError, match=r"method\.contexts=3: .* has learned 2, from which training goes on"
    ):
        plan(**more, **{"method.contexts": 3})


def test_contexts_that_could_not_learn_are_refused(
    plan: Callable[..., distill.Plan], clip: Path, taught: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"method\.contexts=2: no term reads texts"):
        plan(**{"method.cls": 0, "method.proximal": 0})
    with pytest.raises(UsageError, match=r"10 contexts: .* room for 1 to 9"):
        plan(**{"method.contexts": 10})
    gone = clip.with_name("moved")
    shutil.move(clip, gone)
    try:
        with pytest.raises(InputError, match=r"no folder here.* or name it: --set texts\.tower=FOLDER"):
            plan()
        student: Any = plan(**{"texts.tower": str(gone)}).material.networks["student"]
        assert student.head.linear.tower.name == str(gone)
    finally:
        shutil.move(gone, clip)


def test_damaged_contexts_are_refused(plan: Callable[..., distill.Plan], tmp_path: Path) -> None:
    from kdcli.models.banks import read_bank

    out = distill.run(plan(), QUIET).path
    described = json.loads((out / "texts.json").read_text())
    weight = load_file(out / "head.safetensors")["linear.weight"]
    with pytest.raises(InputError, match=r"tells of 2 contexts, and prompts\.safetensors holds 0"):
        read_bank(described, weight, "texts.json")
    (out / "prompts.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match=r"prompts\.safetensors"):
        build(str(out))
