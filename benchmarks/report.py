"""Compare finished runs: ``python benchmarks/report.py runs/a runs/b … --out reports/x``.

Reads run folders of ``finetune/run.py`` (or folders that hold them) and nothing else; every figure is computed again
from the predictions. Writes one HTML page, the same as Markdown, and ``paper/`` with figures and tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from voco.errors import InputError
from voco.files import write_text
from voco.plugins import load_all

PAGE, TEXT, PAPER, CACHE = "report.html", "report.md", "paper", "statistics.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run folders, or folders that hold them")
    parser.add_argument("--out", required=True, type=Path, help="folder of the report")
    parser.add_argument(
        "--plan", type=Path, help="JSON with the primary comparisons, as a grid stores it before it runs"
    )
    parser.add_argument("--reference", default="scratch", help="source that others are compared with")
    parser.add_argument("--title", default="", help="heading of the page")
    for name in ("--resamples", "--seed"):
        parser.add_argument(name, type=int, help="without effect, as intervals need no draws any more")
    parser.add_argument("--no-paper", action="store_true", help="leave out paper/")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
        help="Python file or module with a task or metrics of your own that the runs were made with",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        load_all(args.plugin)
        write_report(
            args.runs, args.out, plan=args.plan, reference=args.reference, title=args.title,
            paper=not args.no_paper, say=lambda text: print(text, file=sys.stderr, flush=True),
        )  # fmt: skip
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    plan=None,
    reference: str = "scratch",
    title: str = "",
    paper: bool = True,
    left_out: Sequence[tuple[Path, str]] = (),
    warnings: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write a report on finished runs.

    Args:
        runs: run folders, or folders that hold them.
        out: folder of the report; numbers that were computed before are kept in it.
        plan: ``benchmarks.statistics.measure.Plan``, or the JSON file of one: what was named before any test set was
            opened.
        reference: source that others are compared with.
        title: heading of the page.
        paper: also write ``paper/``.
        left_out: (folder, reason) of cells that a grid knows to have failed.
        warnings: sentences to stand at the top.
        say: takes lines of progress.

    Returns:
        The HTML page.

    Raises:
        InputError: a path that does not exist, a plan that is none, or no finished run at all.
    """
    from benchmarks.pages.content.page import Material, compose, methods_text
    from benchmarks.pages.content.published import published_parts
    from benchmarks.pages.html import html
    from benchmarks.pages.markdown import markdown
    from benchmarks.read.rows import group_runs, pairs_of
    from benchmarks.statistics.measure import Plan, Statistics, measure
    from voco.engine.record import git_commit

    out = Path(out)
    plan = Plan.read(plan) if isinstance(plan, str | Path) else plan or Plan()
    found, lost = _read(runs, say)
    sets, again = group_runs(found)
    paired = [(one, pairs_of(one, reference)) for one in sets]
    count = sum(len(one.rows) for one in sets)
    say(f"{len(found)} runs in {count} rows, {sum(len(p) for _, p in paired)} comparisons")
    statistics = Statistics(out / CACHE, say=say)
    intervals, comparisons, notes = measure(paired, statistics, plan)
    if statistics.computed:
        statistics.save()
    left = iter(comparisons)
    by_set = [(one, [next(left) for _ in pairs]) for one, pairs in paired]
    published = published_parts(sets, intervals)
    facts = {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": git_commit() or "",
    }
    material = Material(
        by_set, intervals, plan, [*lost, *again, *left_out], [*warnings, *notes], published, facts, title
    )
    document = compose(material)
    pages = [write_text(out / PAGE, html(document)), write_text(out / TEXT, markdown(document, f"{PAPER}/figures"))]
    if paper:
        from benchmarks.pages.paper import write_paper

        write_paper(out / PAPER, document, methods_text(material))
        pages.append(out / PAPER)
    say("wrote")
    for path in pages:
        say(f"  {path}")
    return pages[0]


def _read(paths: Sequence[str | Path], say: Callable[[str], None]):
    """Runs, and (folder, reason) of what cannot be read."""
    from benchmarks.read.run import find_runs, read_run

    folders, lost = find_runs(paths)
    found = []
    for folder in folders:
        try:
            found.append(read_run(folder))
        except InputError as error:
            lost.append((folder, str(error)))
            say(f"left out: {error}")
    if not found:
        why = f" (first: {lost[0][1]})" if lost else ""
        raise InputError(f"no finished run in {', '.join(map(str, paths))}{why}; nothing to report on")
    return found, lost


if __name__ == "__main__":
    sys.exit(main())
