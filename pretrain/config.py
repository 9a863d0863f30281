"""Settings of the pretraining stage. Defaults live here or in the method's own dataclasses; YAML holds what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voco.config import Schema
from voco.errors import InputError
from voco.methods import METHODS, method_class, method_options


@dataclass
class Run:
    """The run itself."""

    out: str
    """Run folder; an existing one is continued (see --train.resume)."""
    seed: int = 0
    """Seed of everything random."""
    plan: bool = False
    """Time real steps, print hours, disk, memory and the largest batch, then exit without training."""


@dataclass
class EncoderConfig:
    """The network that is trained."""

    name: str = "swinunetr_b"
    """Registered name, see `voco encoders`."""
    weights: str | None = None
    """Weights to start from: a file of any project, the folder of an encoder or a run, a tag (see `voco encoders`;
    published files are downloaded where they are missing), or a Hugging Face id owner/name."""
    which: str = "auto"
    """The network to take from weights that hold several, by the name that `voco inspect` has for it, e.g. ema."""
    window: list[float] = field(default_factory=list)
    """Hounsfield window, low and high; two or three pairs one after the other make as many input channels; empty = what
    the encoder asks for."""
    depth_stride: int = 0
    """Total depth stride of a video network, smaller than published; 0 = as published."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the architecture by name, e.g. {chunk: 8, pool: flatten} for slice encoders."""
    freeze: list[str] = field(default_factory=list)
    """Parts of the network that keep the weights they start with, by the beginning of their names, e.g. [slices] for
    the VGG16 of viptt."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass
class ScanData:
    """Scans."""

    root: str | None = None
    """Folder (NIfTI, MHD/MHA, NRRD, DICOM at any depth), CSV manifest, Decathlon JSON or nnssl pretrain_data.json."""
    cache: str | None = None
    """Folder for prepared volumes; unset = `cache` beside the run folder, shared by the runs there."""
    spacing: list[float | Literal["native"]] = field(default_factory=list)
    """Voxel spacing in mm as D H W, one number for all, or `native`; empty = what the encoder asks for."""
    crop_body: bool = True
    """Cut away air and table around the body (the published recipes crop the foreground)."""
    offset: float | None = None
    """HU added to the values of every scan, e.g. -1024 for stored values that lost their rescale intercept; 0 = they
    are Hounsfield units, whatever they look like; unset = they should be, and what surely is not is refused."""
    select: str = "thinnest_axial"
    """Which DICOM series of a study is used: thinnest_axial, largest or all."""
    sets: list[str] = field(default_factory=list)
    """Names of the public data sets that the scans come from, e.g. [LIDC-IDRI]; kept with the encoder as digests, so
    that a later evaluation on them knows (docs/leaks.md). Folders that are named after one count by themselves."""
    exclude: str | None = None
    """File with patients to leave out altogether, one a line."""
    patient_regex: str | None = None
    """Regular expression whose first group in the relative path is the patient; unset = by folder and DICOM header."""
    heldout: float = 0.1
    """Share of patients kept out of training to measure learning; 0 turns the health report off."""
    allow_seen: bool = False
    """Go on where the list of scans puts the same scan into training and among those that measure learning."""
    max_rejected: float = 0.2
    """Stop before training when more than this share of the scans cannot be used."""
    workers: int = 4
    """Loader processes per training process; also used to prepare. 0 = in the main process."""
    timeout: float = 600.0
    """Seconds after which a silent loader is an error."""


@dataclass
class VideoData:
    """Labeled clips."""

    root: str | None = None
    """Folder of class folders, UCF50 or UCF101; or a CSV (path, label, and optionally group, split, start_s, end_s), or
    Kinetics' own CSV."""
    label_regex: str | None = None
    """Regular expression whose first group in the file name is the class, for files in no order."""
    group_regex: str | None = None
    """Regular expression whose first group in the relative path is the group (actor, source video)."""
    split: int | None = None
    """Official split of UCF101: 1, 2 or 3."""
    classes: list[str] = field(default_factory=list)
    """Take only these classes; empty = all."""
    min_frames: int = 1
    """Reject clips that are shorter; 1 = repeat their last frame."""
    cache: str | None = None
    """Folder for what was found in the files; unset = `cache` beside the run folder."""
    keep_mb: float = 256.0
    """Decoded clips that each loader process keeps in memory, in MB; 0 = decode every time."""
    heldout: float = 0.2
    """Share of groups kept out of training to measure learning, where no official list does; 0 = none."""
    max_rejected: float = 0.2
    """Stop before training when more than this share of the clips cannot be used."""
    workers: int = 4
    """Loader processes per training process. 0 = in the main process."""
    timeout: float = 600.0
    """Seconds after which a silent loader is an error."""


