"""The model card of an exported encoder: Hugging Face front matter, then what a stranger needs to know."""

from __future__ import annotations

import json

_LISTED = ("settings", "results", "lines", "verdict")


def model_card(config: dict, text: str | None = None) -> str:
    """README.md for an encoder folder.

    Args:
        config: content of ``config.json``; the last entry of ``provenance`` is the training that made the weights.
        text: Markdown to open the card with, in place of the generated sentence.
    """
    history, spec = config["provenance"], config["input_spec"]
    licence = next((str(h[k]) for h in reversed(history) for k in ("license", "licence") if h.get(k)), None)
    title = f"{config['arch']}, a 3D CT encoder"
    parts = [
        _front_matter(licence),
        f"# {title}",
        text or f"{config['parameters'] / 1e6:.2f} M parameters, {config['num_features']} features per volume.",
        _usage(config),
        "## Input\n\n" + _table(_input_rows(spec)),
        "## How it was made\n\n" + ("\n\n".join(map(_training, history)) or "Random weights."),
        f"## Licence\n\n{licence or 'Not stated. The data that it was trained on may restrict its use.'}",
    ]
    if citations := [str(h["citation"]) for h in history if h.get("citation")]:
        parts.append("## Cite\n\n" + "\n".join(f"- {c}" for c in citations))
    parts.append("For research. It is not a medical device and no diagnosis may rest on it.")
    return "\n\n".join(parts) + "\n"


def _front_matter(licence: str | None) -> str:
    tags = ["medical-imaging", "computed-tomography", "3d", "feature-extraction", "self-supervised"]
    lines = ["---", f"license: {json.dumps((licence or 'unknown').lower())}", "library_name: voco", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "pipeline_tag: feature-extraction", "---"])


def _usage(config: dict) -> str:
    seen = "stretched to the usual size below"
    if config["input_spec"]["spacing_mm"]:
        seen = "brought to the voxel spacing below and shown in tiles of the usual size, whose features are averaged"
    return (
        "## Use\n\n```python\nimport voco\n\n"
        'encoder = voco.load_encoder("PATH_OR_HUB_ID")\n'
        'volume = voco.read_volume("scan.nii.gz")  # DICOM folders too\n'
        f"features = voco.embed(encoder, volume)  # ({config['num_features']},) float32\n```\n\n"
        f"Air and table are cut away, and the scan is {seen}. `voco embed` and linear probes see it the same way. "
        "`encoder(hu)` takes crops of your own, canonical Hounsfield units (B, 1, D, H, W), and applies window, "
        "scaling, axis order and padding itself."
    )


def _input_rows(spec: dict) -> list[tuple[str, object]]:
    spacing = spec["spacing_mm"]
    windows = "; ".join(f"[{low:g}, {high:g}]" for low, high in spec["windows"])
    return [
        ("voxel spacing (D, H, W)", " x ".join(f"{s:g}" for s in spacing) + " mm" if spacing else "any"),
        ("usual size (D, H, W)", " x ".join(map(str, spec["size"])) + " voxels"),
        ("smallest size", " x ".join(map(str, spec["min_size"])) + " voxels"),
        ("Hounsfield windows", windows + ", each scaled to [0, 1]"),
        ("mean, std", f"{spec['mean']}, {spec['std']}"),
        ("axes of the network", spec["axes"] + " (the encoder turns canonical S, P, L volumes by itself)"),
    ]


def _training(entry: dict) -> str:
    rows = [(k, v) for k, v in entry.items() if k not in (*_LISTED, "license", "licence", "citation")]
    title = entry.get("method") or entry.get("source") or "training"
    parts = [f"### {title}", _table(rows)]
    if entry.get("verdict"):
        parts.append("**Did it learn?**\n\n" + "\n".join(f"- {sentence}" for sentence in entry["verdict"]))
    for name, words in (
        ("results", "scores on held-out data"),
        ("lines", "what they stand beside"),
        ("settings", "settings"),
    ):
        if entry.get(name):
            parts.append(f"**{words}**\n\n{_table(list(entry[name].items()))}")
    return "\n\n".join(part for part in parts if part)


def _table(rows: list[tuple[str, object]]) -> str:
    if not rows:
        return ""
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
