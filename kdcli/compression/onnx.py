"""A network as an ONNX file, and the proof that ONNX Runtime answers what the network does.

The graph has one input, ``pixels``, and one output, ``logits``, ``embedding`` or ``detections``: what the
network answers in eval mode. Its batch is as large as it is given; its pictures have the network's size.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.artifacts.files import sync, write_bytes
from kdcli.errors import InputError, from_os_error, shortened
from kdcli.models.legacy import first_line
from kdcli.models.onnx import INPUT, refuse_missing, session
from kdcli.models.protocol import Model
from kdcli.tasks import entry

FILE = "model.onnx"
OPSET = 20  # that the exporter of torch 2.14 writes without converting
BOUND = 1e-3  # of the difference to the network, as a part of its largest answer, or of 1 where that is less
EXPORT = "--export onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TIE, _OTHERWISE = 1e-4, 0.25  # of scores; part of the pictures in which others may be chosen
_SINGLE = 2**31 - 2**24  # bytes of weights: a protobuf message ends at 2 GiB, and the graph takes a little


def export_onnx(network: Model, folder: Path, *, opset: int = OPSET, inside: bool = False) -> dict[str, Any]:
    """Write a network as ``model.onnx``, fp32, in eval mode; the same bytes for the same network.

    Above 2 GiB the weights stand beside it, in ``model.onnx.data``.

    Args:
        network: left as it is.
        folder: existing directory.
        opset: of the default domain.
        inside: whether the graph normalises by itself: it takes views uint8 [B, 3, H, W]. Else it takes what
            the network's ``prepare`` makes of them, float32 [B, C, H, W].

    Returns:
        Facts for the manifest: ``file``, ``files`` and ``bytes`` of all of them; ``opset``; ``input`` and
        ``output``, each of ``name``, ``dtype`` and ``shape``; ``inside``; ``versions`` of the packages.

    Raises:
        EnvironmentFault: a package is missing, or the disk refuses.
        InputError: the network cannot be traced, or has an operator that ONNX lacks.
    """
    refuse_missing(PACKAGES, EXPORT)
    own = plain_copy(network)
    given = example(own, inside)
    output = "detections" if detects(own) else "embedding" if embeds(own) else "logits"
    with quiet(), own.traceable():
        try:
            program: Any = torch.onnx.export(
                own,
                (given,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[output],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except Exception as error:  # the exporter raises errors of many kinds, some of them Python's own
            raise refusal(network, error, "onnx") from error
    model = program.model
    if model.opset_imports[""] != opset:
        raise InputError(
            f"{network.name} cannot be written in ONNX opset {opset}: the exporter stays at "
            f"{model.opset_imports['']}. Leave the opset out, which is then {OPSET}."
        )
    _forget_origin(model)
    files = _write(model, folder, sum(t.nbytes for t in own.state_dict().values()))
    return {
        "file": FILE,
        "files": files,
        "bytes": sum((folder / name).stat().st_size for name in files),
        "opset": opset,
        "input": _described(model.graph.inputs[0]),
        "output": _described(model.graph.outputs[0]),
        "inside": inside,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def embeds(network: Model) -> bool:
    """Whether what it answers is an embedding: its task compares pictures, or it has no classifier."""
    return entry(network.task).embeds or not network.outputs


def detects(network: Model) -> bool:
    """Whether what it answers are detections [B, K, 6]; see :func:`kdcli.models.detecting.detections`."""
    return "object" in entry(network.task).provides


def plain_copy(network: Model) -> Model:
    """A copy on the CPU, fp32, in eval mode and of the default layout: what is traced and compared with."""
    return copy.deepcopy(network).cpu().float().eval().to(memory_format=torch.contiguous_format)


def example(network: Model, inside: bool) -> Tensor:
    """Two made-up pictures to trace by: a batch of one would be traced as one for ever."""
    size = network.spec.size
    if inside:
        return torch.zeros(2, 3, *size, dtype=torch.uint8)
    return torch.zeros(2, network.spec.channels, *size)


def refusal(network: Model, error: Exception, kind: str) -> InputError:
    """What is said of a network that ``--export KIND`` cannot write: the operator, or the first reason."""
    cause: Any = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    operator = re.search(r"op='([\w:.]+)'", str(cause))
    if operator:
        why = f"ONNX has no operator for {operator[1]}"
    else:
        why = f"it cannot be traced ({shortened(first_line(cause)).rstrip('.')})"
    hint = "Try --export torch" if operator else "Leave --export out"
    return InputError(f"--export {kind}: {network.name} ({network.architecture}): {why}. {hint}.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print, log and warn of away from the console, whose lines mean something."""
    level, handlers = logging.root.manager.disable, list(logging.root.handlers)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
            logging.root.handlers[:] = handlers  # logging.warning() adds one, of a stream that is gone now


def _forget_origin(model: Any) -> None:
    """Remove what the exporter notes of source files and symbols, in which equal networks differ."""
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()


