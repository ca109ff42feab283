"""What lies here is opened without a packet to anyone, with nothing set that forbids it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from toolbox import class_folders

ROOT = Path(__file__).parents[2]

# A proxy that counts whoever asks it, and a hook that sees what goes past it.
LISTENS = """
import os, socket, sys, threading

asked = []
server = socket.create_server(("127.0.0.1", 0))

def accept():
    while True:
        connection, _ = server.accept()
        asked.append("a connection to the proxy")
        connection.close()

def watch(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        asked.append(f"{event} {arguments[1:]}")

threading.Thread(target=accept, daemon=True).start()
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ[name] = os.environ[name.upper()] = f"http://127.0.0.1:{server.getsockname()[1]}"
sys.addaudithook(watch)
"""

OPENS = """
from kdcli.data.sources import open_unlabelled
from kdcli.tasks import open_task_data
from kdcli.errors import InputError
from kdcli.models.build import build
from kdcli.sections import DataSection

folder, saved, parquet, metadata, artifact, local = sys.argv[1:]
for source in (folder, saved, parquet, metadata, "example:fashion-mnist"):
    open_task_data(DataSection(source=source), "train")
    open_unlabelled(source, DataSection())
build(artifact)
build(f"local-dir:{local}")
build(f"local-dir:{local}", pretrained=False)
build("test_vit", weights=f"{local}/model.safetensors")
os.remove(f"{local}/model.safetensors")
absent = DataSection(source="./none")
for refused in (lambda: open_task_data(absent, "train"), lambda: build(f"local-dir:{local}")):
    try:
        refused()
    except InputError:
        continue
    raise AssertionError
print("local:", asked)
try:
    open_task_data(DataSection(source="nobody/nothing"), "train")
except InputError:
    print("hub:", bool(asked))
"""


def test_nobody_is_asked_about_what_lies_here(teacher: Path, pictures: Path, tmp_path: Path) -> None:
    import datasets
    import timm
    from timm.models import save_for_hf

    class_folders(tmp_path / "folder", {"a": 10, "b": 10})
    class_folders(tmp_path / "metadata", {"x": 20})
    lines = [f"x/{i}.png,{i % 2}" for i in range(20)]
    (tmp_path / "metadata" / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    datasets.load_from_disk(str(pictures))["train"].to_parquet(tmp_path / "train.parquet")
    network = timm.create_model("test_vit", num_classes=3)
    save_for_hf(network, tmp_path / "local", safe_serialization=True)
    places = [tmp_path / "folder", pictures, tmp_path / "train.parquet", tmp_path / "metadata", teacher]
    environment = {k: v for k, v in os.environ.items() if "OFFLINE" not in k and "proxy" not in k.lower()}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_ETAG_TIMEOUT": "2"}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LISTENS + OPENS), *map(str, places), str(tmp_path / "local")],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["local: []", "hub: True"]  # the second: the ears work
