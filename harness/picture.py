"""Pictures as PNG files that carry the sha256 of their pixels, so that damage is seen."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from .files import StoreError

_PIXELS = "pixels-sha256"
# The last chunk of every PNG file; Pillow also reads files that lack it.
_END = b"IEND\xaeB`\x82"


def png(array: np.ndarray, text: Mapping[str, str]) -> bytes:
    """The file's bytes.

    Args:
        array: uint8 [height, width, 3].
        text: notes kept in the file's text chunks, such as the prompt.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"a picture is uint8 [height, width, 3], not {array.dtype} {list(array.shape)}")
    notes = PngImagePlugin.PngInfo()
    notes.add_text(_PIXELS, _pixel_hash(array))
    for name, note in text.items():
        notes.add_text(name, note)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", pnginfo=notes)
    return buffer.getvalue()


def read_picture(path: Path) -> np.ndarray:
    """The checked pixels of a stored picture, uint8 [height, width, 3].

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged (cut off, changed, not ours).
        StoreError: it may not be read.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
            expected = image.text.get(_PIXELS) if isinstance(image, PngImagePlugin.PngImageFile) else None
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    # Everything Pillow's PNG reader raises for bytes that are not a whole PNG file.
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if not data.endswith(_END):
        raise ValueError("it is cut off")
    if expected != _pixel_hash(pixels):
        raise ValueError("its pixels do not match their sha256")
    return pixels


def _pixel_hash(array: np.ndarray) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
