"""Shared by all tests: one thread, no network, and tiny real artifacts made once."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

from pathlib import Path

import pytest


# Files that start real commands and jobs, longest first: begun last, one would run alone at the end.
LONG_FILES = ("test_pipeline.py", "test_examples.py", "test_kills.py", "test_two_processes.py", "test_store.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """58 training pictures of four classes and 24 test pictures, as a saved dataset."""
    import datasets

    folder = tmp_path_factory.mktemp("pictures") / "saved"
    source = Path(__file__).parents[1] / "examples" / "data" / "fashion-mnist"
    splits = {}
    for name, count in (("train", 66), ("test", 24)):
        table = datasets.Dataset.from_parquet(str(source / f"{name}.parquet"), cache_dir=str(folder.parent))
        rows = [i for i, label in enumerate(table["label"][:1000]) if label < 4][:count]
        names = table.features["label"].names[:4]
        chosen = table.select(rows).cast_column("label", datasets.ClassLabel(names=names))
        splits[name] = chosen
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder
