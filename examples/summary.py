"""Say in a few words what reports of ``kdcli eval`` show; the example scripts end with it.

python examples/summary.py line runs/quickstart/report
python examples/summary.py table runs/few-labels/seed-*/report
python examples/summary.py sweep runs/sweep/seed-*/report
python examples/summary.py matrix runs/matrix/seed-*/report
python examples/summary.py labels runs/several-labels/seed-*/report
python examples/summary.py pairs runs/pairs/seed-*/report
python examples/summary.py masks runs/masks/seed-*/report
python examples/summary.py boxes runs/detection-emoji/seed-*/report
python examples/summary.py smaller runs/smaller/seed-*/report
python examples/summary.py best runs/few-labels/seed-0/few-alone-lr-*    # the path of the best on validation
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

BENCHMARK = Path(__file__).resolve().parent / "results" / "benchmark_methods.json"
SETTINGS = (("few", "10 labels per class for both"), ("all", "teacher: 10 labels per class, student: all"))


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def top1(report: dict[str, Any]) -> dict[str, float]:
    """Test top-1 in per cent by the model's name."""
    return {model["name"].partition("-lr-")[0]: 100 * model["metrics"]["top1"] for model in report["models"]}


def best(students: list[Path]) -> Path:
    """The best student on validation, by what its task selects by."""

    def quality(folder: Path) -> float:
        metrics = read(folder, "kdcli.json")["metrics"]
        return float(metrics.get("validation/top1", metrics.get("validation/mean_ap")))

    return max(students, key=quality)


def rates(report: dict[str, Any]) -> str:
    """The learning rates that were chosen, in the order of the models."""
    return ", ".join(
        model["name"].partition("-lr-")[2] for model in report["models"] if "-lr-" in model["name"]
    )


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
    found = [top1(report) for report in reports]
    rows = []
    for key, text in SETTINGS:
        alone, distilled = ([f[f"{key}-{kind}"] for f in found] for kind in ("alone", "distilled"))
        gains = [d - a for a, d in zip(alone, distilled)]
        teacher = spread([f["teacher"] for f in found])
        rows.append(f"| {text} | {teacher} | {spread(alone)} | {spread(distilled)} | {spread(gains)} |")
    each = [
        f"| {folder.parent.name} | {f['teacher']:.1f} | "
        + " | ".join(f"{f[f'{key}-{kind}']:.1f}" for key, _ in SETTINGS for kind in ("alone", "distilled"))
        + f" | {rates(report)} |"
        for folder, f, report in zip(folders, found, reports)
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
            "| run | teacher | few, alone | few, distilled | all, alone | all, distilled | learning rates |",
            "|---|---|---|---|---|---|---|",
            *each,
            "",
            *origin("few_labels", folders),
            "* Selection (of head, step and learning rate, the same three for each student) on the held-out "
            "tenth of train, whose labels serve for that only; test is measured once per model.",
        ]
    )


def sweep(folders: list[Path]) -> str:
    """Mean and deviation of every model of the reports, and how far each is from the middle of the sweep."""
    reports = [read(folder, "report.json") for folder in folders]
    found = [top1(report) for report in reports]
    rows = [
        f"| {name} | {spread([f[name] for f in found])} | {spread([f[name] - f['middle'] for f in found])} | "
        + " | ".join(f"{f[name]:.1f}" for f in found)
        + " |"
        for name in found[0]
    ]
    return "\n".join(
        [
            "# A sweep over the choices of task-specific distillation",
            "",
            f"Top-1 in per cent on the {reports[0]['data']['samples']:,} test pictures of "
            f"`{reports[0]['data']['name']}`, mean ± standard deviation over {len(folders)} seeds. `middle` "
            "is a probed teacher, alpha 0.5, temperature 1, a quarter of each batch labelled; every other "
            "student differs from it in what its name says (`alone` is finetuned on the labels only).",
            "",
            "| model | top-1 | against middle | " + " | ".join(f.parent.name for f in folders) + " |",
            "|---" * (3 + len(folders)) + "|",
            *rows,
            "",
            *origin("sweep", folders),
            "* Selection of head and step on the held-out tenth of train; nothing was chosen on test.",
        ]
    )


