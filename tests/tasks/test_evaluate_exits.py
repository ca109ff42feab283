"""eval of a model with exits: figures against a naive count, the threshold's split, gates, the page."""

import json

import pytest
import torch
from toolbox import QUIET, model_with_exits

from kdcli.config import resolve
from kdcli.errors import InputError, UsageError
from kdcli.metrics.exits import choose, early_exit_curve
from kdcli.models.build import build
from kdcli.models.exits import ExitHead, WithExits
from kdcli.stages import evaluate
from kdcli.tasks import figures

ORDER = [2, 0, 3, 1]


@pytest.fixture(scope="module")
def made(probed, tmp_path_factory):
    """A probed toy with two exits, its classes stored in another order than the data's."""
    folder = tmp_path_factory.mktemp("with exits")
    network = build(str(probed("test_vit"))).eval()
    torch.manual_seed(3)
    exits = {f"exit{i}": ExitHead((64, 2, 2), (64, 2, 2), 4, tap=f"map{2 * i}") for i in (1, 2)}
    for head in exits.values():
        torch.nn.init.normal_(head.linear.weight, std=3.0)  # some answers surer than others
        head.eval()
    classes = list(network.classes)
    network.reorder(ORDER, [classes[i] for i in ORDER])
    for head in exits.values():
        head.reorder(ORDER)
    return model_with_exits(folder / "model", network, exits), classes


@pytest.fixture
def run(made, pictures, tmp_path):
    def go(**more):
        options = {
            "models": [str(made[0])],
            "data.source": str(pictures),
            "out": str(tmp_path / "report"),
            "cost": False,
            **more,
        }
        return evaluate.run(evaluate.plan(resolve(evaluate.Config, options=options), QUIET), QUIET)

    return go


def naive(path, classes, pictures, split):
    """Logits [N, E, C] of a split with the columns in the data's order, without kdcli's engine."""
    from kdcli.data.batches import evaluation_loader
    from kdcli.models.exits import load_exits
    from kdcli.sections import DataSection
    from kdcli.tasks import open_task_data

    network, exits = build(str(path)).eval(), load_exits(path)
    samples = open_task_data(DataSection(source=str(pictures)), split).split(split)
    keys = [[(i, 0) for i in range(len(samples))]]
    batch = next(iter(evaluation_loader(samples, network.spec, max_pixels=10**6, workers=0, timeout=9)(keys)))
    with torch.no_grad():
        logits = WithExits(network, exits)(batch["x"])
    own = [network.classes.index(name) for name in classes]
    return logits[:, :, own], torch.from_numpy(samples.labels)


def test_figures_are_those_of_a_naive_count(made, run, pictures):
    result = run(cost=True, repeats=3, batch_size=8)
    found = json.loads((result.path / "report.json").read_text())["models"][0]
    exits = found["exits"]
    logits, y = naive(*made, pictures, "test")
    top1 = (logits.argmax(2) == y[:, None]).float().mean(0).tolist()
    assert [row["top1"] for row in exits["exits"]] == pytest.approx(top1)
    assert [(row["name"], row["tap"]) for row in exits["exits"]] == [
        ("exit1", "map2"), ("exit2", "map4"), ("network", ""),
    ]  # fmt: skip
    assert exits["exits"][-1]["top1"] == found["metrics"]["top1"]
    together = float((logits.softmax(2).mean(1).argmax(1) == y).float().mean())
    assert exits["ensemble"]["top1"] == pytest.approx(together)
    costs = [row["flops"] for row in exits["exits"]]
    assert costs == sorted(costs)
    assert found["cost"]["flops"] < costs[-1]
    assert len(set(costs)) == 3
    assert all(row["latency_ms"]["median"] > 0 for row in exits["exits"])


def test_the_threshold_is_chosen_on_validation(made, run, pictures):
    result = run(exit_slack=0.2)
    exits = result.summary["models"][0]["exits"]
    costs = [row["flops"] for row in exits["exits"]]
    curve = early_exit_curve(*naive(*made, pictures, "validation"), costs)
    best = choose(curve, 0.2)
    early = exits["early"]
    assert early["threshold"] == best["threshold"]
    assert early["validation"]["top1"] == pytest.approx(best["top1"])
    assert early["validation"]["last"] == pytest.approx(curve[-1]["top1"])
    assert early["validation"]["slack"] == 0.2
    measured = early_exit_curve(*naive(*made, pictures, "test"), costs)
    assert early["top1"] == pytest.approx(measured[curve.index(best)]["top1"])
    assert early["exits"] == pytest.approx(measured[curve.index(best)]["exits"])
    assert "latency_ms" not in early


