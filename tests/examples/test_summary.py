"""Tables of examples/matrix.sh and examples/masks.sh from reports made by hand."""

import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "summary.py"


def report(folder: Path, top1: dict[str, float]) -> Path:
    """A report of `top1` in per cent, and manifests of its models."""
    versions = dict.fromkeys(("python", "kdcli", "torch", "timm"), "1")
    optim = {"max_steps": 5, "batch_size": 64, "lr": 0.003}
    for name in {name.partition("/")[0] for name in top1} | {"report"}:
        (folder / name).mkdir(parents=True)
        facts = {"seconds": 0.5, "steps": 5, "views": "live", "cost": {"teacher_forwards": 320}}
        facts |= {"versions": versions, "threads": 1, "config": {"student": "toy", "optim": optim}}
        facts["data"] = {"splits": {"train": {"samples": 160}}}
        (folder / name / "kdcli.json").write_text(json.dumps(facts))
    models = [
        {"name": name, "path": str(folder / name), "metrics": {"top1": value / 100}}
        for name, value in top1.items()
    ]
    data = {"name": "pictures", "samples": 1500}
    made = {"models": models, "data": data, "created": "2026-01-01T00:00:00"}
    (folder / "report" / "report.json").write_text(json.dumps(made))
    return folder / "report"


def test_the_matrix_compares_with_kd_seed_by_seed(tmp_path):
    figures = {
        "seed-0": {"teacher": 90, "kd": 70, "kd/last": 69, "at": 72, "at/last": 71, "sp": 60, "sp/last": 75},
        "seed-1": {"teacher": 91, "kd": 72, "kd/last": 70, "at": 78, "at/last": 73, "sp": 71, "sp/last": 72},
        "seed-2": {"teacher": 92, "kd": 74, "kd/last": 71, "at": 75, "at/last": 73, "sp": 73, "sp/last": 70},
    }
    folders = [report(tmp_path / name, top1) for name, top1 in figures.items()]
    text = runpy.run_path(str(SCRIPT))["matrix"](folders)
    assert "| at | 75.0 ± 3.0 | 72.3 ± 1.2 | 3.0 ± 2.6 | 100 | 320 live |" in text
    assert "Above kd in every seed: at. Below kd in every seed: sp. Now above, now below: none." in text
    assert "toy` from random weights, 5 steps of 64 (2.0 epochs) at learning rate 0.003" in text
    assert "all labels, 91.0 ± 1.0." in text
    assert "over 3 seeds" in text


def test_masks_are_compared_seed_by_seed(tmp_path):
    figures = {
        "seed-0": {"teacher": 60, "alone": 40, "pixels": 44, "channels": 43},
        "seed-1": {"teacher": 60, "alone": 41, "pixels": 42, "channels": 45},
    }
    folders = [report(tmp_path / name, miou) for name, miou in figures.items()]
    for folder in folders:
        made = json.loads((folder / "report.json").read_text())
        for model in made["models"]:
            miou = model["metrics"].pop("top1")
            model["metrics"] = dict.fromkeys(("miou", "pixel_accuracy", "mean_accuracy"), miou)
            model["teacher"] = {"agreement": 0.9}
        (folder / "report.json").write_text(json.dumps(made))
    text = runpy.run_path(str(SCRIPT))["masks"](folders)
    assert "| teacher | 60.0 | 60.0 | 60.0 |  | 5 |" in text
    assert "| alone | 40.5 (40.0 to 41.0) | 40.5 (40.0 to 41.0) | 40.5 (40.0 to 41.0) | 90.0 | 5 |" in text
    assert "`pixels` less `alone`: +4.0, +1.0; `channels` less `alone`: +3.0, +4.0;" in text
    assert "`channels` less `pixels`: -1.0, +3.0." in text
