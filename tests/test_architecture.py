"""Who may import whom, read from the source. Imports inside functions count too, unless a rule says otherwise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for top in ("voco", "pretrain", "finetune", "benchmarks") for p in (ROOT / top).rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, late: bool = True) -> set[str]:
    """Modules that a file imports; with ``late=False`` only those imported when the file is."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if late else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def defined(tree: ast.Module) -> set[str]:
    """Names that a module has once it is imported."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return found


def test_what_is_imported_inside_functions_is_there():
    """Such an import fails only when the function runs."""
    trees = {module(path): ast.parse(path.read_text()) for path in SOURCES}
    names = {name: defined(tree) for name, tree in trees.items()}
    wrong = [
        f"{user}: {node.module}.{alias.name}"
        for user, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in names
        for alias in node.names
        if not {alias.name, "__getattr__"} & names[node.module] and f"{node.module}.{alias.name}" not in names
    ]
    assert not wrong


def under(names: set[str], *packages: str) -> set[str]:
    return {n for n in names for p in packages if n == p or n.startswith(p + ".")}


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_stages_stay_apart(path):
    own = module(path).split(".")[0]
    forbidden = {
        "voco": ("pretrain", "finetune", "benchmarks"),
        "pretrain": ("finetune", "benchmarks"),
        "finetune": ("pretrain", "benchmarks"),
        "benchmarks": (),
    }[own]
    assert not under(imports(path), *forbidden)


RULES = {
    "voco/engine": ("voco.methods", "voco.encoders", "voco.data", "voco.health", "voco.losses", "voco.crops"),
    "voco/data": ("voco.methods", "voco.encoders", "voco.engine", "voco.health", "voco.weights", "voco.tasks"),
    "voco/methods": ("voco.engine", "voco.weights", "voco.tasks", "voco.transfer"),
    "voco/encoders": ("voco.engine", "voco.health", "voco.data", "voco.methods"),
    "voco/weights": ("voco.engine", "voco.health", "voco.data", "voco.methods"),
    "voco/stats": ("voco.tasks", "voco.transfer", "voco.engine", "voco.data", "voco.encoders", "torch"),
    "voco/tasks": ("voco.transfer", "voco.engine", "voco.encoders", "voco.weights", "voco.methods", "voco.health"),
    "voco/health": ("voco.engine", "voco.weights"),
    "voco/phantom": ("voco.engine", "voco.health", "voco.methods", "voco.encoders", "voco.weights"),
}


@pytest.mark.parametrize("folder", RULES)
def test_parts_know_only_what_they_stand_on(folder):
    wrong = {module(p): under(imports(p), *RULES[folder]) for p in (ROOT / folder).rglob("*.py")}
    assert not {k: v for k, v in wrong.items() if v}


def test_nothing_asks_a_task_or_a_metric_whether_it_has_something():
    """What stages ask of them is declared on ``Task`` and ``Metric``, with a default."""
    asked = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                subject = ast.unparse(node.args[0]).split(".")[-1]
                if subject in ("task", "metric", "main"):
                    asked.append(f"{module(path)}: {ast.unparse(node)}")
    assert not asked


def test_methods_know_of_data_and_health_only_what_their_contract_names():
    """A method names the settings of its clips and the report it is judged by, when it is asked for one; what it needs
    of scans and clips it asks of the source that it is handed. Health knows no method."""
    for path in (ROOT / "voco" / "methods").rglob("*.py"):
        named = under(imports(path), "voco.data")
        assert all(name.startswith("voco.data.clip_frames") for name in named), module(path)
        assert not under(imports(path, late=False), "voco.health"), module(path)
    assert not [module(p) for p in (ROOT / "voco" / "health").rglob("*.py") if under(imports(p), "voco.methods")]


def test_the_stage_names_no_method():
    """What a method is decides nothing by its name: the registry is the dispatch, in every stage."""
    from voco.methods import METHODS

    places = [p for p in SOURCES if module(p).split(".")[0] in ("pretrain", "finetune", "benchmarks")]
    places += sorted((ROOT / "voco" / "transfer").rglob("*.py")) + sorted((ROOT / "voco" / "health").rglob("*.py"))
    for path in places:
        compared = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Compare, ast.Dict))]
        words = {item.value for node in compared for item in ast.walk(node) if isinstance(item, ast.Constant)}
        assert not words & (set(METHODS) - {"video"}), module(path)
        named = [n for n in under(imports(path), "voco.methods") if not n.startswith("voco.methods.base")]
        assert set(named) <= {
            "voco.methods",
            "voco.methods.METHODS",
            "voco.methods.method_class",
            "voco.methods.method_options",
        }, module(path)


@pytest.mark.parametrize("name", ["crops", "losses", "heads", "distributed", "geometry"])
def test_tensor_code_needs_torch_only(name):
    third_party = {n.split(".")[0] for n in imports(ROOT / "voco" / f"{name}.py")} - set(sys.stdlib_module_names)
    assert third_party <= {"torch", "voco"}


def test_the_settings_parser_is_used_in_one_file():
    assert [module(p) for p in SOURCES if under(imports(p), "jsonargparse")] == ["voco.config"]


def test_only_run_and_config_of_a_stage_know_its_settings():
    users = [module(p) for p in SOURCES if under(imports(p), "pretrain.config")]
    assert users == ["pretrain.run"]


def test_training_code_loads_without_readers():
    """Training must run where SimpleITK, pydicom, nibabel and av are missing, on volumes that are already prepared."""
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"SimpleITK", "pydicom", "nibabel", "av", "matplotlib", "sklearn", "monai", "timm"}:
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
import torch
import voco, voco.data.dataset, voco.data.windows, voco.data.cache, voco.engine.loop, voco.engine.checkpoint
import voco.engine.launch, voco.engine.plan, voco.health, voco.methods.voco3d, voco.weights.export, pretrain.run
method = voco.methods.voco3d.VoCo3D(voco.create_encoder("cnn3d_s"))
print(sum(p.numel() for p in method.parameters()) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, voco; print(sorted({'torch', 'numpy', 'SimpleITK', 'monai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_of_a_stage_hides_a_module():
    """``accelerate launch pretrain/run.py`` puts the stage's folder on the path: no file there may shadow a library."""
    for path in SOURCES:
        if path.parent.name in ("pretrain", "finetune", "benchmarks") and path.stem != "__init__":
            assert path.stem not in sys.stdlib_module_names
            assert path.stem not in {"torch", "monai", "timm", "accelerate", "yaml", "numpy", "voco"}