def matrix(folders: list[Path]) -> str:
    """Every method's best and last weights over the seeds, against kd, beside what its steps cost."""
    reports = [read(folder, "report.json") for folder in folders]
    paths = [{Path(m["path"]): 100 * m["metrics"]["top1"] for m in report["models"]} for report in reports]
    chosen = [{path.name: value for path, value in f.items() if path.name != "last"} for f in paths]
    last = [{path.parent.name: value for path, value in f.items() if path.name == "last"} for f in paths]
    manifests = [{name: read(folder.parent / name, "kdcli.json") for name in last[0]} for folder in folders]
    cost = json.loads(BENCHMARK.read_text(encoding="utf-8"))["cost"] if BENCHMARK.exists() else {}
    gains = {name: [f[name] - f["kd"] for f in chosen] for name in last[0]}
    rows = []
    for name, against in gains.items():
        runs = [found[name] for found in manifests]
        step = statistics.mean(1000 * run["seconds"] / run["steps"] for run in runs)
        teacher = runs[0]["cost"]["teacher_forwards"]
        how = f"{teacher:,} {'live' if runs[0]['views'] == 'live' else 'cached'}" if teacher else "none"
        ratio = f"{cost[name]['median']:.2f}" if name in cost else "-"
        values = [spread([f[name] for f in found]) for found in (chosen, last)]
        cells = (
            name,
            *values,
            spread(against),
            f"{step:.0f}",
            how,
            ratio,
            *(f"{f[name]:.1f}" for f in chosen),
        )
        rows.append(f"| {' | '.join(cells)} |")
    above, below = ([n for n, g in gains.items() if all(s * v > 0 for v in g)] for s in (1, -1))
    others = [name for name in gains if name not in (*above, *below, "kd")]
    config = manifests[0]["kd"]["config"]
    optim, pictures = config["optim"], reports[0]["data"]["samples"]
    drawn = optim["max_steps"] * optim["batch_size"]
    epochs = drawn / manifests[0]["kd"]["data"]["splits"]["train"]["samples"]
    heads = ("method", "best on validation", "last step", "best against kd", "ms a step", "teacher forwards")
    heads = (*heads, "cost of a step", *(folder.parent.name for folder in folders))
    return "\n".join(
        [
            "# Methods side by side",
            "",
            f"Top-1 in per cent on the {pictures:,} test pictures of `{reports[0]['data']['name']}`, mean ± "
            f"standard deviation over {len(folders)} seeds, of the weights that were best on validation and "
            f"of those after the last step. Student: `{config['student']}` from random weights, "
            f"{optim['max_steps']} steps of {optim['batch_size']} ({epochs:.1f} epochs) at learning rate "
            f"{optim['lr']:g}, all labels. Teacher: a probed `tf_efficientnet_lite0` with all labels, "
            f"{spread([f['teacher'] for f in chosen])}.",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
            *rows,
            "",
            f"Above kd in every seed: {', '.join(above) or 'none'}. Below kd in every seed: "
            f"{', '.join(below) or 'none'}. Now above, now below: {', '.join(others) or 'none'}.",
            "",
            "What this does not show: which method is best. There is one learning rate for all and no "
            "search; the weights are defaults from papers or reference code (rkd with kd=0.9, hint with "
            "match=pool), made for other networks and far longer training; the student is tiny, the seeds "
            "are few, and a difference smaller than its deviation is none.",
            "",
            "* ms a step: measured in these runs, pictures decoded and a live teacher run in it; the machine "
            "may have done other work. dml trains two networks in a step, byot its exits too.",
            "* Cost of a step: over supervised's, from [benchmark_methods.json](benchmark_methods.json), "
            "with a teacher of the student's own size and no decoding.",
            *origin("matrix", folders),
            "* Selection of head and step on the held-out tenth of train; nothing was chosen on test.",
        ]
    )


