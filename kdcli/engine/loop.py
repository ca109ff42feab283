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
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.artifacts.model import read_tensors
from kdcli.artifacts.store import Output, remove, write_tensors
from kdcli.console import Console, Progress
from kdcli.engine import state
from kdcli.engine.edits import Edits
from kdcli.engine.job import Job, Outcome
from kdcli.engine.memory import micro_batches_that_fit
from kdcli.engine.observe import Observer
from kdcli.engine.optim import Rates, build_optimizer, build_schedule, section_of
from kdcli.engine.runtime import Runtime, Stop, watching
from kdcli.engine.states import copied, held, put_back
from kdcli.engine.turn import TurnModule
from kdcli.errors import Diverged, Preempted
from kdcli.sections import OptimSection
from kdcli.seeds import seed_of
from kdcli.words import Span, Turn

LOG = "metrics.jsonl"
_OVERFLOWS = 25


def train(job: Job, output: Output, runtime: Runtime, console: Console, stop: Stop | None = None) -> Outcome:
    """Run all phases of a method, resuming from the last committed state of ``output``.

    Raises:
        Diverged: NaN or Inf; the state before the step is committed.
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
        self.ema = self._build_ema()
        self.progress = state.Progress()
        self.found = output.last_state()
        self.saved_at = time.monotonic()
        self.states = copied(job.states, runtime.device)
        self.before = held(self.states)  # a turn
        self.batches = job.batches
        self.looks = True  # at the loss of this step

    def _build_ema(self) -> Any:
        if not self.job.optim.ema:
            return None
        from timm.utils import ModelEmaV3

        return ModelEmaV3(self.kept, decay=self.job.optim.ema)

    @property
    def result(self) -> nn.ModuleDict:
        """The parties that are written, as they are judged: averaged, if asked for."""
        return self.ema.module if self.ema else self.kept

    # -- phases ----------------------------------------------------------------------------------------------
    def all_phases(self) -> Outcome:
        for span in self.job.method.spans(self.job.schedule_steps, self.job.steps):
            if self.found is None or self.found[0] < span.end or span.end == self.job.steps:
                self._phase(span)
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
        self.trained = {p.name: job.parties[p.name] for p in job.method.parties if p.role == "trained"}
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
            if self.progress.step < end:
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
        if self.runtime.main:
            for file in self.output.partial.glob("best-*.safetensors"):
                if not self.progress.best or file.name != self.progress.best["file"]:
                    remove(file)
        self.console.note(f"continuing at step {self.progress.step:,} of {self.job.steps:,}")

    # -- steps -----------------------------------------------------------------------------------------------
    def _steps(self, span: Span, prepared: dict[str, Any], bar: Progress | None) -> None:
        job, end = self.job, span.end
        first = self.progress.step
        clock = time.monotonic()
        self._commit_if_due(first)  # a signal during start-up
        _train_mode(prepared)
        if job.optim.auto_batch:
            self._split_to_fit(prepared, first)
        for step, batch in zip(range(first, end), self.batches.read(first, end, self.runtime)):
            self.runtime.seed(seed_of(job.seed, step, self.runtime.rank) >> 1)
            micro = self.batches.parts(batch, step, self.runtime)
            logs = (step + 1) % job.log_every == 0 or step + 1 == end
            self.looks = job.looks or logs
            row: dict[str, float] = {}
            for turn in span.phase.turns:
                row |= self._turn(turn, prepared[turn.name], micro, step - span.begin, span.length)
            if self.ema and any(name in self.kept for turn in span.phase.turns for name in turn.trains):
                self.ema.update(self.kept)
            self.progress.step = step + 1
            now = time.monotonic()
            self.progress.seconds, clock = self.progress.seconds + now - clock, now
            if logs:
                self._record({"step": step + 1, **self._epoch(step + 1), **row})
            if seen := self.observer.told(last=step + 1 == job.steps):
                self._record({"step": step + 1, **seen})
            if self._evaluation_due(step) and span.phase is job.method.phases[-1]:
                self._evaluate()
                _train_mode(prepared)
            if bar is not None and self.looks:
                bar.update(step + 1, loss=row["loss"], **self._shown())
            self._commit_if_due(step + 1)

    def _epoch(self, step: int) -> dict[str, float]:
        per = self.batches.steps_per_epoch
        return {"epoch": round(step / per, 4)} if math.isfinite(per) else {}

    def _split_to_fit(self, prepared: dict[str, Any], step: int) -> None:
        """Choose the number of micro-batches by trial; a resumed run keeps what it found first."""
        job, batch = self.job, next(self.batches.read(step, step + 1, self.runtime))

        def trial(accumulate: int) -> None:
            part, share = self.batches.split(accumulate).parts(batch, step, self.runtime)[0]
            try:
                for module, done in product(prepared.values(), (0.0, 1.0)):  # schedules may begin or end at 0
                    with self.runtime.accelerator.no_sync(module):
                        self.runtime.accelerator.backward(module(part, share, done)["loss"])
            finally:
                for optimizer in self.steppers.values():
                    optimizer.zero_grad()

        rows = job.optim.batch_size // self.runtime.world_size
        if not self.progress.accumulate:
            found = micro_batches_that_fit(trial, job.optim.accumulate, rows, self.runtime)
            if found > job.optim.accumulate:
                self.console.note(f"each batch is split into {found} to fit into memory")
            self.progress.accumulate = found
        self.batches = self.batches.split(self.progress.accumulate)

    def _turn(self, turn: Turn, module: Any, micro: list[Any], step: int, steps: int) -> dict[str, float]:
        """One backward and one optimiser step, number ``step`` of the phase's ``steps``.

        Returns the terms averaged over processes, where this step looks at them.
        """
        accelerator, done = self.runtime.accelerator, step / steps
        optimizer, edits, section = self.steppers[turn.name], self.edits[turn.name], self.optims[turn.name]
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
        parameters = [p for p in module.parameters() if p.requires_grad and p.grad is not None]
        accelerator.unscale_gradients(optimizer.optimizer)
        edits.of_gradients()
        if self.looks or section.clip_grad:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if section.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, section.clip_grad, norm)
        values = []
        if self.looks:
            values = self.runtime.mean(torch.stack([*totals.values(), norm.float()])).tolist()
            self._refuse_nonfinite(values[0], values[-1], self.progress.step, optimizer)
        optimizer.step()
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
        return {f"{prefix}{k}": v for k, v in [*found.items(), *weights.items()]} | {
            "grad_norm": values[-1],
            "lr": lr,
            "loss": values[0],
        }

    def _refuse_nonfinite(self, loss: float, norm: float, step: int, optimizer: Any) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            self.progress.skipped = 0
            return
        if self.scaler is not None and math.isfinite(loss):  # an fp16 overflow: the scaler skips this step
            self.progress.skipped += 1
            if self.progress.skipped < _OVERFLOWS:
                return
        what = "loss" if not math.isfinite(loss) else "gradient"
        where, kept = f"by step {step + 1}", ""
        if self.job.looks:  # else an earlier step, which nobody looked at, may have spoilt the state
            optimizer.zero_grad()
            put_back(self.states, self.before)
            self._commit()
            where, kept = f"in step {step + 1}", f" The state after step {step} is kept."
        named = " ".join(filter(None, (where, self.batches.names(step))))
        value = loss if what == "loss" else norm
        raise Diverged(f"the {what} became {value} {named}.{kept} {self.job.remedy}")

    # -- evaluation, log, commits ----------------------------------------------------------------------------
    def _evaluation_due(self, step: int) -> bool:
        every = self.job.evaluate_every
        return step + 1 == self.job.steps or math.floor((step + 1) / every) > math.floor(step / every)

    def _evaluate(self) -> None:
        if self.job.evaluate is None:
            return
        metrics = self.job.evaluate(self.result[self.job.method.export])
        self.progress.last = metrics
        self._record({"step": self.progress.step, **{f"validation/{k}": v for k, v in metrics.items()}})
        value = metrics[self.job.selection]
        if self.progress.best is None or value > self.progress.best["value"]:
            file = f"best-{self.progress.step:012d}.safetensors"
            self.progress.best = {
                "step": self.progress.step,
                "value": value,
                "metrics": metrics,
                "file": file,
            }
            if self.runtime.main:
                write_tensors(self.output.partial / file, self.result.state_dict())

    def _shown(self) -> dict[str, float]:
        value = self.progress.last.get(self.job.selection)
        return {} if value is None else {f"validation {self.job.selection}": value}

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
        self.runtime.barrier()
        if self.runtime.main:
            self.progress.log_bytes = self.log.sync()
            ema = self.ema.module if self.ema else None
            optimizers = dict(self.optimizers.items())
            state.save(self.output, self.progress, self.trained, optimizers, ema, self.scaler, self.states)
            for file in self.output.partial.glob("best-*.safetensors"):
                if not self.progress.best or file.name != self.progress.best["file"]:
                    remove(file)
        self.saved_at = time.monotonic()
        self.runtime.barrier()

    def _outcome(self) -> Outcome:
        last = {name: state.clone_to_cpu(party) for name, party in self.result.items()}
        best: dict[str, Any] = {}
        if self.progress.best and self.runtime.main:  # the one that writes the artifact
            tensors = read_tensors(self.output.partial / self.progress.best["file"])
            best = {name: {key: tensors[f"{name}.{key}"] for key in last[name]} for name in last}
        export = self.job.method.export
        beside = {name: (best or last)[name] for name in self.job.method.beside}
        rate = self.progress.step / max(self.progress.seconds, 1e-9)
        return Outcome(self.progress, last[export], best.get(export), beside, rate=rate)


def _train_mode(modules: dict[str, Any]) -> None:
    """Trained parties as they are trained, the others in eval mode. It walks over all layers."""
    for module in modules.values():
        module.train()
