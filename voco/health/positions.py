"""The report of a method that compares crops, VoCo: its loss beside predictors that know nothing, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from voco.health.evaluate import outer_window
from voco.health.examples import similarity_examples
from voco.health.monitor import BATCH_VOLUMES, HealthMonitor
from voco.reference import reference_lines


class PositionMonitor(HealthMonitor):
    """The shared report, and what only base and random crops give: loss terms, projector, pictures of answers.

    Args: as ``HealthMonitor``; ``method`` is a ``voco.methods.voco3d.VoCo3D``.
    """

    def known_values(self, method) -> dict[str, float]:
        """Loss and score of predictors that know nothing, for the geometry and the loss of the run."""
        options = method.options
        return asdict(
            reference_lines(method.geometry, negative=options.negative, positive_weight=options.positive_weight)
        )

    def loss_picture(self, rows: Sequence[Mapping]):
        """All terms over steps, training and held-out, beside the losses of predictors that know nothing."""
        from voco import figures

        return figures.loss_curves(rows, self.references)

    def pictures(self, method, rows: Sequence[dict], draws: dict, device, autocast_dtype=None) -> dict:
        """Also which crops are like which, and what is cut from a window."""
        from voco import figures

        outer = outer_window(self.hu_windows)
        drawn = super().pictures(method, rows, draws, device, autocast_dtype)
        for slabs, name in ((False, "similarity"), (True, "similarity_disjoint")):
            score = self.latest and self.latest.score(f"clean_{'disjoint' if slabs else 'position'}_accuracy")
            note = "" if score is None else f" Of all held-out crops {score:.0%} are right."
            cases = similarity_examples(
                method,
                self.windows,
                seed=self.seed,
                batch_volumes=BATCH_VOLUMES,
                device=device,
                autocast_dtype=autocast_dtype,
                slabs=slabs,
            )
            if cases:
                where = ", from the slab above or below: no shared voxel" if slabs else ""
                note = f"First crop of each scan that lies mostly in one cell{where}.{note}"
                drawn[name] = figures.similarity_map(cases, self.geometry, outer, note=note)
        drawn["crops"] = figures.crops_of_case(self.windows[0].hu, self.geometry, draws, outer)
        return drawn
