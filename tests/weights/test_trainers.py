"""Checkpoints as trainers write them: whatever wraps a network, it is found by its names, and so is each of several."""

from __future__ import annotations

import pytest
import torch

from voco.cli import main
from voco.encoders import create_encoder
from voco.errors import InputError
from voco.weights.load import load_weights
from voco.weights.recognise import recognise


def random_state(encoder, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator) + 0.1 if value.is_floating_point() else value.clone()
        for key, value in encoder.state_dict().items()
    }


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    return create_encoder("cnn3d_s")


@pytest.fixture(scope="module")
def one(cnn):
    return random_state(cnn, 1)


@pytest.fixture(scope="module")
def two(cnn):
    return random_state(cnn, 2)


def pre(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def inside(word, state, every=1):
    """A wrapper around modules in the middle: ``stages.0.conv1.weight`` is ``stages.0._orig_mod.conv1.weight``."""
    changed = {}
    for key, value in state.items():
        parts = key.split(".")
        changed[".".join([*parts[:every], word, *parts[every:]] if len(parts) > every + 1 else parts)] = value
    return changed


def around_leaves(word, state):
    """A wrapper around every module that holds tensors: ``stem.0.weight`` is ``stem.0._module.weight``."""
    return {f"{key.rpartition('.')[0]}.{word}.{key.rpartition('.')[2]}": value for key, value in state.items()}


HEAD = {"head.weight": torch.ones(3, 96), "criterion.weight": torch.ones(3)}
MOMENTS = {"state": {i: {"exp_avg": torch.ones(2, 2), "step": torch.tensor(3.0)} for i in range(4)}, "param_groups": []}

# One network; whatever else is in the file.
ALONE = {
    "Lightning, self.net": lambda s: {
        "state_dict": pre("net.", s) | pre("net.", HEAD),
        "optimizer_states": [MOMENTS],
        "callbacks": {"ModelCheckpoint": {"best": torch.tensor(1.0)}},
        "pytorch-lightning_version": "2.4.0",
    },
    "Lightning, self.feature_extractor": lambda s: {"state_dict": pre("feature_extractor.", s) | HEAD},
    "Lightning with DeepSpeed": lambda s: {"module": pre("_forward_module.model.", s), "global_steps": 3},
    "Lightning, compiled": lambda s: {"state_dict": pre("model._orig_mod.", s)},
    "Fabric": lambda s: {"model": pre("_forward_module.", s), "optimizer": MOMENTS, "iteration": 3},
    "FSDP, root": lambda s: {"model": pre("_fsdp_wrapped_module.", s)},
    "FSDP, each stage": lambda s: pre("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", s, 2)),
    "activations recomputed": lambda s: inside("_checkpoint_wrapped_module", s, 2),
    "FSDP and activations recomputed": lambda s: pre(
        "_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", inside("_checkpoint_wrapped_module", s, 2), 2)
    ),
    "compiled parts": lambda s: inside("_orig_mod", s),
    "parts under DataParallel": lambda s: pre("encoder.", inside("module", s)),
    "every layer wrapped": lambda s: around_leaves("_module", s),
    "DeepSpeed": lambda s: {"module": pre("module.", s), "optimizer": None, "ds_version": "0.15", "lr_scheduler": {}},
    "Composer": lambda s: {"state": {"model": pre("model.", s), "optimizers": {"AdamW": MOMENTS}}, "rng": []},
    "nnU-Net": lambda s: {"network_weights": s, "optimizer_state": MOMENTS, "current_epoch": 3},
    "MONAI handler": lambda s: {"net": s, "opt": MOMENTS, "trainer": {"epoch": 3}},
    "MONAI bundle": lambda s: {"model": pre("network.", s)},
    "Ignite": lambda s: {"trainer": {"iteration": 3}, "net_without_ddp": s},
    "mmengine": lambda s: {"meta": {"epoch": 3}, "state_dict": pre("backbone.", s) | pre("neck.", HEAD)},
    "Hugging Face": lambda s: pre("base_model.model.vision_encoder.", s) | HEAD,
    "Transformers trainer": lambda s: pre("vision_model.timm_model.", s),
    "vision and language": lambda s: (
        pre("visual_encoder.model.encode_image.tower.", s)
        | {f"text.layers.{i}.weight": torch.ones(4, 4) for i in range(300)}
    ),
    "solo-learn": lambda s: {"state_dict": pre("backbone.", s) | pre("projector.", HEAD) | pre("classifier.", HEAD)},
    "Barlow Twins": lambda s: {"model": pre("module.backbone.", s) | pre("module.projector.", HEAD)},
    "MoCo's own key network": lambda s: {
        "state_dict": pre("module.encoder_q.", s) | {"module.queue": torch.ones(8, 8)}
    },
    "sequence with a normalisation": lambda s: {"0.mean": torch.ones(3), "0.std": torch.ones(3)} | pre("1.", s),
    "in a list": lambda s: {"epoch": 3, "models": [s]},
    "pairs of name and tensor": lambda s: {"epoch": 3, "params": list(s.items())},
    "in a tuple": lambda s: (3, {"weights": s}),
    "by part": lambda s: {
        "checkpoint": {
            part: {k.partition(".")[2]: v for k, v in s.items() if k.startswith(f"{part}.")}
            for part in dict.fromkeys(key.partition(".")[0] for key in s)
        }
    },
    "deep": lambda s: {"a": {"b": {"c": {"d": {"e": pre("f.g.h.i.", s)}}}}},
}


