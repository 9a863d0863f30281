"""A job array for SLURM: each job works on one shard of a grid."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cells.process import visible_gpus


def array_script(arguments: Sequence[str], out: Path, shards: int, *, processes: int = 1, jobs: int = 1) -> str:
    """Text of a batch script.

    Args:
        arguments: of ``benchmarks/sources.py``, without shard.
        out: folder of the grid, where logs go.
        shards: jobs of the array.
        processes: training processes of a cell, each with its own GPU.
        jobs: cells at a time in one job.
    """
    out = Path(out).absolute()
    own = " ".join(
        map(shlex.quote, [sys.executable, str(Path(__file__).resolve().parents[1] / "sources.py"), *arguments])
    )
    gpus = processes * jobs
    asked = f"#SBATCH --gpus-per-task={gpus}\n" if visible_gpus() or gpus > 1 else "# GPUs: #SBATCH --gpus-per-task=1\n"
    return f"""#!/bin/bash
# Save as grid.sh, fill in partition, account and time, then:
#   mkdir -p {shlex.quote(str(out / "slurm"))} && sbatch grid.sh
# The same again goes on with what is missing. When all jobs have ended, write the report:
#   {own}
#SBATCH --job-name=grid
#SBATCH --array=1-{shards}
#SBATCH --output={out}/slurm/%A-%a.log
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={4 * gpus}
#SBATCH --mem={32 * gpus}G
{asked}#SBATCH --time=24:00:00
#SBATCH --requeue
# Ten minutes before the end cells are asked to write a checkpoint.
#SBATCH --signal=B:USR1@600
{own} --shard "$SLURM_ARRAY_TASK_ID/{shards}" &
grid=$!
trap 'kill -USR1 $grid' USR1
trap 'kill -TERM $grid' TERM
# wait returns when a trapped signal arrives, so wait until the grid itself has ended
wait $grid; status=$?
while kill -0 $grid 2>/dev/null; do wait $grid; status=$?; done
exit $status
"""
