"""Pictures as PNG files that carry their key and one sha256 over key, notes and pixels, so that damage is seen."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from .files import StoreError

# Names of text chunks.
_KEY, _SHA256 = "key", "sha256"
# The last chunk of every PNG file; Pillow also reads files that lack it.
_END = b"IEND\xaeB`\x82"


def png(array: np.ndarray, key: str, text: Mapping[str, str]) -> bytes:
    """The file's bytes.

    Args:
        array: uint8 [height, width, 3].
        key: hex sha256 of everything that decides the pixels; the stem of the file's name.
        text: notes kept in the file's text chunks, such as the prompt.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"a picture is uint8 [height, width, 3], not {array.dtype} {list(array.shape)}")
    notes = {**text, _KEY: key}
    chunks = PngImagePlugin.PngInfo()
    for name, note in (notes | {_SHA256: _digest(array, notes)}).items():
        chunks.add_text(name, note)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_picture(path: Path) -> np.ndarray:
    """The checked pixels of a stored picture, uint8 [height, width, 3].

    Args:
        path: its stem is the picture's key.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged (cut off, changed, another picture's, not ours).
        StoreError: it may not be read.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
            notes = dict(image.text) if isinstance(image, PngImagePlugin.PngImageFile) else {}
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    # Everything Pillow's PNG reader raises for bytes that are not a whole PNG file.
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if not data.endswith(_END):
        raise ValueError("it is cut off")
    if _KEY not in notes:
        raise ValueError("it does not say which picture it is")
    if notes.pop(_SHA256, None) != _digest(pixels, notes):
        raise ValueError("it does not match its sha256")
    if notes[_KEY] != path.stem:
        raise ValueError(f"it is the picture {notes[_KEY][:12]}")
    return pixels


def _digest(array: np.ndarray, notes: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([array.shape, notes], sort_keys=True).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
