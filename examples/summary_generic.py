"""Tables of reports as Markdown: backbones from unlabelled pictures, and G2SD's two stages.

uv run examples/summary_generic.py backbone runs/backbone/seed-0/report runs/backbone/seed-0/neighbours
uv run examples/summary_generic.py g2sd runs/g2sd/seed-*/report
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from summary import origin, read, spread

ARMS = {
    "scratch": "from scratch, on labels",
    "specific-only": "specific stage only",
    "generic-only": "generic stage, then labels",
    "both": "generic, then specific stage",
}
METHODS = ("generic", "radio", "proteus", "seed")


def figures(report: dict[str, Any], name: str) -> dict[str, float]:
    """A metric of each model of a report, in per cent, by the model's name."""
    return {Path(model["name"]).name: 100 * model["metrics"][name] for model in report["models"]}


def trained_on(report: Path) -> int:
    """Pictures of train, of the student from scratch beside a report."""
    data = read(report.parent / "scratch", "kdcli.json")["data"]
    return int(data["splits"]["train"]["samples"])


def backbone(folders: list[Path]) -> str:
    """Reports of probes and of neighbours in turn, one of each for a seed."""
    probed = [figures(read(folder, "report.json"), "top1") for folder in folders[::2]]
    near = [figures(read(folder, "report.json"), "knn") for folder in folders[1::2]]
    rows = [
        ("the same network from scratch, on the few labels", "scratch", "scratch"),
        *((f"`{name}`", name, f"{name}-probe") for name in METHODS),
        ("teacher: EfficientNet-Lite2, ImageNet", "imagenet", "teacher"),
    ]
    lines = [
        f"| {text} | {spread([n[here] for n in near])} | {spread([p[there] for p in probed])} | "
        + ", ".join(f"{p[there]:.1f}" for p in probed)
        + " |"
        for text, here, there in rows
    ]
    report = read(folders[0], "report.json")
    return "\n".join(
        [
            "# A small backbone from a large one, without labels",
            "",
            f"In per cent on the {report['data']['samples']:,} test pictures of Fashion-MNIST, mean ± "
            f"standard deviation over {len(probed)} seeds. The student is timm's `test_resnet` (0.47 M "
            f"parameters) at 32 px, distilled on the {trained_on(folders[0]):,} pictures of train, whose "
            "labels it never sees; then a linear probe has 10 labels of each class.",
            "",
            "| student | kNN, all labels | linear probe, 10 labels a class | each seed |",
            "|---|---|---|---|",
            *lines,
            "",
            *origin("backbone", folders),
            "* kNN: 20 neighbours among 10,000 labelled training pictures. Nothing was chosen on test; heads "
            "of probes are chosen on the held-out tenth of train. The teacher's row is one run.",
        ]
    )


