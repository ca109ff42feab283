"""eval in process: figures against a naive count, several models, gates, the report's files."""

import json
import os
import shutil

import pytest
import torch
from toolbox import QUIET, commit_model, facts, flip

from kdcli.artifacts import manifest as manifests
from kdcli.config import resolve
from kdcli.errors import InputError, NotFinite, UsageError
from kdcli.models.build import build
from kdcli.stages import evaluate


@pytest.fixture(scope="module")
def models(probed):
    """Two probed toys."""
    return [str(probed(name)) for name in ("test_vit", "test_resnet")]


@pytest.fixture
def run(pictures, tmp_path):
    def go(models, **more):
        options = {
            "models": models,
            "data.source": str(pictures),
            "out": str(tmp_path / "report"),
            "cost": False,
            **more,
        }
        return evaluate.run(evaluate.plan(resolve(evaluate.Config, options=options), QUIET), QUIET)

    return go


def test_figures_are_those_of_a_naive_count(models, run, pictures):
    import datasets

    result = run(models[:1])
    row = result.summary["models"][0]
    network = build(models[0]).eval()
    table = datasets.load_from_disk(str(pictures))["test"]
    from timm.data import create_transform, resolve_model_data_config

    transform = create_transform(**resolve_model_data_config(network.body), is_training=False)
    with torch.no_grad():
        logits = torch.cat([network(transform(p.convert("RGB"))[None]) for p in table["image"]])
    y = torch.tensor(table["label"])
    assert row["metrics"]["top1"] == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    nll = torch.nn.functional.cross_entropy(logits, y)
    assert row["metrics"]["nll"] == pytest.approx(float(nll), rel=1e-4)


def test_a_teacher_among_the_models_runs_once(models, run, monkeypatch):
    from kdcli.engine import inference

    names, original = [], inference.outputs

    def counted(network, *args, **more):
        names.append(network.name)
        return original(network, *args, **more)

    monkeypatch.setattr(inference, "outputs", counted)
    both = run(models, teacher=models[0]).summary["models"]
    assert names == models
    assert both[0]["teacher"]["agreement"] == 1
    assert 0 < both[1]["teacher"]["agreement"] < 1


def test_a_complete_report_is_judged_without_models(models, pictures, tmp_path, monkeypatch):
    options = {"models": models[:1], "data.source": str(pictures), "out": str(tmp_path / "r"), "cost": False}
    config = resolve(evaluate.Config, options=options)
    done = evaluate.run(evaluate.plan(config, QUIET), QUIET)
    monkeypatch.setattr("kdcli.models.build.build", None)
    again = evaluate.plan(config.model_copy(update={"require": ["top1>=1"]}), QUIET, unless_complete=True)
    assert again.summary == done.summary
    assert len(again.failed) == 1
    assert "top1>=1 does not hold" in again.failed[0]


@pytest.mark.parametrize("kind", ["flipped", "pipe", "missing"])
def test_a_finished_report_that_is_damaged(models, pictures, tmp_path, kind):
    options = {"models": models[:1], "data.source": str(pictures), "out": str(tmp_path / "r"), "cost": False}
    config = resolve(evaluate.Config, options=options)
    evaluate.run(evaluate.plan(config, QUIET), QUIET)
    file = tmp_path / "r" / "report.json"
    if kind == "flipped":
        flip(file)
    else:
        file.unlink()
        os.mkfifo(file) if kind == "pipe" else None
    with pytest.raises(InputError, match=rf"{file} is (damaged|missing).* Make the artifact again"):
        evaluate.plan(config, QUIET, unless_complete=True)


def test_the_log_of_a_model(models, run, tmp_path):
    """It is read where the manifest names it, and checked first."""
    copy = tmp_path / "model"
    shutil.copytree(models[0], copy)
    log, manifest = copy / "metrics.jsonl", manifests.read(models[0])

    def curves(text, named=True):
        log.write_text(text)
        own = {"sha256": manifests.file_hash(log), "size": log.stat().st_size}
        manifest.files |= {log.name: own} if named else {}
        (copy / "kdcli.json").write_text(manifest.to_json())
        out = run([str(copy)], overwrite=True).path
        return json.loads((out / "report.json").read_text())["models"][0]["curves"]

    assert curves("{", named=False) == []
    rows = [{"step": step, "loss": 1.0} for step in range(1000)]
    assert curves("".join(json.dumps(row) + "\n" for row in rows)) == rows[::2]
    for text, message in (("{", "is not valid JSON"), ("[]", "is not a JSON object")):
        with pytest.raises(InputError, match=rf"{log} {message}"):
            curves(text)
    log.write_text("[]\n")
    with pytest.raises(InputError, match=rf"{log} is damaged: 3 bytes instead of 2"):
        run([str(copy)], overwrite=True)