@pytest.mark.parametrize("trainer", ALONE)
def test_one_network(trainer, cnn, one, tmp_path):
    torch.save(ALONE[trainer](one), tmp_path / "file.ckpt")
    with torch.no_grad():
        for value in cnn.state_dict().values():
            value.zero_()
    report = load_weights(cnn, tmp_path / "file.ckpt")
    assert report.coverage == 1.0
    assert (report.which, report.others) == (None, ())
    for key, value in cnn.state_dict().items():
        assert torch.equal(value, one[key]), key


# Two networks: the trained one first, then its copy, with the names that the report has for them.
TWINS = {
    "MoCo": (
        lambda a, b: {"state_dict": pre("module.encoder_q.", a) | pre("module.encoder_k.", b)},
        "encoder_q encoder_k",
    ),
    "MoCo v3": (
        lambda a, b: {"state_dict": pre("module.momentum_encoder.", b) | pre("module.base_encoder.", a)},
        "base_encoder momentum_encoder",
    ),
    "BYOL": (
        lambda a, b: pre("target_encoder.net.", b) | pre("online_encoder.net.", a) | HEAD,
        "online_encoder target_encoder",
    ),
    "DINO": (
        lambda a, b: {"teacher": pre("backbone.", b), "student": pre("module.backbone.", a), "epoch": 3},
        "student teacher",
    ),
    "DINOv2": (
        lambda a, b: {"model": pre("student.backbone.", a) | pre("teacher.backbone.", b) | pre("student.dino.", HEAD)},
        "student teacher",
    ),
    "lightly": (
        lambda a, b: {"state_dict": pre("backbone.", a) | pre("backbone_momentum.", b)},
        "backbone backbone_momentum",
    ),
    "solo-learn": (
        lambda a, b: {"state_dict": pre("momentum_backbone.", b) | pre("backbone.", a)},
        "backbone momentum_backbone",
    ),
    "timm": (lambda a, b: {"state_dict_ema": b, "state_dict": a, "arch": "x"}, "state_dict state_dict_ema"),
    "timm, older": (lambda a, b: {"model": a, "model_ema": pre("module.", b)}, "model model_ema"),
    "mmengine": (lambda a, b: {"ema_state_dict": pre("module.", b), "state_dict": a}, "state_dict ema_state_dict"),
    "ema-pytorch": (
        lambda a, b: {"step": torch.tensor(3)} | pre("ema_model.", b) | pre("online_model.", a),
        "online_model ema_model",
    ),
    "averaged model of torch": (
        lambda a, b: {"swa_model": pre("module.", b) | {"n_averaged": torch.tensor(3)}, "model": a},
        "model swa_model",
    ),
    "Lightning, averages in a callback": (
        lambda a, b: {"callbacks": {"EMA": {"ema_weights": pre("net.", b)}}, "state_dict": pre("net.", a)},
        "state_dict EMA",
    ),
    "EMA beside the network": (lambda a, b: pre("ema.", b) | a, "plain ema"),
    "v1 of VoCo": (
        lambda a, b: {"state_dict": pre("module.student.", a) | pre("module.teacher.", b)},
        "student teacher",
    ),
    "an ensemble": (lambda a, b: {"folds": [a, b]}, "0 1"),
    "folds by number": (lambda a, b: {"folds": {1: a, 2: b}}, "1 2"),
}


