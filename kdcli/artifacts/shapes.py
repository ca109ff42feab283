"""The types of a manifest's fields, checked once when it is read, so that no one meets a number for a list.

Only what kdcli reads of an artifact is described; whatever else a manifest says is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

Count = Annotated[int, Field(ge=0, lt=2**63)]
Pair = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
Widths = Annotated[list[Count], Field(min_length=2, max_length=2)]
Shard = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}/[0-9]{1,6}$")]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _File(_Part):
    sha256: str
    size: Count


class _Split(_Part):
    hash: str = ""


class _Data(_Part):
    splits: dict[str, _Split] = {}


class _Config(_Part):
    data: dict[str, Any] = {}
    shard: Shard | None = None


class _Identity(_Part):
    config: _Config = _Config()


class _Calibration(_Part):
    temperature: Annotated[float, Field(gt=0, lt=1e6)] = 1.0


class _Answers(_Part):
    said: str = ""
    warning: str = ""


class _Compression(_Part):
    widths: Annotated[dict[str, Widths], Field(min_length=1)]
    removed: Count
    flops: Pair
    parameters: Pair
    latency_ms: Pair | None = None
    cut: Count = 0
    metrics: dict[str, dict[str, float]]


class _OnnxFile(_Part):
    file: str
    files: list[str]
    inside: bool = False


class _Onnx(_OnnxFile):
    fp32: _OnnxFile | None = None


class _Forms(_Part):
    onnx: _Onnx | None = None


class _Manifest(_Part):
    kind: str
    stage: str
    identity: _Identity
    parents: list[dict[str, str]]
    files: dict[str, _File]
    classes: list[str] | None = None
    data: _Data | None = None
    calibration: _Calibration | None = None
    compression: _Compression | None = None
    forms: _Forms = _Forms()
    images: Count = 0
    key: str = ""
    licences: dict[str, str] = {}
    metrics: dict[str, Any] = {}
    selection: str = ""
    targets: list[str] = []
    task: str | None = None
    teacher_answers: _Answers | None = None


def malformed(manifest: Mapping[str, Any]) -> str:
    """The first field that is of another type than kdcli writes, and how; empty if there is none."""
    try:
        _Manifest.model_validate(dict(manifest))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = [str(part)[:60] for part in first["loc"]]
        why = first["msg"].partition(" or instance of")[0].lower()
        return f"{where[0]} is malformed ({'.'.join(where)}: {why})"
    return ""
