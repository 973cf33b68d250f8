"""The one training loop: every tokenizer and generator, one worker or many, interrupted or not.

Nothing random has state. The rows of a step and every draw are functions of (seed, step) made for the global batch and
cut to the worker's share, so any number of workers uses the same batches and draws, and a run goes on from its step alone.
With a fixed number of workers the weights are the same bits, however often the run was killed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenloom.models.core.build import ModelSpec, parameters
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, seed_of
from tokenloom.models.core.protocols import Batch, Method, Tokenizer
from tokenloom.tasks.costs.took import device_name, peak_memory
from tokenloom.tasks.data.batches import exact_norms, floats_to, pieces
from tokenloom.tasks.data.feed import Feed
from tokenloom.tasks.data.loader import Loader, share
from tokenloom.tasks.runtime.errors import Preempted, StepError
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.training.checkpoint import Checkpoints
from tokenloom.tasks.training.collapse import WARNINGS, Watch
from tokenloom.tasks.training.compiling import Compiling
from tokenloom.tasks.training.curves import CurveWriter, final_metrics, read_curves
from tokenloom.tasks.training.finishing import built, first_batches, save
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.optimizer import PhaseOptimizer, lengthened, metric_buffer
from tokenloom.tasks.training.parallel import Group, device_of, repeatable
from tokenloom.tasks.training.speed import Execution, speeds
from tokenloom.tasks.training.states import state_of

log = logging.getLogger(__name__)


def train(
    job: TrainJob,
    rank: int = 0,
    world: int = 1,
    report: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train from the newest valid checkpoint to the end; write weights and metrics into the artifact's folder.

    Args:
        job: what to train.
        rank: this worker of ``world``; more than one needs a ``torch.distributed`` group.
        report: called on the first worker with each logged row of metrics.
        stop: called once a step on every worker; true on any one checkpoints and ends the run.

    Returns:
        The run's final metrics; nothing on other workers than the first.

    Raises:
        StepError: a loss or gradient that is not finite (naming step, phase and the last checkpoint), workers whose
            weights differ, a store that cannot be written.
        Preempted: ``stop`` was true; the state is saved.
    """
    with repeatable(job.execution.threads), contextlib.ExitStack() as at_the_end:
        run = _Run(job, Group(rank, world))
        at_the_end.callback(run.feed.close)
        run.resume()
        while run.step < job.settings.steps:
            numbers, stopping = run.train_step(stop is not None and stop())
            done = run.step
            if run.due(job.settings.validate_every):
                numbers |= run.validate()
            if done == 1 or run.due(job.settings.log_every) or "validation_loss" in numbers:
                run.log(numbers, report)
            if job.settings.sample_every and run.due(job.settings.sample_every):
                run.preview()
            best = job.settings.keep == "best" and "validation_loss" in numbers  # it must be there to be taken
            if run.due(job.settings.checkpoint_every) or stopping or best:
                run.checkpoint()
            if stopping and done < job.settings.steps:
                raise Preempted(f"stopped after step {done} of {job.settings.steps}; the state is saved, the same command goes on")
        return run.finish()


