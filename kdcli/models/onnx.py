"""An exported ONNX file as a model: what ONNX Runtime answers, measured like everything else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli import errors
from kdcli.artifacts.forms import Form
from kdcli.errors import InputError, shortened
from kdcli.models.legacy import first_line
from kdcli.models.protocol import Model

INPUT = "pixels"
_QUERIES = 2  # dimensions of the logits of a detector's queries


class OnnxModel(Model):
    """A network that answers through ONNX Runtime, on the CPU, with as many threads as torch has.

    Args:
        network: the artifact that the file was made of; it prepares pictures, and its parameters and FLOPs
            are what is counted.
        form: the file.

    Raises:
        EnvironmentFault: ONNX Runtime is not installed.
        InputError: it cannot load the file.
    """

    def __init__(self, network: Model, form: Form) -> None:
        super().__init__(
            network.spec,
            network.classes,
            name=str(form.file),
            source=form.hash,
            trained=network.trained,
            task=network.task,
            unnamed=network.unnamed,
            notes=network.notes,
            temperature=network.temperature,
        )
        self.network, self._whole = network, form.whole
        self._session = session(form.file, torch.get_num_threads())
        self._rows: Tensor | None = None

    @property
    def counted(self) -> nn.Module:
        """The network of torch."""
        return self.network

    @property
    def runs_in(self) -> str:
        """ONNX Runtime, and its version."""
        return f"cpu, onnxruntime {metadata.version('onnxruntime')}"

    def prepare(self, x: Tensor) -> Tensor:
        """As the network does."""
        return self.network.prepare(x)

    def restore(self, x: Tensor) -> Tensor:
        """As the network does."""
        return self.network.restore(x)

    def forward(self, x: Tensor) -> Tensor:
        """What it answers to views (uint8) or prepared pictures (float), on the device of these."""
        if self._whole and x.dtype != torch.uint8:
            x = self.network.restore(x)
        given = x if self._whole else self.network.prepare(x)
        found = self._session.run(None, {INPUT: given.cpu().contiguous().numpy()})[0]
        answer = torch.from_numpy(found).to(x.device)
        if self._rows is None:
            return answer
        rows = self._rows.to(x.device)
        if len(self.logit_shape) == _QUERIES:  # detections, whose last number is a class
            own = answer[..., -1].long()
            return torch.cat([answer[..., :-1], rows.argsort()[own][..., None].to(answer.dtype)], dim=2)
        return answer.index_select(1, rows)

    def call(self, inputs: Sequence[Tensor], taps: Sequence[str]) -> dict[str, Any]:
        """What it answers, by the name that it has. Raises InputError for any other tap."""
        if unknown := next((tap for tap in taps if tap not in ("logits", "embedding")), None):
            raise InputError(f"{self.name} has no tap '{unknown}': an exported form gives its answer alone.")
        return dict.fromkeys(taps, self(self._single(inputs)))

    def reorder(self, order: Sequence[int] | None, classes: list[str]) -> None:
        """Give the answers in the order of ``classes``; ``order[i]`` is the old place of class i."""
        self.classes = list(classes)
        if order is not None:
            rows = torch.tensor(list(order))
            self._rows = rows if self._rows is None else self._rows[rows]

    def tappable(self) -> dict[str, nn.Module]:
        """None: a graph has no modules."""
        return {}

    def tensor(self, name: str) -> Tensor:
        """None. Raises InputError: a graph's weights have no names here."""
        self._refuse("parameters that a method could read")

    @property
    def architecture(self) -> str:
        """That of the network."""
        return self.network.architecture

    @property
    def layout(self) -> str:
        """ONNX Runtime loads its file."""
        return "onnx"

    @property
    def logit_shape(self) -> tuple[int, ...]:
        """That of the network."""
        return self.network.logit_shape

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
        """Refused: it stands in its artifact already."""
        self._refuse("files of its own to write")


def refuse_missing(packages: Sequence[str], what: str) -> None:
    """Raise EnvironmentFault if a package of the extra ``export`` is not installed.

    Args:
        packages: that are needed.
        what: for, to begin the message with.
    """
    errors.refuse_missing(packages, "export", what)


def session(file: Path, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU, which says nothing but errors.

    Args:
        file: an ONNX file.
        threads: of one operator; 0 for as many as there are cores.

    Raises:
        EnvironmentFault: it is not installed.
        InputError: it cannot load the file.
    """
    refuse_missing(("onnxruntime",), str(file))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common kind
        reason = shortened(first_line(error))
        raise InputError(f"{file}: ONNX Runtime does not load it ({reason}). Update onnxruntime.") from error
