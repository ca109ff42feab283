"""Shared by all tests: one thread, no network, and tiny real artifacts made once."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Also of the processes that tests start. Toys gain nothing from a second thread, and a fork would lose it.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import toys

# Files that start real commands and jobs, longest first: begun last, one would run alone at the end.
LONG_FILES = (
    "test_pipeline.py",
    "test_examples.py",
    "test_learning.py",
    "test_kills.py",
    "test_two_processes.py",
    "test_store.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish() -> None:
    """Keep the libraries' objects out of every later collection: each run makes one, of 0.3 s with them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What commands warn of in this test."""
    from kdcli.console import Console

    told: list[str] = []
    monkeypatch.setattr(Console, "warn", lambda self, text: told.append(text))
    return told


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """58 training pictures of four classes and 24 test pictures, as a saved dataset."""
    return toys.pictures(tmp_path_factory.mktemp("pictures") / "saved")


@pytest.fixture(scope="session")
def masks_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training and 16 test pictures of 64 pixels with exact masks of four classes, as a saved dataset."""
    import datasets
    from toolbox import encode, scenes

    folder = tmp_path_factory.mktemp("masks") / "saved"
    splits = {}
    for seed, (name, count) in enumerate({"train": 48, "test": 16}.items()):
        cells = [
            [{"bytes": encode(part), "path": None} for part in pair] for pair in scenes(count, seed=seed)
        ]
        table = datasets.Dataset.from_dict({"image": [c[0] for c in cells], "mask": [c[1] for c in cells]})
        splits[name] = table.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two toy networks for 32 pixels and 1000 classes, random but fixed."""
    folder = tmp_path_factory.mktemp("my weights")
    return {
        name: toys.checkpoint(name, folder / f"{name}.safetensors") for name in ("test_vit", "test_resnet")
    }


@pytest.fixture(scope="session")
def probed(
    pictures: Path, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Artifact of a toy network by its name: its checkpoint with a head fitted on the pictures."""
    from toolbox import QUIET

    from kdcli.config import resolve
    from kdcli.stages import probe

    folder = tmp_path_factory.mktemp("probed")

    @cache
    def teacher(name: str) -> Path:
        options = {
            "teacher": name,
            "weights": str(weights[name]),
            "image_size": 32,
            "data.source": str(pictures),
            "grid.epochs": 2,
            "grid.solver": "sgd",
            "out": str(folder / name),
            "cache": str(folder / "cache"),
        }
        return probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path

    return teacher


@pytest.fixture(scope="session")
def masked(
    masks_data: Path, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Artifact of a toy network by its name, as ``probed`` has them: with a head fitted on masks."""
    from toolbox import QUIET, heads_plan

    from kdcli.stages import probe

    folder = tmp_path_factory.mktemp("masked")

    @cache
    def teacher(name: str) -> Path:
        small = {"teacher": name, "features": "grid4", "grid.lr": [1e-2], "grid.epochs": 1}
        made = heads_plan(masks_data, weights[name], folder / name, folder / "cache", **small)
        return probe.run(made, QUIET).path

    return teacher


@pytest.fixture(scope="session")
def options_of(
    pictures: Path, probed: Callable[[str], Path], masks_data: Path, masked: Callable[[str], Path]
) -> Callable[..., dict[str, object]]:
    """Options of ``kdcli distill`` for a method, by :func:`toolbox.method_options`, on data that it fits."""
    from toolbox import method_options

    from kdcli.methods import METHODS

    def options(name: str, folder: Path, **more: object) -> dict[str, object]:
        data = (masks_data, masked) if METHODS[name].needs == "pixel" else (pictures, probed)
        return method_options(name, *data, folder, **more)

    return options


@pytest.fixture(scope="session")
def teacher(probed: Callable[[str], Path]) -> Path:
    """A probed toy ViT."""
    return probed("test_vit")


@pytest.fixture(scope="session")
def normed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probed toy ResNet of 32 px whose batch norms have seen the training pictures."""
    import datasets
    import timm
    import torch
    from safetensors.torch import save_file
    from toolbox import QUIET

    from kdcli.config import resolve
    from kdcli.data.views import evaluation_view
    from kdcli.models.build import build
    from kdcli.stages import probe

    folder = tmp_path_factory.mktemp("normed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = timm.create_model("test_resnet")
    spec = build("test_resnet", pretrained=False, size=32).spec
    train = datasets.load_from_disk(str(pictures))["train"]["image"][:]
    x = torch.stack([evaluation_view(picture.convert("RGB"), spec) for picture in train])
    for module in body.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        body.train()((x / 255 - 0.5) / 0.5)
    save_file(body.state_dict(), folder / "weights.safetensors")
    options = {
        "teacher": "test_resnet",
        "weights": str(folder / "weights.safetensors"),
        "image_size": 32,
        "data.source": str(pictures),
        "grid.solver": "lbfgs",
        "out": str(folder / "teacher"),
        "cache": str(folder / "cache"),
    }
    return probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path


@pytest.fixture(scope="session")
def variations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image-variation model of random but fixed weights, 16 px, as a diffusers directory."""
    return toys.variation_model(tmp_path_factory.mktemp("variations") / "weights")


@pytest.fixture(scope="session")
def image_mixer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, marked as Image Mixer's."""
    return toys.image_mixer(tmp_path_factory.mktemp("image-mixer") / "weights")
