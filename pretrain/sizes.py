"""How large a network for how many scans: what one published study says, and how sure that is."""

from __future__ import annotations

# Scans of the two pretraining sets that the study compares.
COMPARED = (10_000, 160_000)


def size_note(parameters: int, scans: int) -> str:
    """One line for ``--plan``: the size at hand beside the published advice on it.

    Source: VoCo's scaling study (arXiv 2410.09890), known second-hand; see docs/pretraining.md.

    Args:
        parameters: of the encoder.
        scans: of the training part.
    """
    least, most = COMPARED
    where = "fewer than" if scans < least else "more than" if scans > most else "within what"
    advice = "start with a small network and compare" if scans < least else "compare sizes before a long run"
    return (
        f"model size: {parameters / 1e6:.3g} M parameters for {scans:,} scans. The one published study of sizes (VoCo, "
        f"arXiv 2410.09890; second-hand, spread over seeds not known) found a small gain from {least:,} to {most:,} "
        "scans, and advises larger networks for tasks with more classes, more labeled cases and more diverse scans. "
        f"These scans are {where} it compared: {advice} (docs/pretraining.md, Which size)"
    )
