"""Do two states of the code make the same weights? One short run of each method, mixer and probe, hashed.

    python examples/benchmarks/same_weights.py run --json before.json      # in either checkout
    python examples/benchmarks/same_weights.py compare before.json after.json --json same_weights.json

Hashes depend on processor and library versions, so both states are run on one machine. Pictures are those of
the bundled example, networks are toys: what is shown is that nothing changed, not that anything is learned.
"""

import argparse
import datetime
import hashlib
import io
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import toys

SMALL: dict[str, dict[str, Any]] = {  # what toy networks need
    "hint": {"method.match": "pool"},
    "fitnets": {"method.match": "pool", "method.hint_share": 0.5},
    "sskd": {"method.head_share": 0.5},
    "eskd": {"method.stop": 0.5},
    "sequential": {"method.generations": 1},
}
OPTIONS: dict[str, dict[str, Any]] = {  # beside one run of each method by its defaults
    "kd, mixed": {"method.name": "kd", "optim.mixup": 0.8, "optim.cutmix": 1.0},
    "kd, averaged": {"method.name": "kd", "optim.ema": 0.5},
    "kd, accumulated": {"method.name": "kd", "optim.accumulate": 2},
    "kd, live": {"method.name": "kd", "views.count": "live"},
    "kd, balanced": {"method.name": "kd", "data.class_balance": "loss"},
    "kd, few labels": {"method.name": "kd", "data.labels_per_class": 2, "data.labelled_fraction": 0.5},
    "task-specific, with rkd and hint": {"terms": ["rkd=1", "hint=10,match=pool"]},
    "kd, layer decay": {"method.name": "kd", "student": "test_vit", "optim.layer_decay": 0.8},
}
MIXERS: dict[str, dict[str, Any]] = {
    "mixup": {},
    "cutmix": {},
    "deepinversion": {"inversion.half_steps": 4, "inversion.flip": 0.5, "inversion.clip": True},
    "adaptive-deepinversion": {"inversion.schedule": "cosine", "inversion.warmup": 2},
    "lopes": {"inversion.min_count": 2},
    "dafl": {"inversion.latent": 16},
}


def masks(folder: Path) -> Path:
    """40 training and 12 test pictures with masks of two classes, as a saved dataset."""
    import datasets
    import numpy as np
    from PIL import Image

    def png(array: Any) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    splits = {}
    for name, count in (("train", 40), ("test", 12)):
        table = datasets.Dataset.from_parquet(
            str(toys.EXAMPLE / f"{name}.parquet"), cache_dir=str(folder.parent)
        )
        pictures = [np.asarray(picture.convert("L")) for picture in table["image"][:count]]
        columns = {
            "image": [png(np.repeat(p[..., None], 3, axis=2)) for p in pictures],
            "mask": [png((p > 32).astype(np.uint8)) for p in pictures],
        }
        made = datasets.Dataset.from_dict(columns)
        splits[name] = made.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def digest(artifact: Path) -> str:
    """Hash of the weights, or of the pictures, that an artifact holds."""
    import datasets

    sha = hashlib.sha256()
    for file in sorted(artifact.rglob("*.safetensors")):
        sha.update(file.relative_to(artifact).as_posix().encode() + file.read_bytes())
    if (artifact / "state.json").exists():
        table = datasets.load_from_disk(str(artifact)).cast_column("image", datasets.Image(decode=False))
        for row in table:
            sha.update(row["image"]["bytes"])
    return sha.hexdigest()