def labels(folders: list[Path]) -> str:
    """Teacher and students with several labels a picture, and every label by itself."""
    reports = [read(folder, "report.json") for folder in folders]
    one = len(folders) == 1
    seeds = "of one seed" if one else f"mean ± standard deviation over {len(folders)} seeds"

    def figure(values: list[float]) -> str:
        return f"{values[0]:.1f}" if one else spread(values)

    models = [{m["name"].partition("-lr-")[0]: m for m in report["models"]} for report in reports]
    heads = {"mean_ap": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1", "exact": "exact"}
    rows = []
    for name in models[0]:
        cells = [figure([100 * found[name]["metrics"][key] for found in models]) for key in heads]
        follows = figure([100 * found[name]["teacher"]["agreement"] for found in models])
        rows.append(f"| {name} | {' | '.join(cells)} | {follows} |")
    gains = [100 * (f["distilled"]["metrics"]["mean_ap"] - f["alone"]["metrics"]["mean_ap"]) for f in models]
    each = []
    for i, name in enumerate(reports[0]["data"]["classes"]):
        cells = [figure([100 * found[m]["labels"][i]["ap"] for found in models]) for m in models[0]]
        each.append(f"| {name} | {models[0]['teacher']['labels'][i]['positives']} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "# Several labels for each picture",
            "",
            f"{reports[0]['data']['samples']:,} test pictures of 96 px, each with one to four emoji of "
            "unlike categories pasted on a part of a photograph; no emoji of the test is in a training "
            f"picture. In per cent, {seeds}. Thresholds were "
            "chosen on validation, label by label. `test_resnet` learns from 2,000 pictures, from random "
            "weights, alone or from a probed `tf_efficientnet_lite0`. The distilled student's mAP less that "
            f"of the student alone: {figure(gains)} points.",
            "",
            f"| model | {' | '.join(heads.values())} | agreement with the teacher |",
            "|---" * (2 + len(heads)) + "|",
            *rows,
            "",
            "Average precision of each label:",
            "",
            f"| label | test pictures | {' | '.join(models[0])} |",
            "|---" * (2 + len(models[0])) + "|",
            *each,
            "",
            f"Learning rates: {'; '.join(map(rates, reports))}.",
            "",
            *origin("several_labels", folders),
            "* Selection of head, step and learning rate on a held-out tenth of train; nothing was chosen on "
            "test.",
        ]
    )


def pairs(folders: list[Path]) -> str:
    """Retrieval across drawing styles: how early the other drawing is found, and at what cost."""
    reports = [read(folder, "report.json") for folder in folders]
    one = len(folders) == 1
    models = [{m["name"]: m for m in report["models"]} for report in reports]
    steps = {name: read(Path(m["path"]), "kdcli.json").get("steps", 0) for name, m in models[0].items()}

    def figure(values: list[float], digits: int = 1) -> str:
        found = (
            spread(values) if not one and len(set(values)) > 1 else f"{statistics.mean(values):.{digits}f}"
        )
        return found

    rows = []
    for name in models[0]:
        own = [found[name] for found in models]
        cells = [figure([100 * m["metrics"][key] for m in own]) for key in ("mAP", "cmc1", "cmc5")]
        cells.append(figure([m["cost"]["parameters"] / 1e3 for m in own], 0))
        cells.append(figure([m["cost"]["flops"] / 1e6 for m in own], 1))
        cells.append(figure([m["cost"]["latency_ms"]["median"] for m in own], 2))
        rows.append(f"| {name} | {' | '.join(cells)} | {steps[name] or ''} |")
    search = models[0]["frozen"]["search"]
    seeds = "one seed" if one else f"mean ± standard deviation over {len(folders)} seeds where they differ"
    return "\n".join(
        [
            "# Retrieval across drawing styles",
            "",
            f"{search['queries']} emoji as Noto draws them are searched for among {search['gallery']} as "
            f"Twemoji does, none of them in training; {seeds}. `frozen` is `tf_efficientnet_lite0` with "
            "ImageNet weights at 64 px, `teacher` the best whitened embedding of it; `test_resnet` learns "
            "from random weights, `alone` or `distilled` from the teacher. The rest is made of `distilled`, "
            "which teaches it, to a target of 70 % of its FLOPs: `cdd` and `resrep` while it learns, `lasso` "
            "as cdd without resetting, `magnitude` and `taylor` before it learns on. `narrow` is a "
            "`test_resnet` of that cost, distilled for as many steps as both trainings of the others have. "
            "No course was tuned. In per cent.",
            "",
            "| model | mAP | CMC@1 | CMC@5 | parameters (k) | MFLOPs | latency (ms) | steps |",
            "|---" * 8 + "|",
            *rows,
            "",
            *origin("pairs", folders),
            "* Selection of embedding and step on identities set apart from train; nothing was chosen on "
            "test.",
        ]
    )


