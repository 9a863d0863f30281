"""Settings of the finetune stage. Defaults live here or in the dataclasses of the parts; YAML holds what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voco.config import Schema
from voco.errors import InputError
from voco.tasks import TASKS, task_class
from voco.transfer.augment import StudyAugmentation
from voco.transfer.model import HeadOptions


@dataclass
class Run:
    """The run itself."""

    out: str
    """Run folder; an existing one is continued (see --train.resume)."""
    mode: Literal["full", "linear", "knn"] = "full"
    """full: train the whole network; linear: logistic regression on frozen features; knn: their nearest neighbours."""
    view: Literal["auto", "resize", "tiles", "slice_windows"] = "auto"
    """How a whole study reaches the encoder: stretched to one window, cut into tiles, or as windows of slices. auto:
    as `voco embed` shows it with --mode linear and knn, resize with --mode full."""
    learn: Literal["study", "window"] = "study"
    """study: a study's windows are pooled and its label is learned; window: each window has a label (slice labels)."""
    fraction: float = 1.0
    """Share of the training patients whose labels are used; smaller ones lie inside larger ones."""
    fraction_val: Literal["share", "full"] = "share"
    """share: validation patients count towards the fraction; full: all of them are used, as in papers (marked)."""
    folds: int = 0
    """K of K-fold cross-validation; 0 = one split."""
    repeats: int = 1
    """Repeats of the cross-validation with other folds."""
    fold: int = -1
    """Train this fold only (from 0), for job arrays; -1 = all in turn. The same command without it collects."""
    eval: Literal["validation", "test"] = "validation"
    """What is scored after training. test opens the test set, which is written to a ledger beside the split."""
    allow_seen: bool = False
    """Open the test set although the encoder's training saw scans or patients of it, and keep a split that was given
    although it has the same scan on two sides; marked in the results."""
    tta: bool = False
    """Average over the flips that the task allows when scoring."""
    seed: int = 0
    """Seed of everything random."""


@dataclass
class Command(Run):
    """The run, and what the command line takes besides."""

    plan: bool = False
    """Print scans and parts by class, windows per study, steps and voxels, then stop: nothing is written."""


@dataclass
class EncoderConfig:
    """The network that is evaluated."""

    name: str = ""
    """Registered name, see `voco encoders`; may be left out where --encoder.weights says which network it is."""
    weights: str | None = None
    """A file of any project, the folder of an encoder or a run, a tag (see `voco encoders`), or a Hugging Face id."""
    which: str = "auto"
    """The network to take from weights that hold several, by the name that `voco inspect` has for it, e.g. ema."""
    depth_stride: int = 0
    """Total depth stride of a video network, smaller than published; 0 = as published."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the architecture by name, e.g. {chunk: 8} for slice encoders."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass
class DataConfig:
    """The labeled data set."""

    root: str | None = None
    """Folder of the data set as it was downloaded; for the task table, the CSV or the folder its paths start from."""
    cache: str | None = None
    """Folder for prepared studies and features; unset = `cache` beside the run folder, shared by the runs there."""
    offset: float | None = None
    """HU added to the values of every scan, e.g. -1024 for stored values that lost their rescale intercept; 0 = they
    are Hounsfield units, whatever they look like; unset = they should be, and what surely is not is refused."""
    max_rejected: float = 0.2
    """Stop before training when more than this share of the scans cannot be used."""
    workers: int = 4
    """Loader processes per training process; also used to prepare. 0 = in the main process."""
    timeout: float = 600.0
    """Seconds after which a silent loader is an error."""


@dataclass
class InputConfig:
    """What the encoder is fed; what is left empty is its own ("as pretrained")."""

    size: list[int] = field(default_factory=list)
    """(D H W) voxels of a window, or one number."""
    spacing: list[float | Literal["native"]] = field(default_factory=list)
    """(D H W) mm of tiles, or one number."""
    window: list[float] = field(default_factory=list)
    """Hounsfield window, low and high; two or three pairs one after the other make as many input channels."""
    mean: list[float] = field(default_factory=list)
    """Subtracted after the Hounsfield window is scaled to [0, 1], one per channel."""
    std: list[float] = field(default_factory=list)
    """Divided by afterwards, one per channel."""
    stride: list[int] = field(default_factory=list)
    """Step between windows (D H W); one number: along D for windows of slices. Empty = windows side by side."""
    stored: list[int] = field(default_factory=list)
    """(H W) at which studies are kept, larger than the window: training cuts anywhere in it, scoring in the middle."""
    windows: int = 0
    """Windows of a study in one training sample at most, drawn anew each time; 0 = all."""
    chunk: int = 0
    """Windows that go through the encoder at once: bounds memory; 0 = all of a batch."""
    crop_body: bool = True
    """Cut away air and table around the body."""


@dataclass
class SplitConfig:
    """Who is trained on, who validates, who is tested; always whole patients."""

    rule: Literal["auto", "holdout", "published", "ke2023"] = "auto"
    """auto: the data set's own split where it has one, else holdout; ke2023: the unstratified 70/15/15 of Ke et al."""
    file: str | None = None
    """A splits.csv of another run, or of `voco split`."""
    test: float = 0.2
    """Share of patients for the test set."""
    val: float = 0.15
    """Share for validation of the patients who do not test."""
    seed: int = 0
    """Another seed, other parts; apart from --seed, so that runs with several seeds share one test set."""


