"""Where the weights of a mixer lie and what they are, read from their JSON files: no model is loaded here."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.artifacts.manifest import digest, file_hash
from kdcli.artifacts.reading import read_object
from kdcli.errors import EnvironmentFault, InputError
from kdcli.hub import cache_fault, reachable_hub
from kdcli.reading import read_bytes

PARTS = ("unet", "vae", "image_encoder")
CONVERTER = "examples/image_mixer_checkpoint.py"
MARK = "ImageMixerPipeline"  # model_index.json's class in a directory that the converter wrote
_WAYS = (
    f"Three ways out: convert the published Image Mixer once ({CONVERTER}) and pass --weights DIR; pass "
    "--weights lambdalabs/sd-image-variations-diffusers@v2.0 or a local copy of it (with several sources "
    "this is recorded as variation-tokens, not as imagemixer); or --mixer mixup or cutmix, which need none."
)


@dataclass(frozen=True)
class Weights:
    """A diffusers directory that was checked.

    Attributes:
        name: as given.
        folder: where it lies.
        image_mixer: whether these are Image Mixer's, else those of an image-variation model.
        hash: of the parts that are used.
        resolution: side in pixels that the model was trained at.
        multiple: sides are multiples of this.
        image_size: side of the encoder's input.
        licence: what the directory says of itself.
    """

    name: str
    folder: Path
    image_mixer: bool
    hash: str
    resolution: int
    multiple: int
    image_size: int
    licence: str

    @property
    def parent(self) -> dict[str, str]:
        """The entry of a manifest's ``parents``."""
        return {"role": "weights", "path": self.name, "hash": self.hash}

    def kind(self, mixer: str, sources: int) -> str:
        """What a mixer is recorded as: image-variation weights make no Image Mixer of several sources."""
        if mixer != "imagemixer" or self.image_mixer:
            return mixer
        return "variation-tokens" if sources > 1 else "variation"


def find(name: str | None, mixer: str) -> Weights:
    """Locate and check the weights called ``name``: a directory, or a hub id with or without ``@revision``.

    Raises:
        InputError: none given or none there (with three ways out), pickled weights only, another kind of
            model.
        EnvironmentFault: a library that diffusion mixers need is not installed.
    """
    for library in ("diffusers", "transformers"):
        if importlib.util.find_spec(library) is None:
            raise EnvironmentFault(f"--mixer {mixer} needs {library}: pip install {library}.")
    if not name:
        raise InputError(f"--mixer {mixer} needs --weights. {_WAYS}")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _downloaded(name)
    index = _json(folder / "model_index.json")
    for part in PARTS:
        _check_part(folder / part, name)
    unet, vae, encoder = (_json(folder / part / "config.json") for part in PARTS)
    if unet.get("cross_attention_dim") != encoder.get("projection_dim"):
        raise InputError(
            f"{name} is no image-variation model: its UNet attends to {unet.get('cross_attention_dim')} "
            f"features, its image encoder gives {encoder.get('projection_dim')}."
        )
    side = unet.get("sample_size")
    blocks, image_size = vae.get("block_out_channels", [0] * 4), encoder.get("image_size", 224)
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 16 or type(image_size) is not int:
        raise InputError(
            f"{name}: the config.json of its vae or image_encoder is none that diffusers writes."
        )
    scale = 2 ** (len(blocks) - 1)
    files = sorted(p for part in PARTS for p in (folder / part).iterdir() if _is_read(p))
    files.append(folder / "scheduler" / "scheduler_config.json")
    hashes = {p.relative_to(folder).as_posix(): file_hash(p) for p in files if p.is_file()}
    return Weights(
        name=name,
        folder=folder,
        image_mixer=index.get("_class_name") == MARK,
        hash=digest(hashes),
        resolution=(side if isinstance(side, int) else 64) * scale,
        multiple=max(8, scale),
        image_size=image_size,
        licence=_licence(folder),
    )


def load_part(kind: Any, folder: Path, part: str, **options: Any) -> Any:
    """A network of the directory, read by its own class and from safetensors only.

    Args:
        kind: its class, so that nothing in the directory chooses code to run.
        folder: the directory.
        part: of ``PARTS``.
        options: keyword arguments of ``kind.from_pretrained``.

    Raises:
        InputError: a file is damaged, or a tensor is missing or of another shape.
    """
    reading = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        network, news = kind.from_pretrained(folder, subfolder=part, **reading, **options)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: each means that these files cannot be read
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{folder / part} cannot be loaded: {reason} Fetch or convert it again.") from error
    if lacking := sorted(news["missing_keys"]):
        raise InputError(f"{folder / part} lacks {len(lacking)} tensors, first {lacking[0]}.")
    return network


def _downloaded(name: str) -> Path:
    """The snapshot of a hub id, without pickled files."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise InputError(f"--weights {name} does not exist. {_WAYS}")
    patterns = ["model_index.json", "README.md", "scheduler/*.json"]
    patterns += [f"{part}/{kind}" for part in PARTS for kind in ("*.json", "*.safetensors")]
    with reachable_hub() as reachable:
        try:
            return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
        except Exception as error:  # of many kinds; without weights none of them helps the user
            if fault := cache_fault(error):
                raise fault from error
            reason = str(error).strip().partition("\n")[0] if reachable else "the hub cannot be reached"
            raise InputError(f"no weights {name} ({reason}, the cache has no copy). {_WAYS}") from error


def _check_part(part: Path, name: str) -> None:
    if not (part / "config.json").is_file():
        raise InputError(
            f"{name} has no {part.name}/config.json: it is no diffusers directory of an image-variation "
            f"model. {_WAYS}"
        )
    if not any(part.glob("*.safetensors")):
        raise InputError(
            f"{name} has no {part.name}/*.safetensors, and pickled weights are not read. Write them as "
            f"safetensors once: python {CONVERTER} --variations {name} --out DIR."
        )


def _is_read(file: Path) -> bool:
    return file.name == "config.json" or file.suffix == ".safetensors"


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise InputError(f"{file.parent} has no {file.name}: it is no diffusers directory. {_WAYS}")
    return read_object(file)


def _licence(folder: Path) -> str:
    """The ``license:`` of a model card's front matter."""
    try:
        text = read_bytes(folder / "README.md").decode("utf-8")
    except (OSError, ValueError, InputError):
        return ""
    found = re.search(r"\A---\s.*?^license:\s*(\S+)", text, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""