def masks(folders: list[Path]) -> str:
    """Segmentation: a teacher, and one student by labels, by the teacher's pixels, by its channels."""
    reports = [read(folder, "report.json") for folder in folders]
    models = [{m["name"]: m for m in report["models"]} for report in reports]
    heads = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}

    def ranged(values: list[float]) -> str:
        least, most = (f"{100 * value:.1f}" for value in (min(values), max(values)))
        mean = f"{100 * statistics.mean(values):.1f}"
        return mean if least == most else f"{mean} ({least} to {most})"

    def apart(name: str, other: str) -> str:
        gains = [100 * (m[name]["metrics"]["miou"] - m[other]["metrics"]["miou"]) for m in models]
        return f"`{name}` less `{other}`: {', '.join(f'{gain:+.1f}' for gain in gains)}"

    rows = []
    for name in models[0]:
        cells = [ranged([found[name]["metrics"][key] for found in models]) for key in heads]
        follows = "" if name == "teacher" else ranged([f[name]["teacher"]["agreement"] for f in models])
        steps = read(Path(models[0][name]["path"]), "kdcli.json").get("steps", "")
        rows.append(f"| {name} | {' | '.join(cells)} | {follows} | {steps} |")
    pairs = (("pixels", "alone"), ("channels", "alone"), ("channels", "pixels"))
    return "\n".join(
        [
            "# Segmentation, by pixels or by channels of a teacher",
            "",
            f"{reports[0]['data']['samples']:,} test pictures of 96 px with one to four emoji of unlike "
            "categories pasted on a part of a photograph, nine categories and the ground; no emoji of the "
            f"test is in a training picture. In per cent, mean and range of {len(folders)} seeds. `teacher` "
            "is `tf_efficientnet_lite0` with ImageNet weights and a linear head on its last four stages, "
            "finetuned whole for 300 steps. The student, `test_resnet` with such a head, learns from random "
            "weights: `alone` by masks; `pixels` by the KL of each pixel too (`cwd` with weight 0 and kd 1); "
            "`channels` by channel-wise distillation (`cwd`). One learning rate and the default weights for "
            "all, equal steps on the same views.",
            "",
            f"| model | {' | '.join(heads.values())} | agreement with the teacher | steps |",
            "|---" * (3 + len(heads)) + "|",
            *rows,
            "",
            f"mIoU in points, seed by seed: {'; '.join(apart(*pair) for pair in pairs)}.",
            "",
            *origin("masks", folders),
            "* Selection of the step on a held-out tenth of train; nothing was chosen on test.",
        ]
    )


TOLD = {
    "emoji": "pictures of 128 px with none to six emoji of six categories pasted on a part of a photograph; "
    "no emoji of the test is in a training picture",
    "squares": "made-up pictures of squares: a toy, whose figures say nothing",
    "trees": "tiles of an aerial picture, whose trees are in no training picture; four pictures in all",
}


def boxes(folders: list[Path]) -> str:
    """Detection: a teacher, and one student by boxes alone and by each kind of term that a teacher gives."""
    reports = [read(folder, "report.json") for folder in folders]
    models = [{m["name"]: m for m in report["models"]} for report in reports]
    heads = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar100": "AR@100"}
    kind = Path(reports[0]["data"]["name"]).name

    def ranged(values: list[float]) -> str:
        least, most = (f"{100 * value:.1f}" for value in (min(values), max(values)))
        mean = f"{100 * statistics.mean(values):.1f}"
        return mean if least == most else f"{mean} ({least} to {most})"

    def apart(name: str) -> str:
        gains = [100 * (m[name]["metrics"]["ap"] - m["alone"]["metrics"]["ap"]) for m in models]
        return f"`{name}` {', '.join(f'{gain:+.1f}' for gain in gains)}"

    rows = []
    for name in models[0]:
        cells = [ranged([found[name]["metrics"][key] for found in models]) for key in heads]
        steps = read(Path(models[0][name]["path"]), "kdcli.json").get("steps", "")
        rows.append(f"| {name} | {' | '.join(cells)} | {steps} |")
    taught = [name for name in models[0] if name not in ("teacher", "alone")]
    return "\n".join(
        [
            f"# Detection of {kind}, with and without a teacher",
            "",
            f"{reports[0]['data']['samples']:,} test {TOLD[kind]}. COCO's measures in per cent, mean and "
            f"range of {len(folders)} seeds.",
            "",
            "`teacher` is `tf_efficientnet_lite0` with ImageNet weights, frozen, and a light RT-DETR trained "
            "on it. The student, `test_resnet` with such a detector, learns from random weights: `alone` by "
            "boxes; `task-specific` by boxes and the teacher's queries, half and half; `queries` by both at "
            "the weights of DETRDistill; `features` by boxes and, where the teacher sees objects, its "
            "features and scores (G2SD); `channels` by boxes and channel-wise distillation. One learning "
            "rate and the default weights for all, equal steps on the same views.",
            "",
            f"| model | {' | '.join(heads.values())} | steps |",
            "|---" * (2 + len(heads)) + "|",
            *rows,
            "",
            f"AP in points over `alone`, seed by seed: {'; '.join(map(apart, taught))}.",
            "",
            *origin("detection", folders),
            "* Selection of the step on validation pictures; nothing was chosen on test.",
        ]
    )


