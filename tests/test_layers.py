"""Imports point down the layers only, and the program differentiates nothing by itself."""

import ast
from pathlib import Path

import pytest

import llmc_jax

ROOT = next(Path(p) for p in llmc_jax.__path__ if (Path(p) / "train.py").exists())
FILES = sorted(ROOT.rglob("*.py"))

# First match wins. A module may import modules of a lower layer and of its own top folder: so
# training and data, of one layer, do not know each other.
LAYERS = [
    ("config.py", 0),
    ("interrupt.py", 0),
    ("ffi.py", 1),
    ("ops/op.py", 2),
    ("ops/", 3),
    ("models/", 4),
    ("files.py", 1),
    ("devices.py", 1),
    ("fonts.py", 1),
    ("lock.py", 1),
    ("machine.py", 1),
    ("screen.py", 1),
    ("training/", 5),
    ("data/", 5),
    ("generation/", 5),
    ("interop/", 5),
    ("program.py", 5),
    ("contestant.py", 5),
    ("compilation_cache.py", 5),
    ("trained.py", 6),
    ("bench_step.py", 6),
    ("comparison/", 7),
    ("evaluation/", 7),
    ("view/", 7),
    ("run_setup.py", 8),
    ("batches.py", 8),
    ("banner.py", 9),
    ("milestones.py", 9),
    ("", 10),  # the programs
]
# The one exception: attention of JAX's own comes with its own backward, behind jax.vjp.
EXCEPTIONS = {"ops/attention.py": {"vjp"}}
AUTODIFF = {"grad", "value_and_grad", "vjp", "jvp", "linearize", "custom_vjp", "jacrev", "jacfwd"}


def layer(path: Path) -> int:
    name = path.relative_to(ROOT).as_posix()
    return next(number for prefix, number in LAYERS if name.startswith(prefix))


def room(path: Path) -> str:
    """The file's top folder in the package; a file at the top is a room of its own."""
    return path.relative_to(ROOT).parts[0]


def names(path: Path) -> list[str]:
    """What the file imports, and what may be a module in what it imports from."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def imported(path: Path) -> set[Path]:
    """Files of the package that the file imports."""
    files = set()
    for name in names(path):
        module = ROOT.parent.joinpath(*name.split("."))
        files |= {f for f in (module.with_suffix(".py"), module / "__init__.py") if f in FILES}
    return files - {ROOT / "__init__.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    for other in imported(path):
        assert room(other) == room(path) or layer(other) < layer(path), f"{path} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_autodiff_in_the_program(path):
    tree = ast.parse(path.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not used & AUTODIFF - EXCEPTIONS.get(path.relative_to(ROOT).as_posix(), set())


def test_config_does_without_jax():
    """config.py stays free of JAX, so that flags and errors need no backend."""
    assert not {"jax", "jaxlib"} & {name.split(".")[0] for name in names(ROOT / "config.py")}
