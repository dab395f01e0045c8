"""Imports go down only, nothing here can run code that came with a data file, and no method asks for a model's family.

    run -> experiments -> {fia, baselines, eval, tinyworld} -> harness

The rules are read off the syntax trees of every module, so a forbidden import counts wherever it stands: at the
top of a file, inside a function, or as the name given to `importlib.import_module`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A room may import itself and rooms on lower floors; rooms on one floor are strangers to each other.
FLOORS = {"harness": 0, "fia": 1, "baselines": 1, "eval": 1, "tinyworld": 1, "experiments": 2, "run": 3}

PICKLE_READERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_FLAGS = {("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False)}


# What SDXL has and SD has not. Methods see one interface; families differ inside `harness.model` only.
FAMILY = re.compile(r"(^|_)xl(_|$)|sdxl|stable_?diffusion|pooled|text_embeds|time_ids|added_cond|_encoder_2", re.I)
# A folder that somebody else made may hold this part.
PARTS_OF_FILES = {("baselines.checkpoint", "text_encoder_2")}


def first_party_files() -> list[Path]:
    """Every Python file of the rooms, plus run.py."""
    files = [path for room in FLOORS for path in sorted((ROOT / room).rglob("*.py"))]
    return files + [path for path in [ROOT / "run.py"] if path.exists()]


def module_name(path: Path) -> str:
    """Dotted name of a file below the root, e.g. `harness.model`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yields (line, absolute dotted name) of every import in `tree`, whose module lies in `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}" if base else alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def wrong_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of `module` that go up or sideways, as `line N: a -> b`."""
    room = module.split(".")[0]
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for line, name in imported(ast.parse(source), package):
        target = name.split(".")[0]
        if target in FLOORS and target != room and FLOORS[target] >= FLOORS[room]:
            found.append(f"line {line}: {module} -> {name}")
        elif target == "tests":
            found.append(f"line {line}: {module} -> {name} (tests are imported by nobody)")
    return found


def unsafe_loads(source: str) -> list[str]:
    """Places that may unpickle, or run code that a downloaded folder brings along, as `line N: what`."""
    found = []
    tree = ast.parse(source)
    for line, name in imported(tree, ""):
        if name.split(".")[0] in PICKLE_READERS:
            found.append(f"line {line}: import of {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        flags = {(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
        if called == "torch.load" and ("weights_only", True) not in flags:
            found.append(f"line {node.lineno}: torch.load without weights_only")
        if called in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "pd.read_pickle"}:
            found.append(f"line {node.lineno}: {called}")
        found += [f"line {node.lineno}: {name}={value}" for name, value in sorted(flags & UNSAFE_FLAGS)]
    return found


def family_names(source: str, module: str = "") -> list[str]:
    """Names and texts, apart from docstrings, by which `module` might tell SD from SDXL, as `line N: what`."""
    found = []
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            words = [node.value] if isinstance(node.value, str) and id(node) not in prose else []
        else:
            words = [getattr(node, name, None) for name in ("id", "attr", "arg", "name")]
        for word in words:
            if isinstance(word, str) and FAMILY.search(word) and (module, word) not in PARTS_OF_FILES:
                found.append(f"line {node.lineno}: {word}")
    return found


def test_every_room_has_a_floor():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert rooms <= set(FLOORS), f"give {sorted(rooms - set(FLOORS))} a floor in tests/test_imports.py"
    assert {"harness", "fia", "tinyworld", "eval", "experiments"} <= rooms
    assert len(first_party_files()) > 20, "the rooms look empty: is ROOT right?"


@pytest.mark.parametrize("path", first_party_files(), ids=module_name)
def test_imports_go_down_only(path: Path):
    assert wrong_arrows(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py") == []


@pytest.mark.parametrize("path", first_party_files(), ids=module_name)
def test_nothing_unpickles(path: Path):
    assert unsafe_loads(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", ["fia", "baselines"])
def test_no_method_asks_for_the_family_of_a_model(room: str):
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 4
    found = {module_name(path): family_names(path.read_text(encoding="utf-8"), module_name(path)) for path in files}
    assert {module: lines for module, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "module", "wrong"),
    [
        ("from eval import clip", "fia.fia", True),
        ("import fia.masks", "baselines.uce", True),
        ("def f():\n    from tinyworld.scene import draw", "harness.model", True),
        ("from experiments.run import benchmark", "eval.clip", True),
        ("import importlib\nimportlib.import_module('fia')", "harness.task", True),
        ("from .. import eval", "tinyworld.train.loop", False),  # tinyworld's own name, not the room
        ("from ..scene import draw", "tinyworld.train.data", False),
        ("from . import masks", "fia.fia", False),
        ("from harness.model import DiffusionModel", "fia.fia", False),
        ("import fia, eval, harness.store", "experiments.run", False),
        ("import run", "experiments.run", True),
        ("import evaluate, finance", "harness.model", False),
    ],
)
def test_the_arrow_check_sees(source: str, module: str, wrong: bool):
    assert bool(wrong_arrows(source, module)) is wrong


@pytest.mark.parametrize(
    ("source", "unsafe"),
    [
        ("torch.load (path)", True),
        ("torch.load (path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("import pickle", True),
        ("from joblib import load", True),
        ("yaml.load (text, Loader=yaml.SafeLoader)", True),
        ("yaml.safe_load(text)", False),
        ("AutoModel.from_pretrained(x, trust_remote_code = True)", True),
        ("np.load(x, allow_pickle = True)", True),
        ("np.load(x, allow_pickle=False)", False),
    ],
)
def test_the_loading_check_sees(source: str, unsafe: bool):
    assert bool(unsafe_loads(source)) is unsafe


@pytest.mark.parametrize(
    ("source", "asks"),
    [
        ("if model.is_xl: pass", True),
        ("hasattr(pipe, 'text_encoder_2')", True),
        ("if 'xl' in model.name.lower(): pass", True),
        ("def sdxl_rows(): pass", True),
        ("text.pooled", True),
        ("f(added_cond_kwargs={})", True),
        ("from diffusers import StableDiffusionXLPipeline", True),
        ("def f():\n    'SDXL: the pooled feature is not edited.'\n    # sdxl\n    return hidden", False),
        ("pool = xlim", False),
    ],
)
def test_the_family_check_sees(source: str, asks: bool):
    assert bool(family_names(source)) is asks


def test_the_command_line_starts_light():
    """`run.py --help` must not wait for torch: heavy imports belong inside what needs them."""
    code = "import run, sys; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"importing run.py also imports {done.stdout.strip()}"
