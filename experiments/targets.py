"""The code that a configuration may name: every `_target_` is called with the settings beside it.

It is what a file of conf/ names, a class or function of fia, baselines or eval, or one of a module of the user's own: a
module that Python finds neither in its library nor among installed packages, such as in a folder of PYTHONPATH
(docs/add-a-method.md). A record comes from others; of it, `require_known` runs only what a configuration names too.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from .cli import CONF, ROOMS

# Of the other rooms, which write files too, only what conf/ names.
OPEN_ROOMS = {"baselines", "eval", "fia"}
PACKAGES = {"site-packages", "dist-packages"}
_TARGET = re.compile(r"""_target_:\s*["']?([\w.]+)""")


def targets(config: Any) -> Iterator[str]:
    """Every `_target_` in a configuration: the code that it names."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from [str(value)] if name == "_target_" else targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets(value)


def known_targets(folders: Sequence[str] = ()) -> set[str]:
    """Every `_target_` of the files of conf/ and of the folders."""
    files = [path for folder in (CONF, *folders) for path in Path(folder).expanduser().rglob("*.yaml")]
    return {target for path in files for target in _TARGET.findall(path.read_text(encoding="utf-8"))}


def require_known(config: Mapping[str, Any], folders: Sequence[str], path: Path) -> None:
    """Raise ValueError where a record's configuration names code that neither conf/ nor the user's folders name."""
    known = known_targets(folders)
    for target in targets(config):
        if target not in known:
            raise ValueError(
                f"{path}: its configuration names the code {target}, which neither conf/ nor a configuration folder of "
                "yours names; give the folder that does as --config-dir DIR"
            )


def require_own(config: Mapping[str, Any]) -> None:
    """Raise ValueError where a configuration names code that is neither this project's nor the user's own."""
    named = set(targets(config))
    for target in sorted(named - known_targets() if named else ()):
        if not is_own(target):
            raise ValueError(
                f"the configuration names the code {target}; what it may name is in conf/, in fia, baselines or eval, "
                "or in a module of your own (PYTHONPATH=FOLDER, docs/add-a-method.md)"
            )


def is_own(target: str) -> bool:
    """Whether a dotted name is that of a class or function, or of a class's method, in an open room or the user's code.

    It has to be written down in the module itself: a module reaches all that it imports, `harness.store.os.system` too.
    """
    names = target.split(".")
    if names[0] in ROOMS - OPEN_ROOMS or any(not name.isidentifier() or name.startswith("_") for name in names):
        return False
    spec = _found(names[0])
    if spec is None or _is_installed(spec):
        return False
    for count in range(2, len(names)):
        deeper = _found(".".join(names[:count]))
        if deeper is None:
            break
        spec = deeper
    rest = names[spec.name.count(".") + 1 :]
    return 1 <= len(rest) <= 2 and spec.origin is not None and _defines(Path(spec.origin), rest[0])


def _found(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):  # its parent is no package; `__main__` has no spec
        return None


def _is_installed(spec: ModuleSpec) -> bool:
    """Whether a module is of Python's library or of an installed package."""
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else [])]
    library = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    paths = [Path(place).resolve() for place in places]
    return not paths or any(PACKAGES & set(path.parts) or any(map(path.is_relative_to, library)) for path in paths)


def _defines(file: Path, name: str) -> bool:
    """Whether a module's own text binds `name`, or takes it from its own package."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
        if isinstance(node, ast.ImportFrom) and node.level and name in {a.asname or a.name for a in node.names}:
            return True
    return False
