"""Who may import whom, read from the source. Imports inside functions count too, unless a rule says otherwise."""

from __future__ import annotations

import ast
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
    "voco/methods": ("voco.engine", "voco.health", "voco.data"),
    "voco/encoders": ("voco.engine", "voco.health", "voco.data", "voco.methods"),
    "voco/weights": ("voco.engine", "voco.health", "voco.data", "voco.methods"),
    "voco/health": ("voco.engine", "voco.weights"),
    "voco/phantom": ("voco.engine", "voco.health", "voco.methods", "voco.encoders", "voco.weights"),
}


@pytest.mark.parametrize("folder", RULES)
def test_parts_know_only_what_they_stand_on(folder):
    wrong = {module(p): under(imports(p), *RULES[folder]) for p in (ROOT / folder).rglob("*.py")}
    assert not {k: v for k, v in wrong.items() if v}


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
