"""The one training loop, on accelerate.

Order in a step: turns in order; inside a turn micro-batches (forward, states updated, backward) → unscale →
edit gradients → clip → step → edit weights; then EMA, the log row, the evaluation, the commit. Everything
random in step k is seeded by (seed, k, rank), so a run stopped anywhere and resumed makes the same steps bit
for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.artifacts.model import read_tensors
from kdcli.artifacts.store import Output, remove, write_tensors
from kdcli.console import Console, Progress
from kdcli.engine import state
from kdcli.engine.average import average_of
from kdcli.engine.clipping import Clipping
from kdcli.engine.edits import Edits
from kdcli.engine.guard import Guard
from kdcli.engine.job import Job, Outcome, outcome_of
from kdcli.engine.memory import micro_batches_by_trial
from kdcli.engine.observe import Observer
from kdcli.engine.optim import Rates, build_optimizer, build_schedule, section_of
from kdcli.engine.runtime import Runtime, Stop, watching
from kdcli.engine.states import copied, held, put_back
from kdcli.engine.turn import TurnModule
from kdcli.errors import Preempted
from kdcli.sections import OptimSection
from kdcli.seeds import seed_of
from kdcli.words import Span, Turn

LOG = "metrics.jsonl"
_OVERFLOWS = 25


def train(job: Job, output: Output, runtime: Runtime, console: Console, stop: Stop | None = None) -> Outcome:
    """Run all phases of a method, resuming from the last committed state of ``output``.

    Raises:
        Diverged: NaN or Inf; the state before the step is committed if it can still be had.
        Preempted: a signal came; the state after the step is committed.
    """
    with watching(stop):
        return _Run(job, output, runtime, console, stop).all_phases()


class _Run:
    """The loop's variables; one object per run."""

    def __init__(
        self, job: Job, output: Output, runtime: Runtime, console: Console, stop: Stop | None
    ) -> None:
        self.job, self.output, self.runtime, self.console, self.stop = job, output, runtime, console, stop
        names = (job.method.export, *job.method.beside)
        self.kept = nn.ModuleDict({name: job.parties[name] for name in names})  # what is written
        self.ema = average_of(self.kept, job.optim.ema) if job.optim.ema else None
        self.progress = state.Progress()
        self.found = output.last_state()
        self.saved_at = time.monotonic()
        self.states = copied(job.states, runtime.device)
        self.before = held(self.states)  # a turn
        self.trained = {p.name: job.parties[p.name] for p in job.method.parties if p.role == "trained"}
        self.guard = Guard(self.trained, runtime, output, job.remedy, keeps=job.looks)
        self.batches = job.batches
        self.looks = True  # at the loss of this step

    @property
    def result(self) -> nn.ModuleDict:
        """The parties that are written, as they are judged: averaged, if asked for."""
        return self.ema.module if self.ema else self.kept

    # -- phases ----------------------------------------------------------------------------------------------
    def all_phases(self) -> Outcome:
        for span in self.job.method.spans(self.job.schedule_steps, self.job.steps):
            if self.found is None or self.found[0] < span.end or span.end == self.job.steps:
                self._phase(span)
        for name, clipped in self.progress.clipping.items():
            self.console.note(clipped.said_of(name))
        return self._outcome()

    def _phase(self, span: Span) -> None:
        phase, begin, end = span.phase, span.begin, span.end
        job, prepare, shared = self.job, self.runtime.prepare, self.runtime.world_size > 1
        trained = {name for turn in phase.turns for name in turn.trains}
        modules = {
            turn.name: TurnModule(turn, job.parties, trained, states=self.states, shared=shared)
            for turn in phase.turns
        }
        self.optims = {turn.name: section_of(turn, job.optim) for turn in phase.turns}
        self.edits = {turn.name: Edits(turn, job.parties, self.states) for turn in phase.turns}
        self.optimizers = {
            turn.name: build_optimizer(modules[turn.name].trained, self.optims[turn.name], turn.groups)
            for turn in phase.turns
        }
        self.schedules = {
            name: self._schedule(o, self.optims[name], span.length) for name, o in self.optimizers.items()
        }
        self.clips = {
            turn.name: Clipping(
                turn, job.method.parties, modules[turn.name], self.optims[turn.name].clip_grad
            )
            for turn in phase.turns
        }
        self.scaler = self.runtime.accelerator.scaler
        self._restore(begin)
        world = self.runtime.world_size
        self.observer = Observer(job.watch, modules, self.progress.observed, world)
        prepared = {name: prepare(m) for name, m in modules.items()}
        # Where the state is, it stays: to place it, accelerate would load it anew, each tensor retyped.
        self.steppers = {n: prepare(o, device_placement=[False]) for n, o in self.optimizers.items()}
        with (
            state.Log(self.output.partial / LOG, self.progress.log_bytes, self.runtime.main) as self.log,
            self._bar() as bar,
        ):
            if self.progress.step < end and not self.progress.ended:
                self._steps(span, prepared, bar)
            if job.save_ends and (self.found is None or self.found[0] < end):
                self._commit()
            self.progress.log_bytes = self.log.length
        self.runtime.release()
        del prepared

    def _schedule(self, optimizer: Any, optim: OptimSection, length: int) -> Any:
        if self.job.rate is not None:
            return Rates(optimizer, self.job.rate, length)
        return build_schedule(optimizer, optim, length, self.batches.steps_per_epoch)

    def _bar(self) -> AbstractContextManager[Progress | None]:
        if not self.job.label:
            return contextlib.nullcontext()
        return self.console.progress(self.job.label, self.job.steps, "steps", start=self.progress.step)

    def _restore(self, begin: int) -> None:
        if self.found is None or self.found[0] < begin:
            return
        ema = self.ema.module if self.ema else None
        mine = self.optimizers if self.found[0] > begin or not begin else {}  # else another phase's were kept
        self.progress = state.load(self.found[1], self.trained, mine, ema, self.scaler, self.states)
        self._sweep_best()
        self.console.note(f"continuing at step {self.progress.step:,} of {self.job.steps:,}")

    # -- steps -----------------------------------------------------------------------------------------------
    def _steps(self, span: Span, prepared: dict[str, Any], bar: Progress | None) -> None:
        job, end = self.job, span.end
        first = self.progress.step
        clock = time.monotonic()
        if told := self.progress.goes_on(self.runtime.describe()):
            self.console.warn(told)
        if job.judges_start and not first and self.progress.best is None:
            self._evaluate()
        self._commit_if_due(first)  # a signal during start-up
        _train_mode(prepared)
        if job.optim.auto_batch:
            self._split_to_fit(prepared, first)
        for step, batch in zip(range(first, end), self.batches.read(first, end, self.runtime)):
            self.runtime.seed(seed_of(job.seed, step, self.runtime.rank) >> 1)
            micro = self.batches.parts(batch, step, self.runtime)
            logs = (step + 1) % job.log_every == 0 or step + 1 == end
            self.looks = job.looks or logs
            self.guard.begin()
            row: dict[str, float] = {}
            for turn in span.phase.turns:
                row |= self._turn(turn, prepared[turn.name], micro, step - span.begin, span.length)
            if self.ema and any(name in self.kept for turn in span.phase.turns for name in turn.trains):
                self.progress.averaged += 1
                self.ema.update(self.kept, step=self.progress.averaged)
            self.progress.step = step + 1
            now = time.monotonic()
            self.progress.seconds, clock = self.progress.seconds + now - clock, now
            if logs:
                self._record({"step": step + 1, **self._epoch(step + 1), **row})
            if seen := self.observer.told(last=step + 1 == job.steps):
                self._record({"step": step + 1, **seen})
            if self._evaluation_due(step) and span.phase is job.method.phases[-1]:
                self._evaluate()
                self._end_early()
                _train_mode(prepared)
            if bar is not None and self.looks:
                bar.update(step + 1, loss=row["loss"], **self._shown())
            self._commit_if_due(step + 1)
            if self.progress.ended:
                return

    def _epoch(self, step: int) -> dict[str, float]:
        per = self.batches.steps_per_epoch
        return {"epoch": round(step / per, 4)} if math.isfinite(per) else {}

    def _split_to_fit(self, prepared: dict[str, Any], step: int) -> None:
        """Choose the number of micro-batches by trial; a resumed run keeps what it found first."""
        if not self.progress.accumulate:
            optim, modules = self.job.optim, list(prepared.values())
            self.progress.accumulate = micro_batches_by_trial(
                self.batches, step, modules, optim, self.runtime
            )
            if self.progress.accumulate > optim.accumulate:
                self.console.note(f"each batch is split into {self.progress.accumulate} to fit into memory")
        self.batches = self.batches.split(self.progress.accumulate)

    def _turn(self, turn: Turn, module: Any, micro: list[Any], step: int, steps: int) -> dict[str, float]:
        """One backward and one optimiser step, number ``step`` of the phase's ``steps``.

        Returns the terms averaged over processes, where this step looks at them.
        """
        accelerator, done = self.runtime.accelerator, step / steps
        optimizer, edits, clip = self.steppers[turn.name], self.edits[turn.name], self.clips[turn.name]
        self.before = held(self.states)
        self.schedules[turn.name].step(step)
        lr = max(g["lr"] for g in optimizer.param_groups)
        totals: dict[str, Tensor] = {}
        for i, (part, share) in enumerate(micro):
            last = i == len(micro) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(module):
                terms = module(part, share, done)
                accelerator.backward(terms["loss"])
            for key, value in terms.items() if self.looks else ():
                totals[key] = totals.get(key, 0) + value.detach().float()
        accelerator.unscale_gradients(optimizer.optimizer)
        edits.of_gradients()
        norms = clip() if self.looks or clip.limit else {}
        values, norm = [], 0.0
        if self.looks:
            seen = [*totals.values(), *(own.float() for own in norms.values())]
            values = self.runtime.mean(torch.stack(seen)).tolist()
            norm = math.hypot(*values[len(totals) :])
            self._refuse_nonfinite(values[0], norm, optimizer)
        self.guard.make_step(optimizer, self.progress.step + 1)
        optimizer.zero_grad()
        if getattr(optimizer, "step_was_skipped", False):  # an overflow leaves nothing in states either
            put_back(self.states, self.before)
        else:
            edits.of_weights()
        if not self.looks:
            return {}
        found = self.observer.take(dict(zip(totals, values)))
        prefix = "" if len(self.steppers) == 1 else f"{turn.name}/"
        weights = {f"weight/{t.name}": t.weight(done) for t in turn.terms if callable(t.weight)}
        return {
            **{f"{prefix}{k}": v for k, v in [*found.items(), *weights.items()]},
            **{"grad_norm": norm, "lr": lr, "loss": values[0]},
            **clip.record(self.progress.clipping, dict(zip(norms, values[len(totals) :]))),
        }

    def _refuse_nonfinite(self, loss: float, norm: float, optimizer: Any) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            self.progress.skipped = 0
            return
        if self.scaler is not None and math.isfinite(loss):  # an fp16 overflow: the scaler skips this step
            self.progress.skipped += 1
            if self.progress.skipped < _OVERFLOWS:
                return
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        if self.job.looks and not self.guard.stepped:  # else what came before this turn cannot be put back
            optimizer.zero_grad()
            put_back(self.states, self.before)
            if self.guard.undo():
                self._commit()
        step = self.progress.step
        where = f"{'in' if self.job.looks else 'by'} step {step + 1} {self.batches.names(step)}".rstrip()
        raise self.guard.error(f"the {what} became {value} {where}")

    # -- evaluation, log, commits ----------------------------------------------------------------------------
    def _evaluation_due(self, step: int) -> bool:
        every = self.job.evaluate_every
        return step + 1 == self.job.steps or math.floor((step + 1) / every) > math.floor(step / every)

    def _evaluate(self) -> None:
        if self.job.evaluate is None:
            return
        self.guard.refuse_spoilt(self.progress.step)
        network = self.result[self.job.method.export]
        with self.guard.answering(network, self.progress.step):
            metrics = self.job.evaluate(network)
        self.progress.last = metrics
        step = self.progress.step
        self._record({"step": step, **{f"validation/{k}": v for k, v in metrics.items()}})
        if not self.job.selection:
            return
        value = metrics[self.job.selection]
        if self.progress.best is None or value > self.progress.best["value"]:
            file = f"best-{step:012d}.safetensors"
            self.progress.best = {"step": step, "value": value, "metrics": metrics, "file": file}
            if self.runtime.main:
                write_tensors(self.output.partial / file, self.result.state_dict())

    def _end_early(self) -> None:
        """Ask whether the training ends here; the first process decides for all."""
        best, step = self.progress.best, self.progress.step
        if self.job.ends is None or best is None or step == self.job.steps:
            return
        reason = self.job.ends(step, best["value"]) if self.runtime.main else ""
        if self.runtime.largest([float(bool(reason))])[0]:
            self.progress.ended = reason or "ended by the first process"

    def _shown(self) -> dict[str, float]:
        shown = self.job.selection or next(iter(self.progress.last), "")
        value = self.progress.last.get(shown)
        return {} if value is None else {f"validation {shown}": value}

    def _record(self, row: dict[str, Any]) -> None:
        self.log.write(row)
        if self.job.track and self.runtime.main:
            self.job.track(row)

    def _commit_if_due(self, done: int) -> None:
        """All processes agree whether to stop after ``done`` steps, and whether to commit."""
        job = self.job
        requested = self.stop.requested if self.stop is not None else None
        late = self.runtime.main and time.monotonic() - self.saved_at > 60 * job.save_minutes
        stopping, due = self.runtime.largest([float(bool(requested)), float(late)])
        if stopping:
            self._commit()
            signal = requested or "a signal to another process"
            raise Preempted(
                f"{signal}: stopped after step {done} of {job.steps}; run the same command again."
            )
        if due or (job.save_steps and done % job.save_steps == 0 and 0 < done < job.steps):
            self._commit()

    def _commit(self) -> None:
        self.guard.refuse_spoilt(self.progress.step)
        self.runtime.barrier()
        if self.runtime.main:
            self.progress.log_bytes = self.log.sync()
            ema = self.ema.module if self.ema else None
            optimizers = dict(self.optimizers.items())
            state.save(self.output, self.progress, self.trained, optimizers, ema, self.scaler, self.states)
            self._sweep_best()
        self.saved_at = time.monotonic()
        self.runtime.barrier()

    def _sweep_best(self) -> None:
        """Remove the weights of steps that are the best no more, or never were in what is committed."""
        for file in self.output.partial.glob("best-*.safetensors") if self.runtime.main else ():
            if not self.progress.best or file.name != self.progress.best["file"]:
                remove(file)

    def _outcome(self) -> Outcome:
        self.guard.refuse_spoilt(self.progress.step)
        best = None
        if self.progress.best and self.runtime.main:  # the one that writes the artifact
            best = read_tensors(self.output.partial / self.progress.best["file"])
        return outcome_of(self.job.method, self.progress, self.result, best)


def _train_mode(modules: dict[str, Any]) -> None:
    """Trained parties as they are trained, the others in eval mode. It walks over all layers."""
    for module in modules.values():
        module.train()