def test_report_of_two_models_against_a_teacher(models, run):
    result = run(models, teacher=models[1], cost=True, repeats=3, batch_size=8)
    report = json.loads((result.path / "report.json").read_text())
    assert [m["name"] for m in report["models"]] == ["test_vit", "test_resnet"]
    own = report["models"][1]
    assert own["teacher"]["agreement"] == 1.0
    assert own["teacher"]["kl"] == pytest.approx(0, abs=1e-6)
    table = report["models"][0]["teacher"]
    parts = ("both_right", "only_student", "only_teacher", "neither_right")
    assert sum(table[k] for k in parts) == pytest.approx(1)
    assert {"parameters", "flops", "latency_ms", "throughput", "peak_memory_mb"} <= set(own["cost"])
    page = (result.path / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert facts(result.path)["kind"] == "report"


def test_models_together_and_effects_of_the_teacher(models, run):
    result = run(models, teacher=models[1])
    report = json.loads((result.path / "report.json").read_text())
    student, teacher = report["models"]
    peers, shares = report["peers"], student["teacher"]
    (pair,) = peers["pairs"]
    assert (pair["first"], pair["second"]) == ("test_vit", "test_resnet")
    assert pair["disagreement"] == pytest.approx(1 - shares["agreement"])
    assert pair["kl_back"] == pytest.approx(shares["kl"])
    assert peers["only"]["test_vit"] == pytest.approx(shares["only_student"])
    assert peers["only"]["test_resnet"] == pytest.approx(shares["only_teacher"])
    assert peers["none_right"] == pytest.approx(shares["neither_right"])
    assert "effects" not in teacher
    effects = student["effects"]
    assert effects["student"]["ece"] == pytest.approx(student["metrics"]["ece"])
    assert effects["teachers"]["teacher"]["ece"] == pytest.approx(teacher["metrics"]["ece"])
    assert -1 <= effects["weights"] <= 1
    rows = [build(name).class_rows() for name in models]
    unit = [(w / w.norm(dim=1, keepdim=True)).detach() for w in rows]
    lists = [[float(u[i] @ u[k]) for i in range(4) for k in range(i)] for u in unit]
    ranks = torch.tensor(lists).argsort(1).argsort(1).double()
    assert effects["weights"] == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))
    page = " ".join((result.path / "report.html").read_text().split())
    assert "<h3>test_vit compared with " in page
    assert "<td>mean of probabilities</td>" in page


def test_the_seed_decides_the_permutations_and_the_weight_the_factors(models, run, tmp_path):
    found = {}
    for name, more in {"plain": {}, "seed": {"seed": 5}, "mix": {"effects_mix": 0.25}}.items():
        report = json.loads((run(models[:1], teacher=models[1], out=str(tmp_path / name), **more).path
                             / "report.json").read_text())  # fmt: skip
        assert "peers" not in report
        found[name] = report["models"][0]["effects"]["teachers"]
    assert found["seed"]["teacher"] == found["plain"]["teacher"]
    assert found["seed"]["shuffled_classes"] != found["plain"]["shuffled_classes"]
    plain, mixed = (found[n]["teacher"]["rescaling"]["mean"] for n in ("plain", "mix"))
    assert 1 - mixed == pytest.approx((1 - plain) / 2)


def test_gates(models, run):
    assert run(models[:1], require=["top1>=0.0", "ece<=1"]).failed == []
    failed = run(models[:1], require=["top1>1"]).failed
    assert len(failed) == 1
    assert "test_vit: top1>1 does not hold" in failed[0]


def test_selection_split_is_noted(models, run):
    result = run(models[:1], split="validation")
    notes = json.loads((result.path / "report.json").read_text())["notes"]
    assert "was trained or selected on this very split" in notes[0]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"require": ["top1=>0.8"]}, UsageError, "write METRIC>=NUMBER"),
        ({"require": ["top1>=80"]}, UsageError, "'top1>=80': top1 is a fraction, from 0 to 1"),
        ({"require": ["topp1>=0.8"]}, UsageError, "no metric 'topp1'. Did you mean 'top1'"),
        ({"require": ["exits.early.topp1>=0.8"]}, UsageError, "Did you mean 'exits.early.top1'"),
        (
            {"require": ["exits.early.top1>=0.8"]},
            UsageError,
            "'exits.early.top1' was not measured of .* with exits",
        ),
        (
            {"require": ["agreement>=0.8"]},
            UsageError,
            "'agreement' is not measured in this run: it takes --teacher",
        ),
        ({"require": ["miou>=0.8"]}, UsageError, "'miou' is not measured in this run: it takes masks"),
        ({"require": ["flops>=1"]}, UsageError, "'flops' is not measured .*: --no-cost leaves it out"),
        ({"split": "tset"}, InputError, "no split 'tset'"),
        ({"data.source": None}, UsageError, "--data is required"),
    ],
)
def test_refusals(models, run, more, error, message):
    with pytest.raises(error, match=message):
        run(models[:1], **more)


def test_no_model_is_refused(run):
    with pytest.raises(UsageError, match="a model"):
        run([])


def test_what_a_kill_left_of_a_finished_report_goes_when_the_command_runs_again(models, run, pictures):
    from kdcli.artifacts.marks import MARK, trash_name

    path = run(models[:1]).path
    (path / ".lock").write_bytes(MARK + b"process 1 on here")
    shutil.copytree(path, trash_name(path))
    options = {"models": models[:1], "data.source": str(pictures), "out": str(path), "cost": False}
    config = resolve(evaluate.Config, options=options)
    evaluate.plan(config, QUIET)  # of a dry run, which deletes nothing
    assert (path / ".lock").exists()
    assert evaluate.plan(config, QUIET, unless_complete=True).path == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not (path / ".lock").exists()


@pytest.mark.parametrize("as_teacher", [False, True])
def test_a_network_that_answers_with_nan_is_named(models, run, tmp_path, as_teacher):
    network = build(models[1])
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1e30)
    spoilt = str(commit_model(network, tmp_path / "spoilt"))
    where = "--teacher" if as_teacher else "spoilt"
    with pytest.raises(NotFinite, match=f"{where} answers pictures with NaN or Inf") as caught:
        run([models[0]] if as_teacher else [spoilt], teacher=spoilt if as_teacher else None)
    assert caught.value.exit_code == 3
