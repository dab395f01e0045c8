"""Identity of the pictures in the folders that a method reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from harness.training_data import ENDINGS
from harness.weights import file_sha256


def content_of(*folders: str | None) -> str | None:
    """Hex sha256 over the pictures in the subfolders of each folder, by relative name; None where all are None.

    A picture's name counts too: it decides the prompt and, through its subfolder, the concept.
    """
    if all(folder is None for folder in folders):
        return None
    digest = hashlib.sha256()
    for folder in folders:
        root = None if folder is None else Path(folder).expanduser()
        files = [] if root is None else [file for file in root.glob("*/*") if file.suffix.lower() in ENDINGS]
        pictures = sorted((file.relative_to(root).as_posix(), file_sha256(file)) for file in files)
        digest.update(repr((root is None, pictures)).encode())
    return digest.hexdigest()
