"""How large a network for how many scans: what one published study says, and how sure that is."""

from __future__ import annotations

# Scans of the two pretraining sets that the study compares.
COMPARED = (10_000, 160_000)
# What its runs were laid out for, whatever the size: 2,000,000 steps of 16.
PUBLISHED_VOLUMES = 32_000_000


def size_note(parameters: int, scans: int, volumes: int) -> str:
    """One line for ``--plan``: the size at hand, for these scans and this budget, beside the published advice on it.

    Source: VoCo's scaling study (arXiv 2410.09890), known second-hand; see docs/pretraining.md.

    Args:
        parameters: of the encoder.
        scans: of the training part.
        volumes: that the run will see.
    """
    least, most = COMPARED
    where = "fewer than" if scans < least else "more than" if scans > most else "within what"
    advice = "start with a small network and compare" if scans < least else "compare sizes before a long run"
    return (
        f"model size: {parameters / 1e6:.3g} M parameters for {scans:,} scans and a budget of {volumes:,} volumes. The "
        "one published study of sizes (VoCo, arXiv 2410.09890; second-hand, spread over seeds not known) found a small "
        f"gain from {least:,} to {most:,} scans, and advises larger networks for tasks with more classes, more labeled "
        f"cases and more diverse scans. These scans are {where} it compared, and the budget is "
        f"{100 * volumes / PUBLISHED_VOLUMES:.2g} % of that of its runs: {advice} (docs/pretraining.md, Which size)"
    )