@pytest.mark.parametrize("trainer", TWINS)
def test_several_networks(trainer, cnn, one, two, tmp_path):
    """The trained one is taken, it is said that there is another, and each can be had by its name."""
    make, names = TWINS[trainer]
    torch.save(make(one, two), tmp_path / "file.ckpt")
    first, second = names.split()
    for which, state in (("auto", one), (first, one), (second, two)):
        report = load_weights(cnn, tmp_path / "file.ckpt", which=which)
        assert {report.which, *report.others} == {first, second}
        assert report.which == (second if state is two else first)
        assert report.to_dict()["others"] == list(report.others)
        for key, value in cnn.state_dict().items():
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("which", "twin"),
    [
        ("ema", "timm"),
        ("ema", "timm, older"),
        ("ema", "mmengine"),
        ("ema", "ema-pytorch"),
        ("ema", "Lightning, averages in a callback"),
        ("momentum", "solo-learn"),
        ("target", "BYOL"),
        ("state_dict.module.teacher", "v1 of VoCo"),
        ("module.encoder_k", "MoCo"),
    ],
)
def test_a_word_or_a_path_names_a_network(which, twin, cnn, one, two, tmp_path):
    torch.save(TWINS[twin][0](one, two), tmp_path / "file.ckpt")
    load_weights(cnn, tmp_path / "file.ckpt", which=which)
    assert torch.equal(cnn.state_dict()["stem.0.weight"], two["stem.0.weight"])


@pytest.fixture(scope="module")
def video():
    models = pytest.importorskip("torchvision.models.video")
    torch.manual_seed(0)
    return models.r3d_18(weights=None).state_dict()


@pytest.mark.parametrize("word", ["_orig_mod", "_fsdp_wrapped_module"])
def test_files_of_other_projects_are_recognised_behind_any_wrapper(word, video, tmp_path):
    content = {"trainer": {"best": pre("lit.video_model.", inside(word, video))}}
    torch.save(content, tmp_path / "file.ckpt")
    [guess] = recognise(tmp_path / "file.ckpt")
    assert (guess.arch, guess.report.format, guess.report.coverage) == ("r3d_18", "torchvision", 1.0)
    assert guess.report.wrapper == ("trainer", "best")
    assert set(guess.report.dropped.values()) == {"classifier"}


