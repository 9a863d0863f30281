"""The ``voco`` command. Each subcommand imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from voco.errors import InputError
from voco.machine import cores
from voco.plugins import load_all


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        Exit status: 0, 2 where the input cannot be used (one message on stderr), 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        load_all(getattr(args, "plugin", ()))
        return args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `voco inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}:{where}".rstrip(":"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is written is whole, and the same command goes on from there", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    parser = argparse.ArgumentParser(
        prog="voco", description="Tools around pretraining and transfer of encoders for 3D CT.", allow_abbrev=False
    )
    from voco import __version__

    parser.add_argument("--version", action="version", version=f"voco {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    _add_phantom(commands)
    _add_prepare(commands)
    _add_split(commands)
    _add_inspect(commands)
    _add_encoders(commands)
    _add_embed(commands)
    return parser


def _command(commands, name: str, run, summary: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=text,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_phantom(commands) -> None:
    command = _command(
        commands,
        "phantom",
        phantom,
        "write synthetic patients",
        "Write synthetic CT patients to try things with: no real person, the same for the same seed.",
    )
    command.add_argument("out", metavar="OUT", help="folder to fill; made if missing")
    command.add_argument(
        "--layout",
        default="folder",
        help="how the files are laid out: folder; video for labeled clips; patients with disease in the layout of a "
        "public data set: rsna_pe, lidc, imageclef_tb, rsna_trauma",
    )
    command.add_argument("--cases", type=int, default=12, metavar="N", help="patients, or clips")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other patients")
    command.add_argument(
        "--severity",
        type=float,
        default=1.0,
        metavar="X",
        help="size and contrast of planted disease: 0 nothing (labels stay), 1 moderate, 2 gross",
    )
    command.add_argument("--format", default="mixed", help="of the layout folder: nifti, dicom, or mixed")
    command.add_argument(
        "--spacing", nargs=3, type=float, metavar=("D", "H", "W"), help="voxel size in mm; default: drawn per patient"
    )
    command.add_argument("--workers", type=int, default=cores(), metavar="N", help="processes")


def phantom(args: argparse.Namespace) -> int:
    """``voco phantom OUT``."""
    from voco.phantom import write_cohort

    if args.cases < 1:
        raise InputError(f"--cases must be at least 1, found {args.cases}")
    start = time.monotonic()
    written = write_cohort(
        args.out,
        layout=args.layout,
        cases=args.cases,
        seed=args.seed,
        format=args.format,
        spacing_mm=tuple(args.spacing) if args.spacing else None,
        severity=args.severity,
        workers=args.workers,
    )
    seconds = time.monotonic() - start
    if args.layout == "video":
        print(f"wrote {len(written)} synthetic clips in {seconds:.1f} s")
    else:
        print(f"wrote {args.cases} synthetic patients ({len(written)} scans) in {seconds:.1f} s")
        print(f"look at: voco inspect {written[0]}" if written else "")
    print(args.out)
    return 0


def _add_prepare(commands) -> None:
    command = _command(
        commands,
        "prepare",
        prepare,
        "read and resample scans once, for fast training",
        "Read every scan, resample it, and store it losslessly (int16 HU, compressed) in CACHE. May be stopped and "
        "started again at any moment, and run by many processes at once; what is there is not made again.",
    )
    command.add_argument(
        "root", metavar="IN", help="folder with NIfTI, MHD/MHA, NRRD or DICOM, a CSV, a Decathlon or an nnssl JSON"
    )
    command.add_argument("cache", metavar="CACHE", help="folder of the prepared scans; made if missing")
    command.add_argument(
        "--spacing",
        nargs="+",
        default=["1.5"],
        metavar="MM",
        help="voxel size in mm: one value, or three in D H W order; native keeps the scan's own",
    )
    command.add_argument("--crop_body", action="store_true", help="keep only the bounding box of the patient")
    command.add_argument("--antialias", action="store_true", help="average where voxels become coarser")
    _add_offset(command)
    command.add_argument("--workers", type=int, default=cores(), metavar="N", help="processes; each holds one scan")
    command.add_argument(
        "--select",
        default="thinnest_axial",
        metavar="RULE",
        help="series of a DICOM study: thinnest_axial, largest, all",
    )
    command.add_argument("--patient_regex", metavar="R", help="its first group in the relative path is the patient")
    command.add_argument("--exclude", metavar="FILE", help="patients to leave out, one a line")
    command.add_argument(
        "--max_rejected", type=float, default=0.2, metavar="SHARE", help="fail if more of the scans cannot be used"
    )
    command.add_argument(
        "--retry_rejected", action="store_true", help="try scans again that were found unusable before"
    )
    command.add_argument(
        "--shard", type=_shard, metavar="I/N", help="prepare only part I (from 0) of N, for job arrays"
    )


def _add_plugin(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="Python file or module with encoders or tasks of your own; may be repeated",
    )


def _add_offset(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--offset",
        type=float,
        metavar="HU",
        help="add this to the values, such as -1024 for stored values that lost their rescale intercept; 0: they are "
        "Hounsfield units, whatever they look like",
    )


def prepare(args: argparse.Namespace) -> int:
    """``voco prepare IN CACHE``."""
    from voco.data.doubts import doubt_notes, with_doubts
    from voco.data.manifest import build_manifest, check_rejected, write_rejected, write_series
    from voco.data.prepare import PrepareSettings
    from voco.data.prepare import prepare as prepare_cases

    if not 0 <= args.max_rejected <= 1:
        raise InputError(f"--max_rejected is a share from 0 to 1, found {args.max_rejected}")
    if args.workers < 1:
        raise InputError(f"--workers must be at least 1, found {args.workers}")
    settings = PrepareSettings(args.spacing, args.crop_body, args.antialias, offset=args.offset)
    start = time.monotonic()
    manifest = build_manifest(
        args.root,
        select=args.select,
        exclude=args.exclude,
        patient_regex=args.patient_regex,
        progress=True,
        workers=args.workers,
    )
    for note in manifest.notes:
        print(f"note: {note}", file=sys.stderr)
    part, parts = args.shard or (0, 1)
    cases = manifest.cases[part::parts]
    found = f"found {len(manifest.cases)} scans of {len({case.patient for case in manifest.cases})} patients"
    print(found + (f"; this part takes {len(cases)}" if parts > 1 else ""), flush=True)
    result = prepare_cases(
        cases, manifest.root, args.cache, settings, workers=args.workers, retry_rejected=args.retry_rejected
    )
    rejected = ([] if part else manifest.rejected) + result.rejected
    suffix = f".{part}of{parts}" if parts > 1 else ""
    tables = [Path(args.cache) / f"rejected{suffix}.csv"]
    write_rejected(tables[0], rejected)
    if manifest.series and part == 0:
        tables.append(Path(args.cache) / "series.csv")
        write_series(tables[1], with_doubts(manifest.series, result.entries, result.rejected))
    for note in doubt_notes(result.entries):
        print(f"note: {note}", file=sys.stderr)
    print(f"prepared {result.made}, ready before {result.reused}, rejected {len(rejected)}")
    total = sum(entry.bytes for entry in result.entries)
    print(f"{total / 1e6:.1f} MB, {result.bytes_per_voxel:.2f} bytes per voxel, {time.monotonic() - start:.1f} s")
    for path in (*tables, args.cache):
        print(path)
    check_rejected(len(cases) + len(rejected) - len(result.rejected), rejected, args.max_rejected)
    return 0


def _add_split(commands) -> None:
    command = _command(
        commands,
        "split",
        split,
        "reserve test patients before pretraining",
        "Part a cohort by patient, once, before anything is trained. Writes a split file for finetune/run.py "
        "(--split.file) and beside it the list of test patients for pretrain/run.py (--data.exclude).",
    )
    command.add_argument("cohort", metavar="COHORT", help="folder or list of scans, or a data set with --task")
    command.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="patients to reserve")
    command.add_argument("--val", type=float, default=0.15, metavar="SHARE", help="of the others, for validation")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other patients")
    command.add_argument("--out", default="splits.csv", metavar="FILE", help="split file to write")
    command.add_argument("--task", metavar="NAME", help="read labels of this task, so that they are balanced")
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the task as in finetune/run.py without 'task.', such as preset=ke_3d; may be repeated",
    )
    command.add_argument("--patient_regex", metavar="R", help="its first group in the relative path is the patient")
    _add_plugin(command)


def split(args: argparse.Namespace) -> int:
    """``voco split COHORT``."""
    from voco.transfer.reserve import reserve

    options = dict(item.partition("=")[::2] for item in args.option)
    for line in reserve(
        args.cohort,
        args.out,
        task=args.task,
        options=options,
        test=args.test,
        val=args.val,
        seed=args.seed,
        patient_regex=args.patient_regex,
    ):
        print(line)
    return 0


def _add_inspect(commands) -> None:
    command = _command(
        commands,
        "inspect",
        inspect,
        "say what a file or folder is",
        "Describe a scan, a folder of scans, a prepared scan, a cache, a weights file of any project, an encoder or a "
        "run. Names, numbers and UIDs of patients are not shown.",
    )
    command.add_argument("path", metavar="FILE_OR_DIR", help="what to look at")
    _add_plugin(command)


def inspect(args: argparse.Namespace) -> int:
    """``voco inspect FILE_OR_DIR``."""
    from voco.describe import describe

    for line in describe(Path(args.path)):
        print(line)
    return 0


def _add_encoders(commands) -> None:
    command = _command(
        commands,
        "encoders",
        encoders,
        "list encoders and published weights",
        "List the encoders that --encoder.name takes, what each is fed by default, and the published weights that fit.",
    )
    command.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="shell pattern, such as 'swin*'")
    _add_plugin(command)


def encoders(args: argparse.Namespace) -> int:
    """``voco encoders [PATTERN]``."""
    from voco.describe_weights import describe_encoders

    for line in describe_encoders(args.pattern):
        print(line)
    return 0


def _add_embed(commands) -> None:
    command = _command(
        commands,
        "embed",
        embed,
        "features of scans from an encoder",
        "Write one row of features per scan. Each scan is prepared as the encoder was trained, cut into tiles of its "
        "usual size (or stretched to it, where a voxel has no fixed size for the encoder), and the features of the "
        "tiles are averaged. Columns: case, patient, path, f0000, f0001, … Scans that cannot be used are listed "
        "in rejected.csv beside OUT.",
    )
    command.add_argument(
        "encoder",
        metavar="ENCODER",
        help="folder of an encoder or a run, weights file, Hugging Face id, published weights as name.tag, or a name "
        "with --weights",
    )
    command.add_argument("source", metavar="IN", help="folder of scans, CSV or JSON list, or a cache of voco prepare")
    command.add_argument("out", metavar="OUT", help="table to write: .csv, .npz or .parquet")
    command.add_argument("--weights", metavar="W", help="weights for ENCODER: file, folder, tag or Hugging Face id")
    command.add_argument(
        "--view", choices=("resize", "tiles", "slice_windows"), help="how a scan is shown; default: as trained"
    )
    command.add_argument("--keep_air", action="store_true", help="do not cut away air and table around the body")
    _add_offset(command)
    command.add_argument("--cache", metavar="DIR", help="folder for prepared scans; default: cache beside OUT")
    command.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 …")
    command.add_argument("--bf16", action="store_true", help="compute in bf16, faster on GPUs that have it")
    command.add_argument("--chunk", type=int, default=8, metavar="N", help="tiles at once: bounds memory")
    _add_plugin(command)
    command.add_argument("--workers", type=int, default=cores(), metavar="N", help="processes that prepare scans")


def embed(args: argparse.Namespace) -> int:
    """``voco embed ENCODER IN OUT``."""
    from voco.embed_command import run

    for line in run(args):
        print(line, flush=True)
    return 0


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N-1, such as 0/8")
    return int(part), int(parts)


if __name__ == "__main__":
    sys.exit(main())
