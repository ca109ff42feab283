"""Say in a few words what reports of ``kdcli eval`` show; the example scripts end with it.

python examples/summary.py line runs/quickstart/report
python examples/summary.py table runs/few-labels/seed-*/report
"""

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

SETTINGS = (("few", "10 labels per class for both"), ("all", "teacher: 10 labels per class, student: all"))


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def top1(report: dict[str, Any]) -> dict[str, float]:
    """Test top-1 in per cent by the model's name."""
    return {model["name"]: 100 * model["metrics"]["top1"] for model in report["models"]}


def line(folder: Path) -> str:
    """One sentence about teacher, student alone and student distilled."""
    report = read(folder, "report.json")
    found = top1(report)
    gain = found["student-distilled"] - found["student-alone"]
    verdict = "more" if gain >= 0 else "less"
    return (
        f"On {report['data']['samples']:,} test pictures the distilled student is right for "
        f"{found['student-distilled']:.1f} %, {abs(gain):.1f} points {verdict} than the same student trained "
        f"alone ({found['student-alone']:.1f} %); its teacher reaches {found['teacher']:.1f} %."
    )


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def table(folders: list[Path]) -> str:
    """Mean and deviation over the reports as Markdown, with what they were measured on."""
    reports = [read(folder, "report.json") for folder in folders]
    manifest = read(folders[0], "kdcli.json")
    found = [top1(report) for report in reports]
    versions = ", ".join(f"{n} {manifest['versions'][n]}" for n in ("python", "kdcli", "torch", "timm"))
    rows = []
    for key, text in SETTINGS:
        alone, distilled = ([f[f"{key}-{kind}"] for f in found] for kind in ("alone", "distilled"))
        gains = [d - a for a, d in zip(alone, distilled)]
        teacher = spread([f["teacher"] for f in found])
        rows.append(f"| {text} | {teacher} | {spread(alone)} | {spread(distilled)} | {spread(gains)} |")
    each = [
        f"| {folder.parent.name} | {f['teacher']:.1f} | "
        + " | ".join(f"{f[f'{key}-{kind}']:.1f}" for key, _ in SETTINGS for kind in ("alone", "distilled"))
        + " |"
        for folder, f in zip(folders, found)
    ]
    return "\n".join(
        [
            "# Few labels: where a teacher helps and where it does not",
            "",
            f"Top-1 in per cent on the {reports[0]['data']['samples']:,} test pictures of "
            f"`{reports[0]['data']['name']}`, mean ± standard deviation over {len(folders)} seeds (weights, "
            "order, views, and the choice of held-out and labelled pictures).",
            "",
            "| labels | teacher | student alone | student distilled | difference |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "The second row is the warning: this teacher knows less than the labels do, and a student that "
            "has the labels should not listen to it that much.",
            "",
            "| run | teacher | few, alone | few, distilled | all, alone | all, distilled |",
            "|---|---|---|---|---|---|",
            *each,
            "",
            "* Command: `uv run examples/few_labels.sh > examples/results/few_labels.md`",
            f"* Date: {reports[-1]['created'][:10]}",
            f"* Device: {cpu()}, threads: {manifest['threads']}",
            f"* Versions: {versions}",
            "* Selection (of head, step and settings) on the held-out tenth of train, whose labels serve for "
            "that only; test is measured once per model.",
        ]
    )


def cpu() -> str:
    """The processor's model."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            row.partition(":")[2].strip() for row in info.read_text().splitlines() if "model name" in row
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=["line", "table"])
    parser.add_argument("reports", type=Path, nargs="+")
    arguments = parser.parse_args()
    print(line(arguments.reports[0]) if arguments.form == "line" else table(arguments.reports))


if __name__ == "__main__":
    main()