@dataclass
class TrainConfig:
    """Optimization."""

    steps: int = 10_000
    """Optimizer steps."""
    batch_size: int = 8
    """Volumes per step over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches per step. Projector norm and inter-volume pairs see one micro-batch (docs/voco3d.md)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """ViPTT-Net learned its videos with SGD, every VoCo with AdamW."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup: int = 500
    """Steps of linear warm-up; the cosine follows."""
    schedule_steps: int = 0
    """Steps that the cosine is laid out for, where a run ends before them as published ones did; 0 = --train.steps."""
    lr_floor: float = 0.0
    """Learning rate at the end as a share of the peak; 1 = constant after the warm-up."""
    weight_decay: float = 0.01
    """Weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """What is decayed: matrices and kernels, or biases and norms too, as published codes do it."""
    momentum: float = 0.9
    """Of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    amsgrad: bool = False
    """AMSGrad, as in the published runs."""
    clip: float = 1.0
    """Largest gradient norm; 0 = no clipping (the published code never reaches its clipping)."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32. Cosines and logarithms are in fp32 always."""
    threads: int = 0
    """CPU threads per process when training without a GPU; 0 = the cores shared among the processes of this machine."""
    patience: int = 0
    """Reports without a lower held-out loss after which training ends; 0 = never. For clips alone (docs/video.md)."""
    plateau: int = 0
    """Reports without a lower held-out loss after which the learning rate falls; 0 = never. For videos."""
    plateau_factor: float = 0.1
    """By which factor."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints to keep."""
    resume: str = "auto"
    """auto: continue the newest checkpoint of --out; never; or a checkpoint or run folder."""
    extend: str = ""
    """Go on from a finished or stopped run, or one of its checkpoints, to more --train.steps or with another lr,
    warmup, schedule_steps or lr_floor. Data and method must be those of that run; the result says that it is no single
    run's (docs/pretraining.md)."""
    milestones: list[int] = field(default_factory=list)
    """Steps at which the encoder is exported to milestones/step-…"""
    max_skipped: int = 20
    """Non-finite steps in a row after which the run stops."""


@dataclass
class EvalConfig:
    """Health report on held-out scans."""

    every: int = 500
    """Steps between reports; one is always written at the start and at the end. 0 = only those."""
    scans: int = 64
    """Held-out scans used at most, with --eval.cross of each fold."""
    windows: int = 2
    """Windows per scan."""
    queries: int = 12
    """Random crops per window."""
    cross: int = 0
    """For few scans: so many folds of the patients, each judged by a pretraining without it, then a pretraining on all
    scans. The verdict is about the recipe, and takes the place of held-out scans (docs/health.md). 0 = off."""


@dataclass
class ProbeConfig:
    """What frozen features know of labels that some scans have (docs/pretraining.md); changes nothing in training."""

    labels: str | None = None
    """CSV with a column case, path or patient, and a label; empty = no probe. A column split (train, validation, test)
    is obeyed; patients with a test row are never looked at."""
    label: str | None = None
    """Column of the label; unset = the only one that it can be."""
    unknown: list[str] | None = None
    """Words for a label that is not known, e.g. NA none; these and no others, [] for none at all. Unset = the words of
    R, Excel, pandas and people; asked for where one may be a class. An empty cell is always unknown."""
    every: int = 0
    """Steps between probes; one is always made at the start and at the end. 0 = with every health report."""
    windows: int = 8
    """Crops of a scan whose features are averaged, evenly spread over it."""
    scans: int = 400
    """Labeled scans used at most."""


@dataclass
class LogConfig:
    """Where numbers go besides metrics.jsonl and timings.jsonl."""

    every: int = 10
    """Steps between rows; a row holds means since the last."""
    with_: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Trackers that accelerate knows: tensorboard, wandb, mlflow …"},
    )


CONFIG_DIR = Path(__file__).parent / "configs"
_DATA = {"scans": ScanData, "clips": VideoData}


def _encoders():
    from voco.encoders import ENCODERS

    return ENCODERS


SCHEMA = Schema(
    prog="pretrain/run.py",
    description="Turn unlabeled CT scans (--method.name voco3d or voco2d) or labeled clips (video) into an encoder. "
    "Start with `accelerate launch pretrain/run.py …`. The options shown are those of the method chosen.",
    top=Run,
    groups={
        "encoder": EncoderConfig,
        "data": lambda: {name: _DATA[METHODS[name].source] for name in METHODS.in_order()},
        "method": lambda: {name: method_options(name) for name in METHODS.in_order()},
        "train": TrainConfig,
        "eval": EvalConfig,
        "probe": ProbeConfig,
        "log": LogConfig,
    },
    config_dir=CONFIG_DIR,
    registries={"method": lambda: METHODS, "encoder": _encoders},
    follows={"data": "method"},
)

# What may differ between a run and its continuation: none of it changes a number in metrics.jsonl.
FREE_ON_RESUME = (
    "out",
    "plugins",
    "plan",
    "data.root",
    "data.sets",
    "data.allow_seen",
    "data.cache",
    "data.workers",
    "data.timeout",
    "data.keep_mb",
    "data.max_rejected",
    "train.resume",
    "train.threads",
    "train.save_every",
    "train.keep",
    "train.milestones",
    "log.with",
)

# What --train.extend may change beside those.
EXTENDABLE = (
    *("train.extend", "train.steps", "train.lr", "train.warmup", "train.schedule_steps", "train.lr_floor"),
    *("train.patience", "train.plateau", "train.plateau_factor", "train.max_skipped"),
    *("eval.every", "eval.scans", "eval.windows", "eval.queries", "probe.", "log."),
)

