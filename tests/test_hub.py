"""The hub's cache: where it cannot be written to, its owner is told which variable says where it lies."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from kdcli.errors import EnvironmentFault, InputError
from kdcli.hub import cache_fault
from kdcli.models import build
from kdcli.synthesis import weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def fault(place: Path, code: int = errno.EACCES) -> OSError:
    return OSError(code, os.strerror(code), str(place))


@pytest.mark.parametrize(
    ("place", "variable"),
    [("hf", "HF_HOME"), ("hub/models--x", "HF_HOME"), ("torch/hub/x.pth", "TORCH_HOME")],
)
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST])
def test_a_cache_that_cannot_be_written_to(cache: Path, place: str, variable: str, code: int) -> None:
    error = RuntimeError("of the library")
    error.__cause__ = fault(cache / place, code)
    found = cache_fault(error)
    assert found is not None
    assert found.exit_code == 4
    shown = f"cannot write to the cache of weights ({variable}): {cache / place}: {os.strerror(code)}. "
    assert str(found).startswith(shown)


def test_other_faults_are_none_of_the_caches(cache: Path) -> None:
    for error in (None, ValueError(), fault(cache / "hf2"), fault(cache / "hub", errno.ENOENT), OSError("x")):
        assert cache_fault(error) is None


def test_models_say_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **options: object) -> None:
        raise fault(cache / "hub" / "models--timm--test")

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(EnvironmentFault, match=r"cannot write to the cache of weights \(HF_HOME\)"):
        build.build("test_vit")
    monkeypatch.setattr("timm.create_model", lambda name, **options: 1 / 0)
    with pytest.raises(InputError, match="no weights for test_vit"):
        build.build("test_vit")


def test_diffusion_weights_say_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **options: object) -> None:
        raise fault(cache / "hub" / "models--lambdalabs")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(EnvironmentFault, match=r"cannot write to the cache of weights \(HF_HOME\)"):
        weights.find("lambdalabs/sd-image-variations-diffusers", "variation")
