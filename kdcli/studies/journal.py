"""A study on disk: Optuna's journal in a folder that several processes, or machines, share.

A trial belongs to who holds the lock on its claim, a file of its own, which the system drops with the
process: what is left RUNNING without a holder is taken over and goes on. The journal's lock is one of that
kind too, so that none is stale, and who takes it cuts off a last line that a killed process left torn. A
trial is written with all its settings at once, and drawn by a sampler whose seed is a function of the study
and the trial's number: one process, killed wherever, tries what an undisturbed one does.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdcli.artifacts.files import sync, write_bytes
from kdcli.artifacts.lock import take
from kdcli.artifacts.manifest import differing
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError
from kdcli.seeds import seed_of
from kdcli.words.space import Choice, Dimension, Space

JOURNAL, STUDY, LOCK, CLAIMS, TRIALS = "journal.log", "study.json", "study.lock", "claims", "trials"
_OURS = {LOCK, CLAIMS, TRIALS, f"{STUDY}.partial"}  # before it is a study
_POLL_S = 0.05
_SEARCH = 41  # keeps the numbers of samplers apart from seeds made of the same numbers
_BEGINNING = 10  # trials that are drawn at random before the sampler models them
_NAME = "kdcli"


class _JournalLock:
    """The system's lock on a file beside the journal, as Optuna takes one; it mends the journal."""

    def __init__(self, journal: Path) -> None:
        self._journal, self._held = journal, -1

    def acquire(self) -> bool:
        """Wait for it, and cut off a torn last line."""
        self._held = os.open(f"{self._journal}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        take(self._held, _POLL_S, lambda _: None)
        mend(self._journal)
        return True

    def release(self) -> None:
        """Let others write."""
        os.close(self._held)


def mend(journal: Path) -> None:
    """Cut off what a killed process wrote of a last line."""
    with open(journal, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if not end:
            return
        at, tail = end, b""
        while at and b"\n" not in tail:
            at = max(at - 4096, 0)
            file.seek(at)
            tail = file.read(end - at)
        whole = at + tail.rfind(b"\n") + 1
        if whole < end:
            file.truncate(whole)
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Claim:
    """A trial that this process works at.

    Attributes:
        number: of the trial.
        values: its settings, by key of the configuration.
    """

    number: int
    values: Mapping[str, Any]


class Journal:
    """The trials of one study.

    Args:
        folder: of the study; made where it is not there.
        identity: what makes the study what it is.
        seed: of its samplers.
        space: what settings are drawn from.

    Raises:
        InputError: the folder holds something else, or another study.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], seed: int, space: Space) -> None:
        self.folder, self.seed, self.space = folder, seed, space
        _open_folder(folder, identity)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        lock: Any = _JournalLock(folder / JOURNAL)
        backend = JournalFileBackend(str(folder / JOURNAL), lock_obj=lock)
        self._storage = JournalStorage(backend)
        with self.alone():
            known = [study.study_name for study in self._storage.get_all_studies()]
            if _NAME not in known:
                self._storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], _NAME)
        self._study = self._storage.get_study_id_from_name(_NAME)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the study: who looks for work is alone while it does."""
        with _holding(self.folder / LOCK, lambda _: None):
            yield

    def trials(self) -> list[FrozenTrial]:
        """All trials by number."""
        return sorted(self._storage.get_all_trials(self._study), key=lambda trial: trial.number)

    def left(self, most: int) -> bool:
        """Whether a trial of the first ``most`` is yet to be made or finished."""
        found = self.trials()[:most]
        return len(found) < most or not all(trial.state.is_finished() for trial in found)

    @contextmanager
    def claim(self, most: int) -> Iterator[Claim | None]:
        """A trial for this process alone: one that its process left, or a new one; None for none."""
        with self.alone():
            number, held = self._taken(most)
        try:
            yield None if number is None else Claim(number, values_of(self.trials()[number]))
        finally:
            if held is not None:
                os.close(held)

    def _taken(self, most: int) -> tuple[int | None, int | None]:
        found = self.trials()
        for trial in (trial for trial in found if not trial.state.is_finished()):
            if (held := self._hold(trial.number)) is None:
                continue
            if not self.trials()[trial.number].state.is_finished():  # else it was, and let go, meanwhile
                return trial.number, held
            os.close(held)
        number = len(found)
        if number >= most:
            return None, None
        held = self._hold(number)
        assert held is not None, "nobody works at a trial that there is not"
        distributions = {key: _distribution(own) for key, own in self.space.items()}
        params = drawn(found, distributions, seed_of(self.seed, number, _SEARCH) & 0xFFFFFFFF)
        made = create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        self._storage.create_new_trial(self._study, template_trial=made)
        return number, held

    def _hold(self, number: int) -> int | None:
        """The open file of a claim, locked; None where another process has it."""
        import fcntl

        path = self.folder / CLAIMS / f"{number:04d}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    # -- what a trial says
    def reached(self, number: int, rung: int, value: float) -> list[float]:
        """Note a trial's value at a rung; what the others had there so far."""
        trial = self._id(number)
        self._storage.set_trial_intermediate_value(trial, rung, value)
        others = (t for t in self.trials() if t.number != number)
        return [t.intermediate_values[rung] for t in others if rung in t.intermediate_values]

    def finish(self, number: int, value: float, pruned: bool, facts: Mapping[str, Any]) -> None:
        """A trial is done."""
        for key, fact in facts.items():
            self._storage.set_trial_user_attr(self._id(number), key, fact)
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        self._storage.set_trial_state_values(self._id(number), state, [value])

    def fail(self, number: int, why: str) -> None:
        """A trial cannot be made."""
        self._storage.set_trial_user_attr(self._id(number), "why", why)
        self._storage.set_trial_state_values(self._id(number), TrialState.FAIL)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study, number)


def drawn(
    found: list[FrozenTrial], distributions: Mapping[str, BaseDistribution], seed: int
) -> dict[str, Any]:
    """Settings of one more trial: a function of those before it and of a seed.

    By a tree-structured Parzen estimator (Bergstra et al. 2011; multivariate, Falkner et al. 2018), once
    there are enough trials; those that others work at count as bad (constant liar).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_BEGINNING, multivariate=True, constant_liar=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(found)
        return dict(study.ask(dict(distributions)).params)


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """Settings of a trial, by key of the configuration."""
    return {
        key: json.loads(value) if isinstance(value, str) else value for key, value in trial.params.items()
    }


def _distribution(own: Dimension) -> BaseDistribution:
    if isinstance(own, Choice):  # as JSON: lists and words alike
        return CategoricalDistribution([json.dumps(value) for value in own.values])
    if own.whole:
        return IntDistribution(int(own.low), int(own.high), log=own.log)
    return FloatDistribution(own.low, own.high, log=own.log)


def _open_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a study's folder, or check that it is this one's."""
    if folder.is_dir() and not (folder / STUDY).is_file() and not set(os.listdir(folder)) <= _OURS:
        raise InputError(f"--study {folder} holds something else. Choose another folder.")
    for part in (CLAIMS, TRIALS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    own = json.loads(json.dumps(identity, default=str))
    with _holding(folder / LOCK, lambda _: None):
        if (folder / STUDY).is_file():
            if fields := differing(read_object(folder / STUDY), own):
                raise InputError(
                    f"--study {folder} belongs to other settings: {'; '.join(fields[:6])}. Choose another "
                    "folder."
                )
            return
        draft = folder / f"{STUDY}.partial"
        write_bytes(draft, json.dumps(own, indent=1).encode())
        os.rename(draft, folder / STUDY)
        sync(folder)


@contextmanager
def _holding(path: Path, held: Callable[[int], None]) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        take(fd, _POLL_S, held)
        yield
    finally:
        os.close(fd)