def _write(model: Any, folder: Path, size: int) -> list[str]:
    """Write a model of so many bytes of weights; returns names of files."""
    import onnx
    import onnx_ir

    file, names = folder / FILE, [FILE]
    if size > _SINGLE:
        names.append(f"{FILE}.data")
        try:
            onnx_ir.save(model, file, external_data=names[1], size_threshold_bytes=1024)
        except OSError as error:
            raise from_os_error(error, file, size) from error
        for name in names:
            sync(folder / name)
    else:
        write_bytes(file, onnx_ir.to_proto(model).SerializeToString(deterministic=True))
    onnx.checker.check_model(str(file))
    return names


def _described(value: Any) -> dict[str, Any]:
    """Name, type and shape of an input or output; what is dynamic by its name."""
    shape = [side if isinstance(side, int) else str(getattr(side, "value", side)) for side in value.shape]
    return {"name": value.name, "dtype": value.dtype.numpy().name, "shape": shape}


# -- the proof -----------------------------------------------------------------------------------------------


def check_onnx(
    file: Path, network: Model, batches: Iterable[Tensor], *, bound: float = BOUND
) -> dict[str, Any]:
    """Compare ONNX Runtime's answers with the network's.

    The first pictures are also compared alone and as a batch of three.

    Args:
        file: of :func:`export_onnx`.
        network: that it was made of, left as it is.
        batches: views uint8 [B, 3, H, W] of real pictures, of the network's size.
        bound: of the largest absolute difference, as a part of the largest answer (or of 1, if that is more).

    Returns:
        ``difference``, the largest absolute one, ``largest``, the largest absolute answer of the network,
        ``bound``, ``pictures`` and ``batches``, the sizes tried.

    Raises:
        InputError: no pictures, or a difference above the bound.
        EnvironmentFault: a package is missing.
    """
    facts = compare(file, network, batches)
    limit = bound * max(1.0, facts["largest"])
    if not facts["difference"] <= limit:  # NaN is above any bound
        ties = "Of a detector that has not been trained, places may score alike. "
        why = ties if detects(network) else ""
        raise InputError(
            f"{file}: ONNX Runtime's answers differ from those of {network.name} by "
            f"{facts['difference']:.3g}, and {limit:.3g} is allowed ({bound:g} of the largest answer, "
            f"{facts['largest']:.3g}). {why}The file is of no use: leave --export onnx out."
        )
    return {**facts, "bound": bound}


@torch.no_grad()
def compare(file: Path, network: Model, batches: Iterable[Tensor]) -> dict[str, Any]:
    """:func:`check_onnx` without a bound: what is measured of a file that is meant to differ.

    A detector begins at the places that score highest, and where two of them score alike the last digit
    decides which. So up to a quarter of the pictures are left out of ``difference``, those that differ most,
    and ``chosen_otherwise`` counts the ones beyond :data:`BOUND`.
    """
    running, own, chooses = session(file), plain_copy(network), detects(network)
    whole = running.get_inputs()[0].type == "tensor(uint8)"
    gaps: list[float] = []
    largest, pictures, sizes = 0.0, 0, set()
    for number, views in enumerate(batches):
        pictures += len(views)
        parts = [views] if number else [views, views[:1], views[torch.arange(3) % len(views)]]
        for part in parts:
            given = part if whole else own.prepare(part)
            found = torch.from_numpy(running.run(None, {INPUT: given.contiguous().numpy()})[0])
            wanted = own(given)
            if found.shape != wanted.shape:
                raise InputError(
                    f"{file} answers {list(found.shape)}, and {network.name} {list(wanted.shape)}."
                )
            gaps += apart(found, wanted) if chooses else [float((found - wanted).abs().max())]
            largest = max(largest, float(wanted.abs().max()))
            sizes.add(len(part))
        if any(map(math.isnan, gaps)):
            break
    if not pictures:
        raise InputError(f"{file} cannot be checked without pictures.")
    kept = sorted(gaps, key=lambda gap: math.inf if math.isnan(gap) else gap)
    if chooses and not any(map(math.isnan, gaps)):
        kept = kept[: math.ceil(len(kept) * (1 - _OTHERWISE))]
    more = {"chosen_otherwise": sum(not gap <= BOUND for gap in gaps)} if chooses else {}
    facts = {"difference": kept[-1], "largest": largest, "pictures": pictures, "batches": sorted(sizes)}
    return {**facts, **more}


def apart(found: Tensor, wanted: Tensor) -> list[float]:
    """How far the detections [B, K, 6] of each picture are apart, whatever their order.

    Each one that is wanted is compared with the nearest that was found, in any number that it has. Those
    whose score is that of the last one, within 0.0001, may be missing: others were cut off.
    """
    gaps = []
    for ours, theirs in zip(found, wanted):
        kept = theirs[theirs[:, 4] > theirs[-1, 4] + _TIE] if len(theirs) > 1 else theirs
        nearest = (kept[:, None] - ours).abs().amax(dim=2)
        finite = bool(ours.isfinite().all() and theirs.isfinite().all())
        gaps.append((float(nearest.amin(dim=1).max()) if len(kept) else 0.0) if finite else math.nan)
    return gaps


def shape_of(facts: Mapping[str, Any], what: str) -> str:
    """``float32 [batch, 3, 224, 224]`` of the ``input`` or ``output`` of :func:`export_onnx`'s facts."""
    return f"{facts[what]['dtype']} [{', '.join(map(str, facts[what]['shape']))}]"