@dataclass
class TrainConfig:
    """Optimization (mode full)."""

    steps: int = 2000
    """Optimizer steps at most."""
    batch_size: int = 8
    """Studies (or windows, with --learn window) per step over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches per step."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Published recipes use Adam (Ke et al.) and SGD (ViPTT-Net)."""
    lr: float = 1e-4
    """Peak learning rate of the last stage of the encoder."""
    head_lr: float = 1.0
    """Learning rate of the head as a multiple of it."""
    layer_decay: float = 1.0
    """Factor by which the learning rate falls with every stage away from the head."""
    freeze_steps: int = 0
    """Steps during which only the head learns."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """What is decayed: matrices and kernels, or biases and norms too, as published codes do it."""
    momentum: float = 0.9
    """Of SGD."""
    dampening: float = 0.0
    """Of SGD's momentum."""
    clip: float = 1.0
    """Largest gradient norm; 0 = no clipping."""
    batchnorm: Literal["all", "local", "frozen"] = "all"
    """Statistics that BatchNorm normalises by while training: of a micro-batch over all processes (all) or in each
    process alone (local), or the running ones of the encoder's weights, which are kept (frozen; for batches of one or
    two). Its weights and biases learn in any case."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then scored and exported, e.g. 0.998; 0 = the last weights."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32; frozen features (--mode linear, knn) are fp32."""
    threads: int = 0
    """CPU threads per process when training without a GPU; 0 = the cores shared among the processes of this machine."""
    class_weights: Literal["none", "balanced", "task"] = "none"
    """balanced: inverse class frequency in the loss; task: the weights of the official metric."""
    balance: bool = False
    """Draw the class of each sample first (with replacement), apart for every position, never the same on two ranks."""
    class_shares: dict[str, float] = field(default_factory=dict)
    """With balance: share of each class, e.g. {"0": 0.7, "1": 0.3}; empty = equal."""
    match_depth: bool = False
    """With balance and --learn window: windows of all classes are drawn at the depths where the rarest one occurs, so
    that where a finding tends to lie does not stand in for what it looks like."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over the classes."""
    augment: bool = True
    """Augment (see --augment.…)."""
    patience: int = 0
    """Evaluations without improvement on validation after which training ends; 0 = never."""
    watch: Literal["metric", "loss"] = "metric"
    """What early stopping and the choice of the best model go by, on validation: the main metric or the loss."""
    plateau: int = 0
    """Evaluations without a better validation loss after which the learning rate falls; 0 = never."""
    plateau_factor: float = 0.5
    """By which factor."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 1
    """Newest checkpoints to keep."""
    resume: str = "auto"
    """auto: continue the newest checkpoint of --out; never: refuse to."""
    extend: str = ""
    """Go on from a finished or stopped run to more --train.steps, or with another lr, schedule or warmup. Data and
    method must be those of that run; the result says that it is no single run's (docs/finetune.md)."""
    max_skipped: int = 20
    """Non-finite steps in a row after which the run stops."""


@dataclass
class ProbeConfig:
    """Frozen features (modes linear and knn)."""

    neighbours: int = 20
    """k of knn."""
    temperature: float = 0.07
    """Of the weights exp(cosine / temperature) of the neighbours."""
    regularization: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])
    """Values of C that logistic regression tries; the best by cross-validation inside the training patients is kept."""


@dataclass
class ScoreConfig:
    """Scoring."""

    every: int = 100
    """Steps between scorings of the validation patients; one is always made at the end."""
    bootstrap: int = 2000
    """Resamplings of the patients behind every interval."""
    examples: int = 3
    """Studies whose evidence is drawn."""
    figures: bool = True
    """Pictures of the results; the report of a grid draws its own from the predictions."""


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


def schema(top: type = Run) -> Schema:
    """The settings of ``finetune/run.py``; a task's own options are those of its class.

    Args:
        top: ``Command`` for the command line.
    """
    return Schema(
        prog="finetune/run.py",
        description="Evaluate an encoder on a task: train or probe it, score every case, compute the official metric. "
        "Start with `accelerate launch finetune/run.py …`. The task options shown are those of the task chosen.",
        top=top,
        groups={
            "task": lambda: {name: task_class(name).Options for name in TASKS.in_order()},
            "encoder": EncoderConfig,
            "data": DataConfig,
            "input": InputConfig,
            "split": SplitConfig,
            "head": HeadOptions,
            "train": TrainConfig,
            "augment": StudyAugmentation,
            "probe": ProbeConfig,
            "score": ScoreConfig,
            "log": LogConfig,
        },
        config_dir=CONFIG_DIR,
        registries={"task": lambda: TASKS, "encoder": _encoders},
    )


