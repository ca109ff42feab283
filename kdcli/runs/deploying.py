"""A network in the forms that others run: ONNX in a folder that answers by itself, a program of torch.

``kdcli compress --method none`` writes them of a network as it is; the other methods beside what they made.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdcli.artifacts.manifest import Manifest
from kdcli.console import Console, size
from kdcli.errors import UsageError
from kdcli.runs import Result, banks, frame, places, show

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.samples import Samples
    from kdcli.engine.runtime import Stop
    from kdcli.models.protocol import Model

FORMS = ("onnx", "torch")
_WEIGHTS = "weights"
_CHECKED, _CALIBRATED, _BATCH = 64, 256, 16  # pictures that answers are compared on, and ranges are found on


def refuse_forms(config: Any) -> None:
    """Raise UsageError or EnvironmentFault for forms that there are not, or that lack their packages."""
    if odd := [form for form in config.export if form not in FORMS]:
        raise UsageError(f"--export {odd[0]}: there are {' and '.join(FORMS)}.")
    if config.quantize == "int4":
        raise UsageError(
            "--quantize int4: torchao's formats of 4 bits have kernels for CUDA, and none that ran on CPUs "
            "here: what was not measured is not written. --quantize weights keeps 8 bits."
        )
    if config.quantize == _WEIGHTS and config.method.name != "none":
        raise UsageError("--quantize weights keeps a finished network in fewer bytes: take --method none.")
    if config.quantize not in (None, _WEIGHTS) and "onnx" not in config.export:
        raise UsageError("--quantize makes an ONNX file compute in integers: give --export onnx.")
    if config.inside and not config.export:
        raise UsageError("inside: it says what an exported graph takes; give --export.")
    if "onnx" in config.export:
        from kdcli.compression.onnx import EXPORT, PACKAGES
        from kdcli.models.onnx import refuse_missing

        refuse_missing(PACKAGES, EXPORT)


def refuse_few(config: Any, samples: Samples) -> None:
    """Raise InputError for integers that are asked for where too few pictures give their ranges."""
    if config.quantize == "int8":
        from kdcli.compression.quantize import refuse_few

        refuse_few(min(len(samples), _CALIBRATED))


def written(
    network: Model, folder: Path, config: Any, samples: Samples, console: Console, **card: Any
) -> tuple[list[str], dict[str, Any]]:
    """Write the forms that are asked for, each in a folder of its own.

    Args:
        network: left as it is.
        folder: of the artifact.
        config: of ``compress``: ``export``, ``quantize``, ``inside``, and how pictures are read.
        samples: real pictures, on which answers are compared and ranges of integers are found.
        console: says what was found.
        card: ``metrics`` and ``licence`` for the card beside an ONNX file.

    Returns:
        Names of the folders, and facts by form.

    Raises:
        InputError: a network that a form cannot hold, or answers that differ.
        EnvironmentFault: a package is missing.
    """
    found: dict[str, Any] = {}
    for form in dict.fromkeys(config.export):
        (folder / form).mkdir(exist_ok=True)
        if form == "torch":
            from kdcli.compression.exported import export_torch

            found[form] = export_torch(network, folder / form, inside=config.inside)
            console.note(f"exported torch/{found[form]['file']}: {size(found[form]['bytes'])}")
        else:
            found[form] = _onnx(network, folder / form, config, samples, console, card)
    return list(found), found


def rehearse(network: Model, config: Any) -> None:
    """Write the forms that are asked for to nowhere, so that what they cannot hold is refused before a run.

    Raises:
        InputError: a network that a form cannot hold.
    """
    import tempfile

    from kdcli.compression.deployment import preprocessing
    from kdcli.compression.exported import export_torch
    from kdcli.compression.onnx import export_onnx
    from kdcli.compression.quantize import refuse_detectors

    if config.quantize == "int8":
        refuse_detectors(network, "static")
    for form in dict.fromkeys(config.export):
        with tempfile.TemporaryDirectory() as folder:
            if form == "torch":
                export_torch(network, Path(folder), inside=config.inside)
            else:
                preprocessing(network, export_onnx(network, Path(folder), inside=config.inside))


def _onnx(
    network: Model, folder: Path, config: Any, samples: Samples, console: Console, card: dict[str, Any]
) -> dict[str, Any]:
    from kdcli.compression.deployment import deploy
    from kdcli.compression.onnx import check_onnx, export_onnx

    facts = export_onnx(network, folder, inside=config.inside)
    facts["check"] = check_onnx(folder / facts["file"], network, _batches(network, samples, _CHECKED, config))
    console.note(
        f"exported onnx/{facts['file']}: {size(facts['bytes'])}; on {facts['check']['pictures']} pictures "
        f"its answers differ by {facts['check']['difference']:.2g} at most"
    )
    if config.quantize not in (None, _WEIGHTS):
        from kdcli.compression.quantize import quantise_onnx

        kind: Literal["static", "dynamic"] = "dynamic" if config.quantize == "int8-dynamic" else "static"
        own = quantise_onnx(network, folder, facts, _batches(network, samples, _CALIBRATED, config), kind)
        told = own["quantised"]
        console.note(
            f"quantised onnx/{own['file']}: {size(own['bytes'])}, {kind} int8; its answers differ by "
            f"{told['difference']:.2g} at most, the largest of which is {told['largest']:.3g}"
        )
        facts = {**own, "files": [*facts["files"], *own["files"]], "fp32": facts}
        card = {**card, "metrics": None}  # measured of the other file
    deploy(network, folder, facts, **card)
    return facts


def _batches(network: Model, samples: Samples, count: int, config: Any) -> Sequence[Tensor]:
    """Evaluation views of so many pictures, at even steps through all."""
    import numpy as np

    from kdcli.data.batches import evaluation_loader
    from kdcli.data.order import in_order

    chosen = samples.take(np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)))
    reading = {**frame.reading(config, config.data), "workers": 0}
    loader = evaluation_loader(chosen, network.spec, **reading)
    return [batch["x"] for batch in loader(in_order(len(chosen), _BATCH))]


# -- a network as it is --------------------------------------------------------------------------------------


@dataclass
class Plan:
    """Everything that writing forms of a network needs, checked."""

    config: Any
    target: frame.Target
    network: Model
    samples: Samples

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "forms": list(dict.fromkeys(self.config.export)),
            "quantize": self.config.quantize,
            "parameters": show.parameters({"student": self.network}),
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        show.network(console, "student", self.network)
        console.note(
            f"reads    {self.config.data.source}: {len(self.samples):,} pictures, to compare answers on"
        )
        integers = f", {self.config.quantize}" if self.config.quantize else ""
        console.note(f"exports  {', '.join(dict.fromkeys(self.config.export)) or 'nothing'}{integers}")
        console.note(f"writes   {self.target.path}")


def plan(config: Any, unless_complete: bool) -> Plan | Result:
    """Check the network and the pictures.

    Raises:
        UsageError: no form is asked for.
        InputError: a network or data that cannot be read.
    """
    from functools import partial

    from kdcli.data.sources import open_train
    from kdcli.models.build import build

    if not config.export and config.quantize != _WEIGHTS:
        raise UsageError("--method none makes nothing smaller: it is for --export, or --quantize weights.")
    if config.student in (None, "", "same"):
        raise UsageError("--method none needs --student: the network that is exported.")
    student = config.student
    frame.require(config.data.source, "--data")
    data = open_train(config.data, partial(places.kept_hashes, config))
    samples = data.split("train")
    refuse_few(config, samples)
    parents = [frame.parent("student", student, config.weights)]
    target = frame.target("compress", config, parents, {"data": data.fingerprint})
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))
    network = build(student, weights=config.weights, size=config.image_size).eval()
    if config.quantize == "int8":
        from kdcli.compression.quantize import refuse_detectors

        refuse_detectors(network, "static")
    return Plan(config, target, network, samples)


def run(plan: Plan, console: Console, *, stop: Stop | None = None, command: str = "") -> Result:
    """Write the network and its forms as a model artifact.

    Raises:
        InputError: a form that cannot hold the network.
    """
    from kdcli.engine.runtime import open_runtime, shared_output
    from kdcli.models.integers import quantised, restored, sizes
    from kdcli.runs.card import write_card

    config, path = plan.config, plan.target.path
    runtime = open_runtime(config)
    with shared_output(path, plan.target.identity, config.overwrite, runtime) as output:
        if output is not None and runtime.main:
            show.decisions(console, {"student": plan.network})
            network, known = copy.deepcopy(plan.network), frame.model_facts(str(config.student))
            tensors = None
            if config.quantize == _WEIGHTS:
                tensors = quantised(network)
                network.load_state_dict(restored(tensors))
            keep = network.save(output.partial, tensors)
            metrics = dict(known.get("metrics") or {}) if config.image_size is None and not tensors else {}
            names, forms = written(network, output.partial, config, plan.samples, console, metrics=metrics)
            manifest = Manifest("model", "compress", plan.target.identity, plan.target.parents)
            names_kept = ["calibration", "data", "selection"]
            if not tensors and config.image_size is None:  # else it is not what was measured
                names_kept.append("metrics")
            kept = {key: known[key] for key in names_kept if key in known}
            manifest.facts = frame.facts(
                config,
                command,
                task=network.task,
                layout=network.layout if tensors is None else "kdcli",
                classes=network.classes,
                **banks.described(network),
                **({} if tensors is None else {"weights": sizes(tensors)}),
                **kept,
                forms=forms,
                **frame.decisions({"student": plan.network}),
                **runtime.describe(),
            )
            keep.append(write_card(network, manifest, output.partial))
            output.commit(manifest, [*keep, *names])
            console.note(f"{path}: {', '.join(names)}")
        runtime.barrier()
    return Result(path, frame.summary(path))