def test_a_measured_split_chooses_no_threshold(run, tmp_path):
    result = run(split="validation")
    report = json.loads((result.path / "report.json").read_text())
    assert "early" not in report["models"][0]["exits"]
    assert len(report["models"][0]["exits"]["curve"]) > 10
    assert (
        "No threshold was chosen for early exit: all validation pictures are in the split validation."
        in (report["notes"])
    )
    page = (result.path / "report.html").read_text()
    assert "where each image stops" not in page
    with pytest.raises(UsageError, match=r"'exits.early.top1' was not measured"):
        run(split="validation", require=["exits.early.top1>=0"])


def test_gates_table_and_page(run):
    result = run(require=["exits.early.top1>=0", "exits.early.flops>0", "exits.ensemble.top1>1"])
    assert len(result.failed) == 1
    assert "model: exits.ensemble.top1>1 does not hold" in result.failed[0]
    from kdcli.report.page import table

    report = json.loads((result.path / "report.json").read_text())
    header, rows = table(report, figures("classification"))
    exits = report["models"][0]["exits"]
    assert {"exits' mean", "early exit", "early GFLOPs"} <= set(header)
    assert rows[0][header.index("early exit")] == f"{100 * exits['early']['top1']:.1f}%"
    page = " ".join((result.path / "report.html").read_text().split())
    assert '<td>exit1</td><td class="text">map2</td>' in page
    assert f"probability is at least {exits['early']['threshold']:g}: top-1" in page


def test_beside_a_model_without_exits(run, made, probed):
    result = run(models=[str(made[0]), str(probed("test_resnet"))])
    first, second = json.loads((result.path / "report.json").read_text())["models"]
    assert "exits" in first
    assert "exits" not in second


def test_exits_of_another_number_of_classes_are_refused(probed, pictures, tmp_path):
    network = build(str(probed("test_vit")))
    exits = {"exit1": ExitHead((64, 2, 2), (64, 2, 2), 3, tap="map1")}
    path = model_with_exits(tmp_path / "model", network, exits)
    options = {"models": [str(path)], "data.source": str(pictures)}
    with pytest.raises(InputError, match="its exit exit1 knows 3 classes of 4"):
        evaluate.plan(resolve(evaluate.Config, options=options), QUIET)


def test_the_plan_says_what_it_measures(made, pictures, tmp_path):
    from kdcli.console import Console

    said = []
    options = {"models": [str(made[0])], "data.source": str(pictures), "out": str(tmp_path / "r")}
    plan = evaluate.plan(resolve(evaluate.Config, options=options), QUIET)
    console = Console(silent=True)
    console.note = said.append
    plan.describe(console)
    assert any(line.startswith("exits    model: exit1, exit2; early exit chosen on ") for line in said)


def test_exits_on_data_that_lack_classes(made, run, pictures, tmp_path):
    """Exits keep all their logits, in the order of the network's."""
    import datasets

    path, classes = made
    kept = {}
    for split, table in datasets.load_from_disk(str(pictures)).items():
        rows = [i for i, label in enumerate(table["label"]) if label in (1, 3)]
        labels = [(1, 3).index(table["label"][i]) for i in rows]
        table = table.select(rows).remove_columns("label").add_column("label", labels)
        kept[split] = table.cast_column("label", datasets.ClassLabel(names=[classes[1], classes[3]]))
    datasets.DatasetDict(kept).save_to_disk(str(tmp_path / "data"))
    result = run(**{"data.source": str(tmp_path / "data")})
    report = json.loads((result.path / "report.json").read_text())
    assert report["data"]["classes"] == [classes[i] for i in (1, 3, 2, 0)]  # the last as the network has them
    logits, y = naive(path, report["data"]["classes"], tmp_path / "data", "test")
    assert logits.shape[1:] == (3, 4)
    top1 = (logits.argmax(2) == y[:, None]).float().mean(0).tolist()
    exits = report["models"][0]["exits"]
    assert [row["top1"] for row in exits["exits"]] == pytest.approx(top1)
