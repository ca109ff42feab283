"""Make new pictures of a training set: mixtures and variations, without labels and without prompts.

One process:     kdcli synthesize --weights image-mixer/ --data cars/ --per-image 2 --out runs/mixed
Several GPUs:    kdcli synthesize -n 8 --precision bf16 --weights image-mixer/ --data cars/ --count 100000
Tiny, on a CPU:  kdcli synthesize --mixer cutmix --data example:fashion-mnist --count 64

"On Good Practices for Task-Specific Distillation of Large Pretrained Visual Models" (arXiv 2402.11305) mixes
training pictures with Image Mixer; ``kdcli distill --extra`` reads what this stage writes. Only the split
``data.train`` is read, as a whole: where the data have no validation split, the part of train that probe and
distill carve for validation is among the sources too (carving needs the labels, which are never read here).

Picture j depends on (seed, j) alone: any ``--shard``, any number of processes and any restart make the same.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdcli import synthesis
from kdcli.artifacts import dataset
from kdcli.artifacts.manifest import Manifest, digest
from kdcli.config import Section, inputs, method_option, option, outputs, reading, running
from kdcli.console import Console
from kdcli.errors import BadImageError, InputError, UsageError
from kdcli.launch import world_size
from kdcli.sections import DataSection, RunSection
from kdcli.stages import Result, frame
from kdcli.synthesis import draws

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.data.samples import Data, Samples
    from kdcli.engine.generate import Job
    from kdcli.engine.runtime import Runtime
    from kdcli.synthesis.weights import Weights