def smaller(folders: list[Path]) -> str:
    """One cost, reached in several ways: quality, and what is saved of operations and of time."""
    reports = [read(folder, "report.json") for folder in folders]
    models = [{m["name"]: m for m in report["models"]} for report in reports]
    rows = []
    for name in models[0]:
        own, dense = [found[name] for found in models], [found["dense"] for found in models]
        top = [100 * m["metrics"]["top1"] for m in own]
        losses = [100 * d["metrics"]["top1"] - value for d, value in zip(dense, top)]
        cells = [spread(top), spread(losses)]
        cells.append(f"{statistics.mean(m['cost']['parameters'] for m in own) / 1e3:,.0f}")
        cells.append(f"{statistics.mean(m['cost']['flops'] for m in own) / 1e6:.1f}")
        for part in (flops_of, milliseconds, seconds):
            cells.append(f"{statistics.mean(part(m) / part(d) for m, d in zip(own, dense)):.2f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "# Smaller in several ways, at one cost",
            "",
            f"Top-1 in per cent on the {reports[0]['data']['samples']:,} test pictures of Fashion-MNIST, "
            f"mean ± standard deviation over {len(folders)} seeds; FLOPs, latency of one picture and time of "
            "a batch are parts of those of `dense`, a ResNet-18 of half width. `resrep`, `magnitude` and "
            "`taylor` are made of it to a target of 45 % of its FLOPs, and learn from labels and from its "
            "answers; `narrow-alone` and `narrow-distilled` are a ResNet-18 of that cost from random weights."
            " `dense` has trained for half as many steps as all others.",
            "",
            "| model | top-1 | below dense | parameters (k) | MFLOPs | FLOPs | latency | time of a batch |",
            "|---" * 8 + "|",
            *rows,
            "",
            *forms([folder.with_name("forms") for folder in folders]),
            *origin("smaller", folders),
            "* Selection of the step on the held-out tenth of train (`resrep`: the last step); nothing was "
            "chosen on test.",
        ]
    )


def forms(folders: list[Path]) -> list[str]:
    """Networks as they are, and exported: what that costs of quality, and what it takes."""
    reports = [read(folder, "report.json") for folder in folders]
    models = [{m["name"]: m for m in report["models"]} for report in reports]
    lines = [
        "In torch, in ONNX by onnxruntime (fp32), and there in integers (int8, static, calibrated on 256 "
        "pictures of train), with as many threads; latency of one picture, time of one in a batch, in ms:",
        "",
        "| form | top-1 | latency | in a batch |",
        "|---|---|---|---|",
    ]
    for name in models[0]:
        own = [found[name] for found in models]
        top = spread([100 * m["metrics"]["top1"] for m in own])
        times = statistics.mean(map(milliseconds, own)), 1e3 * statistics.mean(map(seconds, own))
        lines.append(f"| {name} | {top} | {times[0]:.2f} | {times[1]:.3f} |")
    return [*lines, ""]


def flops_of(model: dict[str, Any]) -> float:
    return float(model["cost"]["flops"])


def milliseconds(model: dict[str, Any]) -> float:
    return float(model["cost"]["latency_ms"]["median"])


def seconds(model: dict[str, Any]) -> float:
    """Seconds of a picture in a batch."""
    return 1 / float(model["cost"]["throughput"]["median"])


def origin(script: str, folders: list[Path]) -> list[str]:
    """What made a table, when and where."""
    manifest = read(folders[0], "kdcli.json")
    versions = ", ".join(f"{n} {manifest['versions'][n]}" for n in ("python", "kdcli", "torch", "timm"))
    return [
        f"* Command: `uv run examples/{script}.sh > examples/results/{script}.md`",
        f"* Date: {read(folders[-1], 'report.json')['created'][:10]}",
        f"* Device: {cpu()}, threads: {manifest['threads']}",
        f"* Versions: {versions}",
    ]


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
    parser.add_argument(
        "form",
        choices=["line", "table", "sweep", "matrix", "labels", "pairs", "masks", "boxes", "smaller", "best"],
    )
    parser.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    forms: dict[str, Callable[[list[Path]], object]] = {
        "line": lambda folders: line(folders[0]),
        "table": table,
        "sweep": sweep,
        "matrix": matrix,
        "labels": labels,
        "pairs": pairs,
        "masks": masks,
        "boxes": boxes,
        "smaller": smaller,
        "best": best,
    }
    print(forms[arguments.form](arguments.folders))


if __name__ == "__main__":
    main()
