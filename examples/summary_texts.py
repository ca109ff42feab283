"""Say in a table what the reports of ``vlm_ood_tiny.sh`` show: id, ood, ood-5-shot and memory of each seed.

python examples/summary_texts.py runs/vlm/seed-*/{id,ood,ood-5-shot,memory}
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from summary import origin, read

KINDS = ("id", "ood", "ood-5-shot", "memory")
SAID = {
    "cls": "labels and texts",
    "mse": "+ distances",
    "contrast": "+ other pictures",
    "proximal": "+ nearest texts",
    "described": "+ descriptions",
    "shuffled": "+ other classes' descriptions",
    "captions": "+ captions",
    "teacher-named": "teacher, names",
    "teacher-described": "teacher, descriptions",
}
Model = dict[str, Any]


def ranged(values: list[float], unit: float = 100) -> str:
    """Mean, and the range where there is one."""
    least, most = (f"{unit * value:.1f}" for value in (min(values), max(values)))
    mean = f"{unit * statistics.mean(values):.1f}"
    return mean if least == most else f"{mean} ({least} to {most})"


def by_arm(folders: list[Path]) -> list[dict[str, Model]]:
    """Of each seed its models, by the arm that made them."""
    found = []
    for folder in folders:
        models = read(folder, "report.json")["models"]
        found.append({str(model["name"]).removesuffix("-5-shot"): model for model in models})
    return found


def table(folders: list[Path]) -> str:
    """One row for each arm, the teachers last."""
    models = {kind: by_arm([folder for folder in folders if folder.name == kind]) for kind in KINDS}
    reports = {kind: read(next(f for f in folders if f.name == kind), "report.json") for kind in KINDS}
    arms = list(models["id"][0])
    rows = []
    for arm in arms:
        key = "mean_per_class"
        cells = [ranged([seed[arm]["metrics"][key] for seed in models[kind]]) for kind in KINDS[:3]]
        cells.append(ranged([seed[arm]["memory"][key] for seed in models["memory"]]))
        spaces = [seed[arm].get("spaces") for seed in models["ood"]]
        for name, unit in (("relative_retrieval", 100), ("shared_neighbours3", 100), ("degrees", 1)):
            cells.append(ranged([own[name] for own in spaces], unit) if all(spaces) else "")
        rows.append(f"| {SAID.get(arm, arm)} | {' | '.join(cells)} |")
    counts = {kind: reports[kind]["data"] for kind in KINDS}
    seeds = len(models["id"])

    def apart(kind: str, one: str, other: str) -> str:
        key = "mean_per_class"
        both = [(seed[one]["metrics"][key], seed[other]["metrics"][key]) for seed in models[kind]]
        return ", ".join(f"{100 * (a - b):+.1f}" for a, b in both)

    told = []
    for one, other in (("proximal", "cls"), ("described", "proximal"), ("shuffled", "described")):
        if one in arms and other in arms:
            told.append(f"{SAID[one]} over {SAID[other]}: {apart('ood', one, other)} zero-shot")
    ood = counts["ood"]
    return "\n".join(
        [
            "# Classes that no training has seen, by a teacher of pictures and texts",
            "",
            f"Mean of the accuracies of classes in per cent, mean and range of {seeds} seeds, of the last "
            f"step: {counts['id']['samples']:,} pictures of the {len(counts['id']['classes'])} classes that "
            f"were learned (id), {ood['samples']:,} of {len(ood['classes'])} others without a training "
            f"(zero-shot, guessing gives {100 / len(ood['classes']):.1f}), and "
            f"{counts['ood-5-shot']['samples']:,} of these after a training with five pictures of each "
            "(five-shot), or with these as a memory beside the texts and no training (memory). Candidates "
            "are the classes of the half that is asked about, and no others.",
            "",
            "The teacher is EfficientNet-Lite0 with ImageNet weights, aligned here with the texts of "
            "all-MiniLM-L6-v2 on other pictures; the student, a ResNet-10, begins with random weights. The "
            "first four arms add term to term; the last three have all of these terms and other texts: with "
            "descriptions, with those of other classes, with captions beside the names. Weights are 1 and τ "
            "is 0.07. Own picture (M_rel), "
            "neighbours of 3 (M_neigh) and the angle to the teacher are those of the zero-shot pictures.",
            "",
            "| | id | zero-shot | five-shot | memory | own picture | neighbours of 3 | degrees |",
            "|---" * 8 + "|",
            *rows,
            "",
            f"In points, seed by seed: {'; '.join(told)}.",
            "",
            *origin("vlm_ood_tiny", folders)[1:],
            "* One division of classes (seed 0), equal steps, views and learning rate; nothing was chosen.",
        ]
    )


def main() -> None:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("folders", type=Path, nargs="+")
    print(table(parser.parse_args().folders))


if __name__ == "__main__":
    main()