def test_inspect_names_each_network(video, tmp_path, capsys):
    twin = {key: value + 1 if value.is_floating_point() else value for key, value in video.items()}
    torch.save({"state_dict": video, "state_dict_ema": twin}, tmp_path / "file.pth")
    assert main(["inspect", str(tmp_path / "file.pth")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "network state_dict; which= (--encoder.which) takes state_dict_ema instead" in said


def test_copies_are_no_other_network(cnn, one, tmp_path):
    torch.save({"model": one, "best": {key: value.clone() for key, value in one.items()}}, tmp_path / "file.pt")
    report = load_weights(cnn, tmp_path / "file.pt")
    assert (report.which, report.others) == (None, ())


def test_a_gap_is_not_filled_from_beside(cnn, one, tmp_path):
    """What lies beside a network has a name of the encoder's by chance, whatever its shape."""
    state = dict(one)
    norm = state.pop("stages.3.norm1.weight")
    torch.save(pre("encoder.", state) | {"stages.3.norm1.weight": norm}, tmp_path / "file.pt")
    with pytest.raises(InputError, match=r"99\.9% of the parameters(.|\n)*still wants stages\.3\.norm1\.weight"):
        load_weights(cnn, tmp_path / "file.pt")


def constant(kind, state):
    if kind == "one kernel":
        return {k: torch.zeros_like(v) if k == "stages.1.conv2.weight" else v for k, v in state.items()}
    if kind == "norms":
        return {k: torch.zeros_like(v) if v.ndim == 1 and "weight" in k else v for k, v in state.items()}
    if kind == "stem":
        return {k: torch.full_like(v, 2) if k == "stem.0.weight" else v for k, v in state.items()}
    if kind == "second half":
        keys = list(state)[len(state) // 2 :]
        return {k: torch.zeros_like(v) if k in keys else v for k, v in state.items()}
    return {k: torch.full_like(v, {"zero": 0, "one": 1}[kind]) for k, v in state.items()}


@pytest.mark.parametrize("kind", ["zero", "one", "stem", "second half", "norms"])
def test_constant_files_are_refused(kind, cnn, one, tmp_path):
    torch.save(constant(kind, one), tmp_path / "file.pt")
    said = {
        "zero": r"100% of the values in its kernels are constant, for example stem\.0\.weight is 0 everywhere",
        "one": r"stem\.0\.weight is 1 everywhere",
        "stem": r"stem\.0\.weight is 2 everywhere",
        "second half": r"9\d\.\d% of the values in its kernels are constant",
        "norms": r"most of its norms multiply by zero, for example stem\.1\.weight",
    }[kind]
    with pytest.raises(InputError, match=said):
        load_weights(cnn, tmp_path / "file.pt")


def test_the_other_network_is_named_where_the_first_is_constant(cnn, one, tmp_path):
    torch.save({"student": constant("zero", one), "teacher": one}, tmp_path / "file.pt")
    with pytest.raises(InputError, match="it also holds teacher: name one with which"):
        load_weights(cnn, tmp_path / "file.pt")
    assert load_weights(cnn, tmp_path / "file.pt", which="teacher").coverage == 1.0


def test_tensors_without_names_are_said_to_be_that(cnn, one, tmp_path):
    torch.save({"decay": 0.9, "ema": {"shadow_params": list(one.values())}}, tmp_path / "file.pt")
    with pytest.raises(
        InputError, match=r"found a list of 7\d tensors without names in shadow_params; save them with the names"
    ):
        load_weights(cnn, tmp_path / "file.pt")
    torch.save({"epoch": 3, "arch": "x"}, tmp_path / "file.pt")
    with pytest.raises(InputError, match=r"found arch \(str\), epoch \(int\)"):
        load_weights(cnn, tmp_path / "file.pt")


def test_a_copy_beside_a_network_whose_key_is_a_name_of_ours(tmp_path):
    """``net`` is the dictionary here, and what the tensors' names in a slice encoder begin with."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net, copy = (timm.create_model("test_resnet").state_dict() for _ in range(2))
    torch.save({"net": net, "ema": {"shadow": copy}}, tmp_path / "file.pt")
    report = create_encoder("slices/test_resnet", checkpoint=tmp_path / "file.pt").load_report
    assert (report.which, report.others) == ("net", ("ema",))


def test_one_kernel_of_zeros_is_a_layer_that_began_at_zero(cnn, one, tmp_path):
    torch.save(constant("one kernel", one), tmp_path / "file.pt")
    assert load_weights(cnn, tmp_path / "file.pt").coverage == 1.0


def test_inspect_says_that_a_file_is_constant(video, tmp_path, capsys):
    torch.save({key: torch.zeros_like(value) for key, value in video.items()}, tmp_path / "file.pt")
    assert main(["inspect", str(tmp_path / "file.pt")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "nearest r3d_18 (torchvision), but 100% of the values in its kernels are constant" in said


def test_shares_of_one_process_are_refused_with_what_to_do(cnn, one, tmp_path):
    flat = {f"model.{part}._flat_param": torch.ones(100) for part in ("stem", "stages.0", "stages.1")}
    torch.save(flat, tmp_path / "fsdp.pt")
    with pytest.raises(InputError, match="one process's share of a network"):
        load_weights(cnn, tmp_path / "fsdp.pt")
    torch.save({"module": {key: value.new_zeros(0) for key, value in one.items()}}, tmp_path / "zero3.pt")
    with pytest.raises(InputError, match=r"most of its tensors are empty.*ZeRO stage 3"):
        load_weights(cnn, tmp_path / "zero3.pt")