# Settings that runs of earlier versions do not have, and what they did.
NEW = {
    "data.offset": None,
    "train.extend": "",
    "eval.cross": 0,
    "probe.unknown": None,
    "encoder.freeze": [],
    "encoder.which": "auto",
    "train.optimizer": "adamw",
    "train.schedule_steps": 0,
    "train.decay": "matrices",
    "train.momentum": 0.9,
    "train.patience": 0,
    "train.plateau": 0,
    "train.plateau_factor": 0.1,
}


def check(config: dict, world: int) -> None:
    """Everything that can be wrong with the settings alone, before any work."""
    from pretrain.sources import source_kind
    from voco.data.dataset import StepSampler

    data, train = config["data"], config["train"]
    if not data.root:
        raise InputError("no data given: --data.root FOLDER, or a list (CSV, JSON)")
    if not Path(data.root).exists():
        raise InputError(f"--data.root {data.root} does not exist")
    if not 0 <= data.heldout < 1:
        raise InputError(
            f"--data.heldout is a share of patients or groups, at least 0 and less than 1; found {data.heldout}"
        )
    if len(config["encoder"].window) % 2:
        raise InputError(f"--encoder.window takes pairs of low and high, found {config['encoder'].window}")
    if train.steps < 1:
        raise InputError(f"--train.steps must be positive, found {train.steps}")
    if train.schedule_steps and train.schedule_steps < train.steps:
        raise InputError(
            f"--train.schedule_steps {train.schedule_steps} ends before --train.steps {train.steps}: the learning rate "
            "would be 0 from then on; lay the cosine out for at least as many steps (0 = the same)"
        )
    for name in ("accumulate", "keep", "max_skipped"):
        if getattr(train, name) < 1:
            raise InputError(f"--train.{name} must be at least 1, found {getattr(train, name)}")
    _check_probe(config)
    _check_cross(config)
    if train.extend and train.resume != "auto":
        raise InputError(f"--train.extend goes on by itself: leave --train.resume {train.resume} out")
    _check_stopping(config)
    if data.workers < 0:
        raise InputError(f"--data.workers must be 0 or more, found {data.workers}")
    if late := [step for step in train.milestones if not 0 < step <= train.steps]:
        raise InputError(f"--train.milestones {late} are never reached: steps count from 1 to {train.steps}")
    StepSampler(0, 0, train.batch_size, train.accumulate, 0, world)
    source_kind(config).check(config)


def _check_cross(config: dict) -> None:
    from pretrain.sources import source_kind

    cross, resume = config["eval"].cross, config["train"].resume
    if cross < 0 or cross == 1:
        raise InputError(f"--eval.cross is a number of folds, at least 2, or 0 for none; found {cross}")
    if cross and not source_kind(config).takes_folds:
        raise InputError("--eval.cross is for scans; videos are judged on the groups of --data.heldout")
    if cross and resume not in ("auto", "never"):
        raise InputError(
            f"--train.resume {resume} with --eval.cross: no fold can go on from a checkpoint that may have seen its "
            "held-out patients; use auto, which continues every fold of --out"
        )
    if cross and config["train"].extend:
        raise InputError(
            "--train.extend with --eval.cross: the folds judged a recipe of fewer steps; start a new run with more"
        )


def _check_stopping(config: dict) -> None:
    train = config["train"]
    if not (train.patience or train.plateau):
        return
    kind = method_class(config["method"].name)
    if not kind.watched:
        raise InputError(
            f"--train.patience and --train.plateau go by the held-out loss of clips; {kind.title}'s loss does not say "
            "how good an encoder is, so leave them at 0 and compare --train.milestones"
        )
    if not config["eval"].every:
        raise InputError("--train.patience and --train.plateau count reports: set --eval.every to steps between them")


def _check_probe(config: dict) -> None:
    from pretrain.sources import source_kind

    probe = config["probe"]
    if probe.labels and not source_kind(config).takes_probe:
        raise InputError("--probe.labels is for scans; the video method reports its own accuracy")
    if probe.labels and not Path(probe.labels).is_file():
        raise InputError(f"--probe.labels {probe.labels} does not exist; expected a CSV with labels of scans")
    if probe.every < 0 or probe.windows < 1 or probe.scans < 4:
        raise InputError(
            f"--probe.every must be at least 0, --probe.windows at least 1 and --probe.scans at least 4; found "
            f"{probe.every}, {probe.windows} and {probe.scans}"
        )


def check_same_data(resume: Path, cohort) -> None:
    """With other data, positions in the data mean something else: the curve would go on, the run would be another."""
    from voco.engine.record import read_record

    run = resume.parent.parent
    saved = read_record(run)
    if saved.get("data_fingerprint", cohort.fingerprint) != cohort.fingerprint:
        raise InputError(
            f"{run} was started with other scans: {saved.get('data')} then, {cohort.counts} now. Bring them "
            "back, or start another run (with --encoder.weights to start from its encoder)"
        )
