"""One stretch of training in a run folder: steps, reports, exports and the last words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.sources import provenance
from pretrain.stopping import make_watch, on_all, restore_best
from voco.config import flatten
from voco.methods import METHODS


@dataclass
class Training:
    """What training needs at hand; ``run.py`` puts it together.

    Attributes:
        source: data and settings (``pretrain.scans.Scans``, ``pretrain.clips.Clips``).
        method: the unwrapped ``voco.methods.base.Method``.
        monitor: of held-out data; None without any, and on all processes but the first.
        probe: of labeled scans; None without labels, and on all processes but the first.
        recipe: what folds said of the recipe (``voco.health.recipe.Recipe``), for a run on all scans after them.
        fold: number of the fold that this training is of; 0 is none.
    """

    source: Any
    accelerator: Any
    method: Any
    log: Any
    record: Any
    monitor: Any
    probe: Any = None
    recipe: Any = None
    fold: int = 0

    @property
    def config(self) -> dict:
        return self.source.config

    @property
    def out(self) -> Path:
        return Path(self.config["out"])

    def train(self, model, optimizer, state, checkpoints, stop):
        """Take the steps that are left; returns the state after the last one."""
        from functools import partial

        from voco.data.dataset import batches_of
        from voco.engine.loop import LoopSettings, fit
        from voco.engine.optim import learning_rate

        train = self.config["train"]
        watch = make_watch(self.config, self.method, self.accelerator, self.out) if self.source.cohort.heldout else None
        loader = training_loader(self.source, self.method, self.accelerator, state.step, train.steps)
        with batches_of(loader) as batches:
            return fit(
                self.accelerator,
                model,
                optimizer,
                batches,
                settings=LoopSettings(
                    steps=train.steps,
                    learning_rate=partial(
                        learning_rate,
                        steps=train.schedule_steps or train.steps,
                        lr=train.lr,
                        warmup=train.warmup,
                        floor=train.lr_floor,
                    ),
                    accumulate=train.accumulate,
                    clip=train.clip,
                    log_every=self.config["log"].every,
                    save_every=train.save_every,
                    eval_every=math.gcd(self.config["eval"].every, self._probe_every),
                    milestones=train.milestones,
                    max_skipped=train.max_skipped,
                ),
                state=state,
                checkpoints=checkpoints,
                log=self.log,
                stop=stop,
                evaluate=self._evaluation(shared=watch is not None),
                on_milestone=self._milestone,
                watch=watch,
            )

    def _evaluation(self, shared: bool):
        """What is called every so many steps; ``shared`` hands its numbers to all processes."""
        if not self.source.cohort.heldout and not self.config["probe"].labels:
            return None
        return (lambda step: on_all(self.accelerator, self.report(step))) if shared else self.report

    @property
    def _probe_every(self) -> int:
        """Steps between probes, 0 where they come with the health reports or not at all."""
        return self.config["probe"].every if self.config["probe"].labels else 0

    def report(self, step: int) -> dict[str, float]:
        """What is due at a step: the probe, which writes a row of its own, and the health report."""
        last = step == self.config["train"].steps
        due = lambda every: last or (every > 0 and step % every == 0)  # noqa: E731
        if due(self._probe_every or self.config["eval"].every):
            self.probe_now(step)
        return self._health(step) if due(self.config["eval"].every) else {}

    def probe_now(self, step: int) -> None:
        """Probe the encoder as it is now, where this process has a probe."""
        if self.probe is None:
            return
        row = self.probe.report(self.method, autocast_dtype(self.accelerator))
        self.log.metrics(step, row)
        self.log.say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in row.items()))

    def _health(self, step: int) -> dict[str, float]:
        """Score the method now, draw every picture, and say at once what should not wait for the end."""
        from voco.rng import generator

        if self.monitor is None:
            return {}
        device, dtype = self.accelerator.device, autocast_dtype(self.accelerator)
        row = self.monitor.report(self.method, step, device, dtype, self.log.rows())
        self.accelerator.log(self.monitor.constants(), step=step)
        for sentence in self.monitor.warnings():
            self.log.say(f"step {step}: {sentence}")
        draws = self.method.sampler(generator(self.config["seed"], "figure"))
        self.monitor.draw(self.method, [*self.log.rows(), {"step": step, **row}], draws, device, dtype)
        return row

    def finish(self, state, signal_name: str | None) -> None:
        """Export and say where to look; only the main process has anything to do."""
        if not self.accelerator.is_main_process:
            return
        self.record.update(cost=self.cost(state.step))
        ended = bool(state.watch.get("ended"))
        if state.step < self.config["train"].steps and not ended:
            self.record.close("stopped", signal=signal_name, last_step=state.step)
            self.log.say(f"stopped by {signal_name} after step {state.step}; the same command continues from there")
            return
        if self.monitor is not None and self.monitor.latest is None:  # killed after the last checkpoint: row is written
            self._health(state.step)
        best = restore_best(self.method, self.out, state.watch)
        if best is not None:
            self._health(best)  # of the weights that are exported
        if self.recipe is not None:
            self.recipe.draw(self.log.rows())
        judged = self.monitor or self.recipe
        folder = self.export(self.out / "encoder", best or state.step, judged, taken=state.step)
        stopped = {"best_step": best, "stopped_early": ended} if best is not None else {}
        self.record.close("finished", last_step=state.step, skipped_steps=state.skipped, **stopped)
        if self.fold:
            self.log.say(f"fold {self.fold} of {self.config['eval'].cross} is done, in {self.out}")
            return
        lines = ["", f"finished {state.step} steps{f', best at {best}' if best is not None else ''}; wrote"]
        lines += [f"  note: {found['note']}"] if (found := self.record.values.get("extended")) else []
        lines += [f"  {folder}   load with: voco.load_encoder({str(folder)!r})"]
        files = ("figures", "folds", "metrics.jsonl", "run.json", "rejected.csv")
        lines += [f"  {self.out / name}" for name in files if (self.out / name).exists()]
        lines += [f"  curves: tensorboard --logdir {self.out}"] if "tensorboard" in self.config["log"].with_ else []
        if judged is not None:
            lines += ["did it learn?", *(f"  {sentence}" for sentence in judged.verdict)]
        for line in lines:
            self.log.say(line)

    def cost(self, step: int) -> dict:
        """What the run took so far, measured; operations were counted at the start."""
        from voco.engine.cost import peak_memory_bytes

        seen = step * self.config["train"].batch_size
        seconds, last = 0.0, 0
        for row in self.log.timing_rows():
            seconds += row["seconds_per_step"] * (row["step"] - last)
            last = row["step"]
        known = self.record.values.get("cost", {})
        peak = peak_memory_bytes(self.accelerator.device)
        return known | {
            "volumes_seen": seen,
            "seconds_training": seconds,
            "seconds_per_volume": seconds / seen if seen else None,
            "peak_memory_bytes": max(peak, known.get("peak_memory_bytes", 0)),
        }

    def export(self, folder: Path, step: int, judged=None, taken: int | None = None) -> Path:
        """Write the encoder as it is now, that of ``step``, with its history; ``taken`` steps were paid for."""
        from voco import __version__
        from voco.data.fingerprint import FILE
        from voco.weights.export import save_encoder

        drawn = next((n for name, n in self.source.cohort.counts.items() if name.startswith("synthetic_")), 0)
        train, facts = self.config["train"], provenance(self.source, self.method, judged)
        entry = {
            "method": self.config["method"].name,
            **({"extended": found["note"]} if (found := self.record.values.get("extended")) else {}),
            **({"fold": f"{self.fold} of {self.config['eval'].cross}"} if self.fold else {}),
            **facts,
            **({"samples": self.method.source} if METHODS.owner(self.config["method"].name) else {}),
            "synthetic": bool(drawn),
            "data_fingerprint": self.source.cohort.fingerprint,
            "steps": step,
            "volumes_seen": step * train.batch_size,
            "settings": facts["settings"]
            | flatten({"lr": train.lr, "batch_size": train.batch_size, "seed": self.config["seed"]}),
            "cost": self.cost(taken or step),
            "library_version": __version__,
        }
        seen = self.out / FILE
        fingerprints = seen.read_bytes() if seen.is_file() else None
        return save_encoder(self.method.encoder, folder, entry, fingerprints=fingerprints)

    def _milestone(self, step: int) -> None:
        self.export(self.out / "milestones" / f"step-{step:08d}" / "encoder", step)


def training_loader(source, method, accelerator, start: int, steps: int):
    """Batches from step ``start`` to ``steps`` for this process."""
    from voco.data.dataset import StepSampler, make_loader

    settings, train = source.config["data"], source.config["train"]
    sampler = StepSampler(
        start, steps, train.batch_size, train.accumulate, accelerator.process_index, accelerator.num_processes
    )
    pin = accelerator.device.type == "cuda"
    dataset = method.dataset(source)
    return make_loader(dataset, sampler, workers=settings.workers, timeout=settings.timeout, pin=pin)


def ready_to_train(config: dict, accelerator, method, out: Path):
    """Prepared model and optimizer, and the checkpoints of the run."""
    from voco.engine.checkpoint import Checkpoints
    from voco.engine.optim import make_optimizer

    train = config["train"]
    optimizer = make_optimizer(
        method,
        lr=train.lr,
        weight_decay=train.weight_decay,
        betas=train.betas,
        amsgrad=train.amsgrad,
        kind=train.optimizer,
        momentum=train.momentum,
        decay=train.decay,
    )
    model, optimizer = accelerator.prepare(method, optimizer)
    return model, optimizer, Checkpoints(out / "checkpoints", keep=train.keep, accelerator=accelerator)


def autocast_dtype(accelerator):
    """The half precision of the run, None in float32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
