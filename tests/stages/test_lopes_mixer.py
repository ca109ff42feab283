"""``kdcli probe --statistics``, and pictures made of what it recorded."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, facts, flip, rows, synthetic

from kdcli.config import resolve
from kdcli.data.views import evaluation_view
from kdcli.errors import InputError, UsageError
from kdcli.models.build import build
from kdcli.sections import DataSection
from kdcli.stages import probe, synthesize
from kdcli.tasks import open_task_data

TAPS = ["logits", "layer4.0.act1.in"]


def probe_plan(network, pictures, out, **options):
    given = {
        "teacher": str(network),
        "data.source": str(pictures),
        "grid.solver": "lbfgs",
        "grid.batch_size": 16,
        "out": str(out),
        "cache": str(out.parent / "cache"),
        "statistics.record": True,
        "statistics.taps": TAPS,
        "statistics.min_count": 10,
    }
    return probe.plan(resolve(probe.Config, options={**given, **options}), QUIET)


@pytest.fixture(scope="module")
def recorded(normed, pictures, tmp_path_factory):
    """The toy ResNet with a new head and records of two taps."""
    out = tmp_path_factory.mktemp("recorded") / "teacher"
    return probe.run(probe_plan(normed, pictures, out), QUIET).path


def train_rows(pictures):
    data = open_task_data(DataSection(source=str(pictures)), "train", "validation")
    samples = data.split("train")
    return samples, np.bincount(samples.labels, minlength=4)


def test_the_record_is_that_of_the_training_pictures(recorded, pictures):
    samples, counts = train_rows(pictures)
    network = build(str(recorded)).eval()
    x = torch.stack([evaluation_view(samples.picture(i, 10**6), network.spec) for i in range(len(samples))])
    with torch.no_grad():
        found = network.call([x], TAPS)
    record = load_file(recorded / "statistics.safetensors")
    kept = [c for c in range(4) if counts[c] >= 10]
    assert record["classes"].tolist() == kept
    assert record["counts"].tolist() == [counts[c] for c in kept]
    for tap in TAPS:
        for k, c in enumerate(kept):
            values = found[tap].flatten(1)[torch.from_numpy(samples.labels == c)]
            assert torch.allclose(record[f"{tap}/mean"][k], values.mean(dim=0), atol=1e-4)
            assert torch.allclose(record[f"{tap}/covariance"][k], torch.cov(values.T), atol=1e-4)
    assert "statistics.safetensors" in facts(recorded)["files"]


def test_small_classes_leave_no_trace(normed, pictures, recorded, tmp_path, warnings):
    _, counts = train_rows(pictures)
    least = int(sorted(counts)[-2]) + 1
    options = {"statistics.min_count": least, "statistics.max_gigabytes": 0, "statistics.taps": ["logits"]}
    out = probe.run(probe_plan(normed, pictures, tmp_path / "out", **options), QUIET).path
    record = load_file(out / "statistics.safetensors")
    assert len(warnings) == 1
    assert warnings[0].startswith("--statistics recorded nothing of 3 of 4 classes, which have fewer than")
    assert record["classes"].tolist() == [int(counts.argmax())]
    assert {name: tensor.shape[0] for name, tensor in record.items()} == dict.fromkeys(
        ["classes", "counts", "logits/mean", "logits/deviation"], 1
    )
    whole = load_file(recorded / "statistics.safetensors")
    place = whole["classes"].tolist().index(int(counts.argmax()))
    variances = whole["logits/covariance"][place].diagonal().clamp(min=0)
    assert torch.allclose(record["logits/deviation"][0], variances.sqrt(), atol=1e-4)


def test_logits_are_recorded_unless_told(normed, pictures, tmp_path, warnings):
    """The authors' top layer; it is nobody's output of a ReLU, and nothing is warned of."""
    assert probe.Config().statistics.taps == ["logits"]
    out = probe.run(probe_plan(normed, pictures, tmp_path / "out"), QUIET).path
    hidden = load_file(out / "statistics.safetensors")["layer4.0.act1.in/mean"]
    assert (hidden < 0).any(), "before the ReLU, which works in place"
    assert not [text for text in warnings if "statistics.taps" in text]


def test_what_a_relu_left_is_warned_of(normed, pictures, tmp_path, warnings):
    taps = {"statistics.taps": ["pooled", "logits", "block4"]}
    probe.run(probe_plan(normed, pictures, tmp_path / "out", **taps), QUIET)
    said = [text for text in warnings if "statistics.taps" in text]
    assert [text.partition(" is never negative")[0] for text in said] == [
        "statistics.taps: pooled",
        "statistics.taps: block4",
    ]
    assert all("wants what enters one (in a ResNet layer4.1.act2.in), or logits." in text for text in said)


def test_without_statistics_nothing_is_recorded(normed):
    assert not (normed / "statistics.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"statistics.taps": ["layer9"]}, InputError, "has no module 'layer9' to tap"),
        ({"statistics.taps": ["ReLU.in"]}, UsageError, "ReLU.in names several layers; name each, as in"),
        ({"head": "keep", "data.source": None}, UsageError, "--statistics needs training pictures"),
        (
            {"finetune": True, "processes": 2},
            UsageError,
            "--statistics of a finetuned network is of one process: leave out -n",
        ),
    ],
)
def test_probe_refuses(options, kind, message, normed, pictures, tmp_path):
    with pytest.raises(kind, match=message):
        probe_plan(normed, pictures, tmp_path / "out", **options)


# -- pictures ------------------------------------------------------------------------------------------------


def lopes_plan(network, out, **options):
    given = {
        "mixer": "lopes",
        "teacher": str(network),
        "count": 16,
        "out": str(out),
        "inversion.batch": 8,
        "inversion.steps": 40,
        "inversion.min_count": 10,
        "inversion.small_classes": "skip",
    }
    return synthesize.plan(resolve(synthesize.Config, options={**given, **options}), QUIET)


@pytest.fixture(scope="module")
def whole(recorded, tmp_path_factory):
    """Sixteen pictures in two blocks."""
    return synthesize.run(lopes_plan(recorded, tmp_path_factory.mktemp("lopes") / "whole"), QUIET).path


def test_the_artifact(whole, pictures, recorded, tmp_path):
    _, counts = train_rows(pictures)
    kept = [c for c in range(4) if counts[c] >= 10]
    made = synthetic(whole)
    assert [row["target"] for row in made] == [kept[j % len(kept)] for j in range(16)]
    assert {row["mixer"] for row in made} == {"lopes"}
    assert facts(whole)["identity"]["data"].keys() == {"statistics"}
    first = lopes_plan(recorded, tmp_path / "early", **{"inversion.steps": 1})
    early = rows(synthesize.run(first, QUIET).path)
    assert all(a["activations"] < 0.7 * b["activations"] for a, b in zip(rows(whole), early))


def test_shards_join(whole, recorded, tmp_path):
    parts = [
        synthesize.run(lopes_plan(recorded, tmp_path / str(i), shard=f"{i}/2"), QUIET).path for i in (1, 2)
    ]
    assert [row for part in parts for row in synthetic(part)] == synthetic(whole)


def test_a_vit_will_do(teacher, pictures, tmp_path):
    options = {"statistics.taps": ["pooled"], "features": "timm"}
    record = probe.run(probe_plan(teacher, pictures, tmp_path / "teacher", **options), QUIET).path
    out = synthesize.run(lopes_plan(record, tmp_path / "out", count=8, **{"inversion.steps": 3}), QUIET).path
    assert facts(out)["images"] == 8


def test_refused(recorded, normed, tmp_path):
    with pytest.raises(
        InputError, match=rf"{normed} has no record of its activations\. .*probe --statistics"
    ):
        lopes_plan(normed, tmp_path / "out")
    with pytest.raises(InputError, match=r"test_resnet has no record of its activations"):
        lopes_plan("test_resnet", tmp_path / "out")
    with pytest.raises(InputError, match=r"fewer than 1000 pictures were recorded of .* and 1 more"):
        lopes_plan(recorded, tmp_path / "out", **{"inversion.min_count": 1000})
    shutil.copytree(recorded, tmp_path / "broken")
    flip(tmp_path / "broken" / "statistics.safetensors")
    with pytest.raises(InputError, match=r"statistics\.safetensors is damaged: its sha256 differs"):
        lopes_plan(tmp_path / "broken", tmp_path / "out")
