"""The kinds of data that a method can ask for, and the parts of a run that know both its method and its data."""

from __future__ import annotations

from pretrain.clips import Clips
from pretrain.scans import Scans
from voco.methods import METHODS, method_class

SOURCES = {"scans": Scans, "clips": Clips}


def source_kind(config: dict) -> type[Scans] | type[Clips]:
    """The class of the data that the method of a run asks for."""
    return SOURCES[METHODS[config["method"].name].source]


def make_source(config: dict, encoder) -> Scans | Clips:
    """The data of a run, not read yet, for an encoder as it is before ``as_fed``."""
    settings = config["method"]
    return source_kind(config)(config, method_class(settings.name).sample(settings, encoder.input_spec))


def build_method(config: dict, encoder, cohort):
    """The method around an encoder, with fresh heads, in training mode."""
    import torch

    from voco.rng import derive_seed

    settings = config["method"]
    torch.manual_seed(derive_seed(config["seed"], "heads"))
    return method_class(settings.name).create(encoder, settings, cohort).train()


def notes(source: Scans | Clips, world: int) -> list[str]:
    """What a user may not expect of settings and data that are not wrong."""
    settings, train = source.config["method"], source.config["train"]
    own = method_class(settings.name).notes(
        settings, samples=train.batch_size // train.accumulate, world=world, patients=source.size[1]
    )
    return source.notes(own)


def provenance(source: Scans | Clips, method, judged=None) -> dict:
    """What the model card and later trainings should know of method and data.

    Args:
        judged: the monitor, or the recipe of folds; None where nothing was judged.
    """
    from dataclasses import asdict

    from voco.config import flatten

    settings = source.config["method"]
    learned = judged.card(method.card_scores) if judged is not None and judged.latest is not None else {}
    return {
        **({"preset": settings.preset} if hasattr(settings, "preset") else {}),
        **source.provenance(),
        "settings": flatten(asdict(settings)),
        **learned,
        "citation": method.citation,
    }