class Runs:
    """Runs stages in this process, each into a folder of its own."""

    def __init__(self, folder: Path) -> None:
        from kdcli.console import Console

        self.folder, self.console, self.found = folder, Console(silent=True), {}
        self.pictures, self.masks = toys.pictures(folder / "pictures"), masks(folder / "masks")
        self.vit = toys.checkpoint("test_vit", folder / "vit.safetensors")
        self.resnet = toys.checkpoint("test_resnet", folder / "resnet.safetensors")

    def make(self, name: str, stage: Any, **options: Any) -> Path:
        """The artifact of a run, whose hash is kept under its name."""
        from kdcli.config import resolve

        out = self.folder / f"run-{len(self.found)}"
        given = {
            "out": str(out),
            "cache": str(self.folder / "cache"),
            "threads": 1,
            "device": "cpu",
            **options,
        }
        stage.run(stage.plan(resolve(stage.Config, options=given), self.console), self.console)
        self.found[name] = digest(out)
        print(f"{self.found[name][:16]}  {name}", file=sys.stderr)
        return out

    def teacher(self, name: str, network: str, **options: Any) -> Path:
        """A probed toy network of 32 pixels."""
        from kdcli.stages import probe

        weights = {"test_vit": self.vit, "test_resnet": self.resnet}[network]
        given = {"teacher": network, "weights": str(weights), "image_size": 32, "grid.epochs": 2}
        return self.make(name, probe, **{"data.source": str(self.pictures), **given, **options})

    def student(self, name: str, **options: Any) -> Path:
        """Four steps of a method."""
        from kdcli.stages import distill

        given = {"student": "test_resnet", "from_scratch": True, "image_size": 32, "log_every": 1}
        given |= {"data.source": str(self.pictures), "optim.max_steps": 4, "optim.batch_size": 8}
        return self.make(name, distill, **{**given, **options})

    def all(self) -> dict[str, str]:
        """Every run."""
        from kdcli.methods import METHODS
        from kdcli.stages import synthesize

        vit = self.teacher("probe, ViT", "test_vit")
        record = {"statistics.record": True, "statistics.min_count": 2, "statistics.max_gigabytes": 0}
        resnet = self.teacher("probe, ResNet with statistics", "test_resnet", **record)
        self.teacher("probe, two views", "test_vit", **{"views.count": "2", "grid.solver": "sgd"})
        self.teacher("probe, DINOv2's protocol", "test_vit", protocol="dinov2")
        self.teacher(
            "probe, finetuned", "test_resnet", finetune=True, **{"optim.max_steps": 4, "optim.batch_size": 8}
        )
        dense = self.teacher("probe, masks", "test_vit", **{"data.source": str(self.masks)})
        for name, entry in METHODS.items():
            given = {"method.name": name, **SMALL.get(name, {})}
            given |= {"data.source": str(self.masks)} if entry.needs == "pixel" else {}
            teacher = dense if entry.needs == "pixel" else resnet
            self.student(name, **given, **({"teacher": str(teacher)} if entry.teacher else {}))
        for name, options in OPTIONS.items():
            self.student(name, teacher=str(resnet), **options)
        self.student("kd, two teachers", teacher=[str(resnet), str(vit)], **{"method.name": "kd"})
        for head in ("linear", "segformer", "upernet"):
            options = {"data.source": str(self.masks), "head": head, "teacher": str(dense)}
            self.student(f"task-specific, masks, {head}", **options)
        for mixer, options in MIXERS.items():
            given = {"mixer": mixer, "count": 12, "data.source": str(self.pictures)}
            if mixer not in ("mixup", "cutmix"):
                del given["data.source"]
                given |= {"teacher": str(resnet), "inversion.batch": 8, "inversion.steps": 6}
                given |= {"student": str(resnet)} if mixer.startswith("adaptive") else {}
            self.make(f"synthesize, {mixer}", synthesize, **given, **options)
        return self.found


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Which runs of both states have one hash."""
    names = [name for name in before["hashes"] if name in after["hashes"]]
    return {
        "equal": [name for name in names if before["hashes"][name] == after["hashes"][name]],
        "different": [name for name in names if before["hashes"][name] != after["hashes"][name]],
        "only in one": sorted(set(before["hashes"]) ^ set(after["hashes"])),
        **{key: after[key] for key in ("device", "python", "torch", "date")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name, files in (("run", 0), ("compare", 2)):
        action = actions.add_parser(name)
        action.add_argument("--json", type=Path, required=True)
        if files:
            action.add_argument("files", type=Path, nargs=files)
            action.add_argument("--states", default="", help="which commits they are of, for the record")
    given = parser.parse_args()
    if given.action == "compare":
        report = compare(*(json.loads(file.read_text()) for file in given.files))
        report["states"] = given.states
        print(f"{len(report['equal'])} equal, different: {', '.join(report['different']) or 'none'}")
    else:
        import torch

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            hashes = Runs(Path(folder)).all()
        report = {
            "hashes": hashes,
            "device": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }
    given.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if report.get("different") else 0


if __name__ == "__main__":
    sys.exit(main())