class _Run:
    """The state of one run on one worker."""

    def __init__(self, job: TrainJob, group: Group) -> None:
        self.job, self.group, self.settings = job, group, job.settings
        self.storage, self.root = Storage(job.store), Path(job.root)
        self.scratch = self.root / "scratch" / f"{job.fingerprint}-{group.rank}"
        if group.world > self.settings.batch:
            raise ConfigError(f"train.batch={self.settings.batch} is smaller than the number of workers, {group.world}: use fewer workers")
        self.device = device_of(job.execution.device)
        cache, settings = self.root / "cache", self.settings
        self.loader = Loader(job.rows, cache, job.execution, settings.augment, lazy=True)
        self.held_out = Loader(job.validation, cache, job.execution, lazy=True) if job.validation else None
        self.feed = Feed(self.loader, settings, *share(settings.batch, group.rank, group.world), self.device)
        self.spec = ModelSpec.from_dict(job.spec)
        self.dtype = torch.float64 if self.settings.precision == "float64" else torch.float32
        self.model: Method = built(job, self.storage, self.root).to(self.device, self.dtype).train()
        if self.settings.precision == "bfloat16":
            exact_norms(self.model)
        self.state = state_of(self.model, self.settings, job.execution, self.device, group.world)
        self.compiling = Compiling(job.execution.compile, self.state.losses, self.storage, job.folder, group, self.device)
        self.kept = Checkpoints(self.storage, job.folder, job.fingerprint, self.scratch, keep_every=self.settings.keep_every)
        self.curves = CurveWriter(self.storage, job.folder, every=1.0 if self.storage.is_local else 10.0)
        self.watch: Watch | None = None
        self.resumed_from, self.saved_at = 0, -1
        self.validated: tuple[int, float] | None = None
        self.window_rows, self.window_seconds, self.seconds = 0, 0.0, 0.0
        self.manner = Execution(group.world, job.execution.threads, settings.precision, self.loader.modality.noun)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    # --- one step ---------------------------------------------------------------------------------------------

    def train_step(self, stopping: bool) -> tuple[dict[str, float], bool]:
        """One step of every phase; its metrics, and whether any worker wants to stop."""
        began, settings, total = time.perf_counter(), self.settings, self.settings.batch
        start, stop = self.feed.start, self.feed.stop
        batch = self.feed.batch(self.step)
        batch = self._exact(batch) if batch is not None else None
        # A draw that a model makes behind the back of ``draws`` is at least a function of the step: a resumed run repeats it.
        seed = seed_of(settings.seed, self.step, self.group.rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        numbers: dict[str, float] = {}
        for index, phase in enumerate(self.state.phases):
            if self.step < phase.begins:
                continue
            phase.clear()
            with self.state.only(phase):
                names = self._accumulate(batch, phase, start)
            if stopping:
                phase.tail[-1] = 1.0
            phase.reduce(self.group.sum)
            norm = phase.clip()
            *values, flag, gradient = torch.cat([phase.tail, norm.view(1)]).tolist()
            parts = dict(zip(names, values))
            self._check(parts, gradient, phase.phase)
            stopping = stopping or flag > 0
            lr = phase.step(self.step, settings.steps)
            prefix = "" if index == 0 else f"{phase.phase}/"
            numbers |= {f"{prefix}{name}": value for name, value in parts.items()}
            numbers |= {f"{prefix}lr": lr, f"{prefix}gradient_norm": gradient}
        if type(self.model).after_step is not Method.after_step:
            numbers |= self.model.after_step(self._draws(start, stop, total, "after_step"))
        self.state.follow()
        self.state.step += 1
        seconds = time.perf_counter() - began
        self.window_rows += total
        self.window_seconds += seconds
        self.seconds += seconds
        self.compiling.timed(self.step, settings.steps, seconds, len(self.state.phases))
        return numbers, stopping

    def _accumulate(self, batch: Batch | None, phase: PhaseOptimizer, start: int) -> list[str]:
        """Add this worker's part of the global mean gradient and metrics to the phase's buffer; the metrics' names."""
        names: list[str] = []
        micro, total = self.job.execution.micro_batch, self.settings.batch
        for first, last, piece in pieces(batch, micro, self.state.passes(total, micro, self.group.world)):
            weight = piece.rows / total
            draws = self._draws(start + first, start + last, total, phase.phase)
            with self._autocast():
                parts = self.compiling.losses(self.step)(piece, phase.phase, draws)
            if parts["loss"].requires_grad:  # not that of a codec without parameters
                (parts["loss"] if weight == 1 else parts["loss"] * weight).backward()
            names = sorted(parts)
            values = torch.stack([parts[name].detach().to(phase.tail.dtype).reshape(()) for name in names])
            phase.fit_tail(len(names) + 1)  # its last number says whether to stop
            phase.tail[: len(names)] += values * weight
        return names

    def _check(self, parts: dict[str, float], gradient: float, phase: str) -> None:
        broken = [f"{name} = {value}" for name, value in parts.items() if not math.isfinite(value)]
        if broken or not math.isfinite(gradient):
            last = self.kept.saved()
            where = self.storage.uri(self.kept.path(last[-1].step)) if last else "none yet"
            raise StepError(
                f"step {self.step + 1}, phase {phase!r}: {', '.join(broken) or f'gradient norm = {gradient}'} is not finite. "
                f"The weights before it are safe; last checkpoint: {where}. Lower train.optimizer.lr, or use another train.precision"
            )

    def _draws(self, start: int, stop: int, total: int, stream: str, step: int | None = None) -> Draws:
        step = self.step if step is None else step
        return Draws(self.settings.seed, step, self.settings.steps, start, stop, total, self.device, stream)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        half = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext()

    def _place(self, batch: Batch) -> Batch:
        return self._exact(batch.to(self.device))

    def _exact(self, batch: Batch) -> Batch:
        return floats_to(batch, self.dtype) if self.dtype == torch.float64 else batch

    # --- what happens every so often --------------------------------------------------------------------------

    def due(self, every: int) -> bool:
        """Whether the steps done are a multiple of ``every``, or all."""
        return self.step % every == 0 or self.step == self.settings.steps

    def validate(self) -> dict[str, float]:
        """Mean losses of the first phase over all validation rows, with the same draws each time."""
        if self.held_out is None or len(self.held_out) == 0:
            return {}
        settings, phase = self.settings, self.state.phases[0].phase
        sums, names = torch.zeros(metric_buffer(0), dtype=torch.float64), []
        with self.state.exported(), self._autocast():
            for chunk, begin in enumerate(range(0, len(self.held_out), settings.batch)):
                total = min(settings.batch, len(self.held_out) - begin)
                # Counted from the back, so that the first worker, which knows the metrics' names, never has an empty share.
                start, stop = share(total, self.group.world - 1 - self.group.rank, self.group.world)
                batch = self._place(self.held_out.get(np.arange(begin + start, begin + stop))) if stop > start else None
                for first, last, piece in pieces(batch, self.job.execution.micro_batch):
                    # Schedules stand at their end: the loss that the run is heading for, comparable from step to step.
                    draws = self._draws(start + first, start + last, total, f"validation/{chunk}", settings.steps - 1)
                    parts = self.model.losses(piece, phase, draws)
                    names = sorted(parts)
                    sums = lengthened(sums, len(names))
                    sums[: len(names)] += torch.stack([parts[n].detach().cpu().double().reshape(()) for n in names]) * piece.rows
        sums = lengthened(sums, max(self.group.gather(len(names))))  # a worker without rows knows no names
        sums = self.group.sum(sums.to(self.device)) / len(self.held_out)
        values = dict(zip(names, sums.tolist()))
        loss = values.pop("loss", float("nan"))
        self.validated = (self.step, loss)
        return {"validation_loss": loss, **{f"validation/{name}": value for name, value in values.items()}}

    def log(self, numbers: dict[str, float], report: Callable[[dict[str, Any]], None] | None) -> None:
        """Write one row of metrics (first worker)."""
        seconds = max(self.window_seconds, 1e-9)
        speed, waiting = self.window_rows / seconds, min(1.0, self.feed.waited / seconds)
        self.window_rows, self.window_seconds, self.feed.waited = 0, 0.0, 0.0
        fast = speeds(self.model, self.device, self.manner, speed) | {"waiting_for_data": waiting}
        row: dict[str, Any] = {"step": self.step, **numbers, **fast}
        if self.watch is not None and (collapsed := self.watch.look(self.step, numbers)):
            row[WARNINGS] = collapsed
        if self.group.first:
            for text in row.get(WARNINGS, {}).values():
                log.warning("%s", text)
            self.curves.add(row)
            if report is not None:
                report(row)

    def preview(self) -> None:
        """Save the model's own picture of its progress, if it draws one (first worker)."""
        hook = getattr(self.model, "preview", None)
        if hook is None:
            return
        loader = self.held_out if self.held_out is not None and len(self.held_out) else self.loader
        drawn = None
        with self.state.exported(), self._autocast():  # on all workers, as it may have to be put together
            if self.group.first:
                batch = self._place(loader.get(np.arange(0, min(16, len(loader)))))
                drawn = hook(batch, Draws.whole(self.settings.seed, 0, batch.rows, device=self.device, stream="preview"))
        if drawn is not None and (picture := self.loader.modality.picture(drawn)) is not None:
            self.storage.write(f"{self.job.folder}/previews/step-{self.step:07d}.png", picture)

    # --- state ------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Save the whole state (first worker), after all workers have shown that they hold the same."""
        if self.saved_at == self.step:
            return
        sums = self.group.gather(self.state.checksum())
        if odd := [rank for rank, value in enumerate(sums) if value != sums[0]]:
            raise StepError(f"step {self.step}: workers {odd} hold other weights or buffers than worker 0: a part is not reduced over them")
        tensors = self.state.tensors()
        if self.group.first:
            self.curves.flush()
            loss = self.validated[1] if self.validated and self.validated[0] == self.step else None
            self.kept.save(self.step, tensors, self.group.world, loss)
        self.saved_at = self.step

    def resume(self) -> None:
        """Go to the newest valid checkpoint, the same one on all workers."""
        step = self.group.from_first(self.kept.newest() if self.group.first else 0)
        if step > 0:
            state = self.kept.load(step)
            try:
                self.state.restore(state, step)
            except (KeyError, RuntimeError) as error:
                path = self.storage.uri(self.kept.path(step))
                raise StepError(f"checkpoint {path} does not fit this model: {error}; delete it to train from the start") from error
        if isinstance(self.model, Tokenizer):
            earlier = read_curves(self.storage, self.job.folder) if step else []
            self.watch = Watch(self.model.layout, self.settings.batch, self.settings.steps, earlier)
        self.resumed_from, self.saved_at = step, step or -1

    def _take_best(self) -> None:
        """Go back to the checkpoint with the lowest validation loss, where there is one."""
        best = self.kept.best() if self.group.first else None
        step = self.group.from_first(best.step if best is not None else self.step)
        if step != self.step:
            self.state.restore(self.kept.load(step), step)

    def finish(self) -> dict[str, Any]:
        """Save the end: full state, finished and exported model, pictures; the final metrics (on the first worker)."""
        self.checkpoint()
        done = self.step
        if self.settings.keep == "best":
            self._take_best()
        with self.state.exported():
            self.model.finish(first_batches(self.loader, self.settings, self._place))
        self.preview()
        with self.state.exported():
            weights = self.state.weights()
            if self.group.first:
                save(weights, self.spec, self.scratch, self.storage, self.job.folder)
        metrics: dict[str, Any] = {}
        most = max(self.group.gather(peak_memory(self.device)))
        if self.group.first:
            self.curves.flush()
            # From the store, not from memory: a run that was killed after its last step has nothing in memory.
            metrics = final_metrics(read_curves(self.storage, self.job.folder), done, self.step)
            metrics |= {"parameters": parameters(self.model), "workers": self.group.world, "device": device_name(self.device)}
            metrics |= {"train_seconds": self.seconds, "resumed_from": self.resumed_from, "peak_memory_bytes": most}
            metrics |= self.compiling.numbers(done)
        self.group.wait()
        return metrics
