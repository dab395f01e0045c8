"""The same prompts and noise by several methods: `python -m experiments.side_by_side A.json B.json ... --out F.png`.

Columns are the unedited model and the records' edits, rows the classes, forgotten ones first. Pictures come from the
store by the keys that follow from the records, as `experiments.compare` finds rows; none is made. Pictures of explicit
tasks are not shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from harness.generate import image_parts

from .cli import exit_code, one_line
from .compare import Side
from .grid import method_grid, save_png

# Sets of a task whose pictures may be shown.
SHOWN = ("classes", "artists")


def sheet(paths: Sequence[Path], number: int, store: str | None = None, folders: Sequence[str] = ()) -> Image.Image:
    """The picture of these records.

    Args:
        number: which picture of every class, from 0 on.
        store: where the pictures are, if not where the records say.
        folders: the user's own configuration folders.

    Raises:
        ValueError: a record asks for other pictures than the first, has none that may be shown, or they are not stored.
    """
    sides = [Side.of(path, store, list(folders)) for path in paths]
    first = sides[0]
    rows = _rows(first, number)
    columns = {"unedited": _pictures(first, rows, None)}
    for side in sides:
        record = side.record
        if _rows(side, number) != rows or record.fingerprints["base"] != first.record.fingerprints["base"]:
            raise ValueError(f"{side.path} and {first.path} are of other prompts, noise or models")
        if record.edit["kind"] != "none":
            edit = SimpleNamespace(kind=record.edit["kind"], fingerprint=record.fingerprints["edit"])
            columns[_free(record.method, columns)] = _pictures(side, rows, edit)
    return method_grid(columns, first.runs[0].task.forget, caption=f"{first.record.task}: {first.record.note}")


def _rows(side: Side, number: int) -> dict[str, Any]:
    """One row of every class, in the first of the repeats."""
    sets = side.runs[0].task.sets
    name = next((name for name in SHOWN if name in sets), None)
    if name is None:
        raise ValueError(f"{side.path}: {side.record.task} has no pictures of classes or artists to show")
    rows: dict[str, list[Any]] = {}
    for row in sets[name]:
        rows.setdefault(row.label or name, []).append(row)
    for label, own in rows.items():
        if not 0 <= number < len(own):
            raise ValueError(f"--number {number}: {label} has {len(own)} pictures, from 0 to {len(own) - 1}")
    return {label: own[number] for label, own in rows.items()}


def _pictures(side: Side, rows: Mapping[str, Any], edit: Any) -> dict[str, np.ndarray]:
    parts = side.runs[0]
    found = {}
    for label, row in rows.items():
        picture = parts.store.read_image(image_parts(parts.model, edit, row, parts.sampler))
        if picture is None:
            raise ValueError(
                f"{side.path}: its pictures are not in the store {parts.store.root}; name it with --store DIR, "
                "or run the record's configuration again"
            )
        found[label] = picture
    return found


def _free(name: str, taken: dict[str, Any]) -> str:
    """The name, with a number where another column has it."""
    names = [name, *(f"{name} {i}" for i in range(2, len(taken) + 2))]
    return next(one for one in names if one not in taken)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture; exit codes as in `cli`."""
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.side_by_side", description=description)
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD.json")
    parser.add_argument("--out", type=Path, required=True, metavar="F.png")
    parser.add_argument("--number", type=int, default=0, metavar="N", help="which picture of every class (default: 0)")
    parser.add_argument("--store", metavar="DIR", help="where the pictures are, if not where the records say")
    parser.add_argument("--config-dir", nargs="*", default=[], metavar="DIR", help="your own configuration folders")
    options = parser.parse_args(argv)
    try:
        save_png(sheet(options.records, options.number, options.store, options.config_dir), options.out)
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        return exit_code(error)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