def _encoders():
    from voco.encoders import ENCODERS

    return ENCODERS


# Settings that runs from before they existed do not name.
LATER = (
    *("encoder.which", "data.offset", "train.batchnorm", "train.decay", "train.dampening", "train.extend"),
    *("task.any_injury", "task.strata", "task.unknown"),
)
# What may differ between a run and its continuation: none of it changes a number in metrics.jsonl.
FREE_ON_RESUME = (
    "out",
    "plugins",
    "fold",
    "eval",
    "allow_seen",
    "tta",
    "data.root",
    "data.cache",
    "data.workers",
    "data.timeout",
    "data.max_rejected",
    "train.resume",
    "train.threads",
    "train.save_every",
    "train.keep",
    "score.bootstrap",
    "score.examples",
    "score.figures",
    "log.with",
)

# What --train.extend may change beside those.
EXTENDABLE = (
    *("train.extend", "train.steps", "train.lr", "train.schedule", "train.warmup", "train.patience"),
    *("train.plateau", "train.plateau_factor", "train.max_skipped", "score.", "log."),
)


def check(config: dict, world: int) -> None:
    """Everything that can be wrong with the settings alone, before any work."""
    from voco.data.dataset import StepSampler

    data, train, encoder = config["data"], config["train"], config["encoder"]
    if not data.root:
        raise InputError("no data given: --data.root FOLDER, the data set as it was downloaded")
    if not Path(data.root).exists():
        raise InputError(f"--data.root {data.root} does not exist")
    if not encoder.name and not encoder.weights:
        raise InputError("no encoder given: --encoder.name NAME (see `voco encoders`), --encoder.weights, or both")
    if not 0 < config["fraction"] <= 1:
        raise InputError(f"--fraction is a share of the training patients, above 0 to 1; found {config['fraction']}")
    if config["folds"] == 1 or config["folds"] < 0:
        raise InputError(f"--folds takes 2 or more, or 0 for one split; found {config['folds']}")
    if config["repeats"] < 1 or (config["repeats"] > 1 and not config["folds"]):
        raise InputError(f"--repeats counts repeats of --folds K; found {config['repeats']} with K {config['folds']}")
    runs = config["folds"] * config["repeats"]
    # without --folds they are those of the split file or of the data set
    if config["fold"] < -1 or (runs and config["fold"] >= runs):
        raise InputError(f"--fold {config['fold']}: there are {runs} folds (--folds), counted from 0")
    if config["folds"] and config["split"].file:
        raise InputError("--split.file names the parts of every fold itself; leave --folds out")
    if config["folds"] and config["split"].rule != "auto":
        raise InputError(
            f"--folds parts the patients anew, --split.rule {config['split'].rule} does not: leave --folds out, or add "
            "--split.rule auto"
        )
    if len(config["input"].window) % 2:
        raise InputError(f"--input.window takes pairs of low and high, found {config['input'].window}")
    for name in ("chunk", "windows"):
        if getattr(config["input"], name) < 0:
            raise InputError(f"--input.{name} must not be negative, found {getattr(config['input'], name)}")
    for name in ("steps", "accumulate", "keep", "max_skipped"):
        if getattr(train, name) < 1:
            raise InputError(f"--train.{name} must be at least 1, found {getattr(train, name)}")
    if train.resume not in ("auto", "never"):
        raise InputError(
            f"--train.resume is auto or never, found {train.resume!r}; start from an encoder with --encoder.weights"
        )
    if train.extend and config["mode"] != "full":
        raise InputError(f"--train.extend goes on with steps, which --mode {config['mode']} has none of")
    if train.extend and train.resume != "auto":
        raise InputError(f"--train.extend goes on by itself: leave --train.resume {train.resume} out")
    if not 0 < train.layer_decay <= 1:
        raise InputError(f"--train.layer_decay is a factor above 0 to 1, found {train.layer_decay}")
    if not 0 <= train.label_smoothing < 1:
        raise InputError(f"--train.label_smoothing is a share from 0 to below 1, found {train.label_smoothing}")
    if data.workers < 0:
        raise InputError(f"--data.workers must be 0 or more, found {data.workers}")
    if config["mode"] != "full" and config["head"].pooling == "attention":
        raise InputError(f"--head.pooling attention is learned: it needs --mode full, not {config['mode']}")
    if config["mode"] != "full" and config["head"].features == "sequence":
        raise InputError(
            f"--head.features sequence has a head that is learned: it needs --mode full, not {config['mode']}"
        )
    if config["mode"] != "full" and config["head"].hidden:
        raise InputError(f"--head.hidden is a layer that is learned: it needs --mode full, not {config['mode']}")
    for name in ("lr", "head_lr"):
        if getattr(train, name) <= 0:
            raise InputError(f"--train.{name} must be above 0, found {getattr(train, name)}")
    if config["probe"].neighbours < 1 or not config["probe"].regularization:
        raise InputError("--probe.neighbours must be at least 1 and --probe.regularization name at least one value")
    StepSampler(0, 0, train.batch_size, train.accumulate, 0, world)