def curve(folder: Path) -> list[tuple[int, float]]:
    """Steps, and the part of the variance of the targets that a generic stage explains there."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["explained"]) for row in rows if "explained" in row]


def drawn(curves: list[list[tuple[int, float]]], points: int = 10) -> list[str]:
    """Rows of a table: the mean over seeds at evenly spaced steps."""
    steps = [step for step, _ in curves[0]]
    chosen = sorted({steps[round(i * (len(steps) - 1) / (points - 1))] for i in range(points)})
    rows = []
    for step in chosen:
        values = [dict(c)[step] for c in curves]
        mean = sum(values) / len(values)
        bar = "█" * round(30 * max(mean, 0))
        rows.append(f"| {step:,} | {mean:.3f} | {min(values):.3f} to {max(values):.3f} | {bar} |")
    return rows


def g2sd(folders: list[Path]) -> str:
    """Reports of four students of one kind, a report for a seed."""
    reports = [read(folder, "report.json") for folder in folders]
    found = [figures(report, "top1") for report in reports]
    rows = [
        f"| {text} | {spread([f[name] for f in found])} | "
        f"{spread([f[name] - f['scratch'] for f in found])} | "
        + ", ".join(f"{f[name]:.1f}" for f in found)
        + " |"
        for name, text in ARMS.items()
    ]
    return "\n".join(
        [
            "# G2SD: generic, then specific, against the same student without each stage",
            "",
            f"Top-1 in per cent on the {reports[0]['data']['samples']:,} test pictures of Fashion-MNIST, "
            f"mean ± standard deviation over {len(folders)} seeds. {trained_on(folders[0]):,} pictures to "
            "train on. Student: a ViT of 4 blocks, 64 wide, patches of 7 pixels; teacher: 6 blocks, 128 "
            "wide, pretrained as a masked autoencoder (`mae`), finetuned on their labels. All students "
            "have the same number of steps.",
            "",
            "| student | top-1 | against scratch | each seed |",
            "|---|---|---|---|",
            *rows,
            *teacher(folders[0]),
            "",
            "## Explained variance of the generic stage",
            "",
            "| step | mean | range | |",
            "|---|---|---|---|",
            *drawn([curve(folder.parent / "generic") for folder in folders]),
            "",
            *occlusion(reports),
            *similarity(reports),
            *origin("g2sd", folders),
            "* Best step of the last stage on the held-out tenth of train; test is measured once per model.",
        ]
    )


def teacher(folder: Path) -> list[str]:
    """The row of the teacher, from the plain report of it."""
    path = folder.parent.parent / "teacher-report"
    if not path.exists():
        return []
    found = figures(read(path, "report.json"), "top1")
    return [f"| teacher | {found['teacher']:.1f} | | |"]


def occlusion(reports: list[dict[str, Any]]) -> list[str]:
    """Accuracy under random masking of patches, mean over seeds, where the reports have it."""
    if "occlusion" not in reports[0]:
        return []
    by_name = [{Path(m["name"]).name: m["occlusion"] for m in report["models"]} for report in reports]
    ratios = [point["ratio"] for point in next(iter(by_name[0].values()))]
    rows = []
    for name, text in ARMS.items():
        means = [
            sum(100 * seed[name][i]["accuracy"] for seed in by_name) / len(by_name)
            for i in range(len(ratios))
        ]
        rows.append(f"| {text} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    grid = reports[0]["occlusion"]["grid"]
    return [
        "## Occlusion",
        "",
        f"Top-1 with a part of the cells of a {grid} × {grid} grid hidden, mean over seeds (`kdcli eval "
        "--set occlusion=true`, arXiv 2105.10497).",
        "",
        "| student | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |",
        "|---" * (1 + len(ratios)) + "|",
        *rows,
        "",
    ]


def similarity(reports: list[dict[str, Any]]) -> list[str]:
    """CKA of each block with the teacher's block that is most like it, mean over seeds."""
    if "cka" not in reports[0]:
        return []
    by_name = [{Path(m["name"]).name: m["cka"] for m in report["models"]} for report in reports]
    rows = []
    for name, text in ARMS.items():
        tables = [seed[name]["values"] for seed in by_name]
        cells = []
        for i in range(len(tables[0])):
            means = [
                sum(table[i][j] or 0.0 for table in tables) / len(tables) for j in range(len(tables[0][i]))
            ]
            most = max(range(len(means)), key=lambda j: means[j])
            cells.append(f"{means[most]:.2f} ({most + 1})")
        rows.append(f"| {text} | " + " | ".join(cells) + " |")
    count = len(by_name[0]["both"]["values"])
    return [
        "## Similarity to the teacher by layer",
        "",
        "Linear CKA of each block of a student with the teacher's block that is most like it, whose number "
        "stands behind it, mean over seeds (`kdcli eval --set cka=true`).",
        "",
        "| student | " + " | ".join(f"block {i + 1}" for i in range(count)) + " |",
        "|---" * (1 + count) + "|",
        *rows,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=["backbone", "g2sd"])
    parser.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    forms: dict[str, Callable[[list[Path]], str]] = {"backbone": backbone, "g2sd": g2sd}
    print(forms[arguments.form](arguments.folders))


if __name__ == "__main__":
    main()