def test_objects_with_arrays_print_shapes():
    """A generated repr would print every voxel: public dataclasses with arrays are ``short_repr`` or have one."""
    wrong = []
    for path in SOURCES:
        if module(path).startswith("benchmarks"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            decorators = [ast.unparse(item).partition("(")[0] for item in node.decorator_list]
            kinds = [ast.unparse(item.annotation) for item in node.body if isinstance(item, ast.AnnAssign)]
            holds = any(("ndarray" in kind or "Tensor" in kind) and "Callable" not in kind for kind in kinds)
            own = "short_repr" in decorators or any(getattr(item, "name", "") == "__repr__" for item in node.body)
            if "dataclass" in decorators and holds and not own:
                wrong.append(f"{module(path)}.{node.name}")
    assert not wrong


def test_colours_of_pictures_stand_in_one_file():
    """A colour that is none of ``voco.figures.style`` would not follow dark mode and print."""
    drawn = [*(ROOT / "voco" / "figures").glob("*.py"), *(ROOT / "benchmarks" / "pages" / "charts").glob("*.py")]
    found = {module(p): re.findall(r"\"#[0-9a-fA-F]{6}\"", p.read_text()) for p in drawn if p.stem != "style"}
    assert {name: colors for name, colors in found.items() if colors} == {"voco.figures.export": ['"#000000"']}
