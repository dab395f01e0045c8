"""Pictures of a prompt set, from a model with or without an edit: batched, stored one by one, resumable.

Every picture has its own seed and is stored under everything that decides it (model, edit, sampler, prompt, seed,
guidance, size), so a run that was stopped goes on where it stopped and all methods share the unedited pictures.
Batches have one shape, a row has one place in them whichever others are missing, and empty places are padded: a run
that goes on makes the same bits as an unbroken one. Jobs that want the same unedited pictures at the same time share
the work, chunk by chunk, by the store's locks. A picture at batch size 1 and at 16 differs by the kernels' last
bits only (tests/test_generate.py holds the tolerance).

`passing` is for pictures that nobody should keep: chunks of a prompt set, made in memory when something looks at them
and let go afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from filelock import Timeout
from torch import Tensor
from tqdm import tqdm

from .edit import Edit
from .files import storage
from .model import DiffusionModel, LazyModel
from .processes import ALONE, Team
from .sampler import Sampler
from .store import Store, artefact_lock, content_key
from .task import PromptSet, Row
from .text import TensorStore, TextFeatures

log = logging.getLogger(__name__)

# Raised by hand when the same parts would give other pixels, beyond the rounding of another library or processor.
VERSION = 1
KEPT_BYTES = 2**30
# Rows of a set whose pictures are not stored that are made, scored and let go together: 50 MB at 512 pixels. It decides
# under which keys their scores are stored, so no setting changes it.
CHUNK = 64
# Pictures whose scores are stored together, and dealt out to the processes of a run: a multiple of every judge's batch,
# so that a judge sees the same batches as over the whole set.
SCORED = 256
# Unedited pictures, whole batches of them, that one of several jobs makes while the others make the next ones.
CLAIMED = 64


class BlackImageError(RuntimeError):
    """The unedited model gave a picture of one single colour, or NaN: the model or its dtype is broken."""


class ImageStore(TensorStore, Protocol):
    """The part of `harness.store.Store` that is used here; `parts` is a JSON-able dict that names one picture."""

    def has_image(self, parts: dict[str, Any]) -> bool: ...
    def read_image(self, parts: dict[str, Any]) -> np.ndarray | None: ...
    def write_image(self, parts: dict[str, Any], array: np.ndarray, text: dict[str, str] | None = None) -> Any: ...


class StoredImages(Sequence[np.ndarray]):
    """Pictures uint8 [height, width, 3] in row order; what exceeds KEPT_BYTES is read from the store when asked for."""

    def __init__(self, store: ImageStore, parts: Sequence[dict[str, Any]]) -> None:
        self._store, self._parts = store, list(parts)
        self._kept: dict[int, np.ndarray] = {}
        self._room = KEPT_BYTES
        self._done: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index in self._kept:
            return self._kept[index]
        picture = self._store.read_image(self._parts[index])
        if picture is None:
            raise RuntimeError(
                f"the stored picture of seed {self._parts[index]['seed']} was removed or damaged meanwhile"
            )
        return picture

    def keep(self, index: int, picture: np.ndarray) -> None:
        """Keep a picture in memory while there is room."""
        if index in self._kept:
            return
        while picture.nbytes > self._room and self._done:
            freed = self._kept.pop(self._done.popleft(), None)
            self._room += 0 if freed is None else freed.nbytes
        if picture.nbytes <= self._room:
            self._kept[index] = picture
            self._room -= picture.nbytes

    def done_with(self, span: range) -> None:
        """These give way to others that want their room, and are then read from the store."""
        self._done.extend(span)


@dataclass
class ImageSet:
    """Pictures of a prompt set.

    Attributes:
        prompts: the rows.
        images: uint8 [height, width, 3], one a row, in row order.
        key: hex sha256 over everything that decides the pictures, and their order.
        made: pictures computed by this call; `reused` were stored, or repeat another row.
        black: pictures of one single colour, which an edit can cause; pictures with NaN are stored black.
    """

    prompts: PromptSet
    images: Sequence[np.ndarray]
    key: str
    made: int = 0
    reused: int = 0
    black: int = 0

    def scored(self) -> list[ImageSet]:
        """The set in parts of at most SCORED rows, in order, without counts; a smaller set is its own only part."""
        if len(self.prompts) <= SCORED:
            return [self]
        spans = [range(len(self.prompts))[start : start + SCORED] for start in range(0, len(self.prompts), SCORED)]
        return [
            ImageSet(
                dataclasses.replace(self.prompts, rows=self.prompts.rows[span.start : span.stop], screened=0),
                _Span(self.images, span),
                content_key([self.key, span.start, span.stop]),
            )
            for span in spans
        ]


@dataclass(frozen=True)
class _Span(Sequence[np.ndarray]):
    """Some of the pictures, which are read when they are looked at."""

    images: Sequence[np.ndarray]
    span: range

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, index: int | slice) -> Any:
        found = self.span[index]
        return [self.images[i] for i in found] if isinstance(found, range) else self.images[found]


def generate(
    model: DiffusionModel | LazyModel,
    edit: Edit | None,
    prompts: PromptSet,
    sampler: Sampler,
    store: ImageStore,
    *,
    batch_size: int,
    progress: bool = True,
    team: Team = ALONE,
    ready: Callable[[int, ImageSet], None] | None = None,
) -> ImageSet:
    """Make the pictures that are not stored yet, and return all of them.

    Args:
        model: a loaded model, or anything callable without arguments that returns one and has its `fingerprint` and
            `size` (a LazyModel): it is called only when a picture is missing.
        edit: applied around the generation only; None and kind "none" mean the unedited model.
        prompts: rows without guidance take the sampler's, rows without width or height the model's.
        batch_size: pictures a UNet batch; guided sampling runs twice as many samples.
        progress: show a progress bar.
        team: processes that share the store and the work, batch by batch; all of them have to make this call, and none
            returns before all pictures are stored.
        ready: called with the number of a part of `ImageSet.scored` and the part, as soon as its pictures are there: in
            memory, as far as there is room, for which earlier parts give way. What it raises ends the call. On several
            processes it is not called: none of them has whole parts.

    Raises:
        PeerLost: another process ended before its pictures were made.
        BlackImageError: the unedited model gave a flat or NaN picture; of an edited one they are counted.
        WrongBaseError: the edit was made for another model.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    edited = edit is not None and edit.kind != "none"
    parts = [image_parts(model, edit, row, sampler) for row in prompts.rows]
    keys = [content_key(part) for part in parts]
    images = StoredImages(store, parts)
    whole = ImageSet(prompts, images, content_key(keys))
    finished = _Parts(whole, images, ready if team.count == 1 else None)
    # Of rows with the same picture the first one is made.
    firsts = sorted({key: i for i, key in reversed(list(enumerate(keys)))}.values())
    items = _share([(i, prompts.rows[i], parts[i]) for i in firsts], batch_size, team)
    own = {keys[i] for i, *_ in items}
    missing: dict[str, int] = {}
    blacks: dict[int, bool] = {}
    made = 0

    def is_stored(i: int) -> bool:
        """Reading is the check: a damaged file counts as missing."""
        picture = store.read_image(parts[i]) if store.has_image(parts[i]) else None
        if picture is not None:
            blacks[i] = is_black(picture)
            images.keep(i, picture)
        return picture is not None

    rows_of: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        rows_of.setdefault(key, []).append(i)
        if key in own:
            if not is_stored(i):
                missing.setdefault(key, i)
            elif blacks[i] and not edited:
                raise _black(model, prompts.rows[i])
            else:
                finished.add([i])
    if missing:
        loaded = model if isinstance(model, DiffusionModel) else model()
        if loaded.edit is not None:
            raise RuntimeError("an edit is applied to the model; generate applies it itself")
        items = [(missing.get(keys[i], i), row, part) for i, row, part in items]
        texts = TextFeatures(loaded, [row.prompt for row in prompts], store)
        with (
            edit.applied(loaded) if edit is not None and edited else contextlib.nullcontext(),
            tqdm(
                total=len(missing), desc=f"{prompts.name} pictures", unit="img", disable=not (progress and team.main)
            ) as bar,
            # PNG files are packed and written beside the next batch; leaving the block waits for the last of them.
            ThreadPoolExecutor(1) as writer,
            contextlib.closing(_claimed(items, batch_size, None if edited else store, writer)) as claimed,
        ):
            written: list[Future] = []
            for chunk in claimed:
                wanted = [i for i, *_ in chunk if keys[i] in missing]
                todo = {i for i in wanted if not is_stored(i)}  # another job may have made some meanwhile
                bar.update(len(wanted) - len(todo))
                finished.add(row for i in wanted if i not in todo for row in rows_of[keys[i]])
                batches = list(_batches(chunk, todo, batch_size))
                for batch, pictures in _make(loaded, texts, batches, sampler, batch_size, edited, bar):
                    _finish(written)
                    for (i, row, part), picture in zip(batch.values(), pictures, strict=True):
                        if is_black(picture) and not edited:
                            raise _black(loaded, row)
                        written.append(writer.submit(store.write_image, part, picture, _notes(part)))
                        blacks[i] = is_black(picture)
                        images.keep(i, picture)
                    bar.update(len(batch))
                    made_rows = [row for i, *_ in batch.values() for row in rows_of[keys[i]]]
                    finished.add(made_rows, after=partial(_finish, written))
                made += len(todo)
            _finish(written)
    for i, key in enumerate(keys):
        if key in own and i not in blacks:  # the same picture as an earlier row's
            blacks[i] = blacks[missing[key]]
        if blacks.get(i) and not edited:
            raise _black(model, prompts.rows[i])
    made, black = (sum(counts) for counts in zip(*team.gather((made, sum(blacks.values())))))
    if black and team.main:
        log.warning("%d of %d pictures of the edited model are of one single colour", black, len(parts))
    return dataclasses.replace(whole, made=made, reused=len(parts) - made, black=black)


class _Parts:
    """Hands the parts of a set on, each when the last of its pictures is there."""

    def __init__(
        self, whole: ImageSet, images: StoredImages, ready: Callable[[int, ImageSet], None] | None
    ) -> None:  # fmt: skip
        """Without `ready` nothing happens."""
        self._images, self._ready, self._parts = images, ready, whole.scored()
        rows = range(len(whole.prompts))
        self._spans = [rows[start : start + SCORED] for start in range(0, len(rows), SCORED)]
        self._lacking = [set(span) for span in self._spans]

    def add(self, rows: Iterable[int], after: Callable[[], None] = lambda: None) -> None:
        """The pictures of these rows are there; `after` is called before a part is handed on."""
        if self._ready is None:
            return
        for row in rows:
            number = row // SCORED
            if row not in self._lacking[number]:  # such as a repeated picture that another job made meanwhile
                continue
            self._lacking[number].remove(row)
            if not self._lacking[number]:
                after()
                self._ready(number, self._parts[number])
                self._images.done_with(self._spans[number])


class Passing(Sequence[np.ndarray]):
    """`count` pictures that `make` gives when one is first looked at; `let_go` forgets them until the next look."""

    def __init__(self, count: int, make: Callable[[], Sequence[np.ndarray]]) -> None:
        self._count, self._make = count, make
        self._pictures: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | slice) -> Any:
        return self.load()[index]

    def load(self) -> Sequence[np.ndarray]:
        """The pictures, made now if they are not there."""
        if self._pictures is None:
            self._pictures = self._make()
        return self._pictures

    def let_go(self) -> None:
        """Free the memory."""
        self._pictures = None


@dataclass
class Chunks:
    """A prompt set whose pictures pass by: image sets of at most CHUNK rows each, in row order.

    Their `images` are `Passing`; `made`, `reused` and `black` grow as pictures are made.
    """

    prompts: PromptSet
    parts: tuple[ImageSet, ...]

    @property
    def made(self) -> int:
        return sum(part.made for part in self.parts)

    @property
    def reused(self) -> int:
        return sum(part.reused for part in self.parts)

    @property
    def black(self) -> int:
        return sum(part.black for part in self.parts)


def passing(
    model: DiffusionModel | LazyModel,
    edit: Edit | None,
    prompts: PromptSet,
    sampler: Sampler,
    store: ImageStore,
    *,
    batch_size: int,
) -> Chunks:
    """The pictures that `generate` would make, to be looked at once and never stored.

    Nothing is made by this call. Arguments as in `generate`; pictures that `store` has are read from there.
    """
    starts = range(0, len(prompts), CHUNK)
    chunks = [dataclasses.replace(prompts, rows=prompts.rows[start : start + CHUNK], screened=0) for start in starts]
    return Chunks(prompts, tuple(_passing(model, edit, chunk, sampler, store, batch_size) for chunk in chunks))


def _passing(
    model: DiffusionModel | LazyModel,
    edit: Edit | None,
    prompts: PromptSet,
    sampler: Sampler,
    store: ImageStore,
    batch_size: int,
) -> ImageSet:
    def make() -> Sequence[np.ndarray]:
        memory = _Memory(store)
        made = generate(model, edit, prompts, sampler, memory, batch_size=min(batch_size, CHUNK), progress=False)
        images.made += made.made
        images.reused, images.black = made.reused, made.black
        return made.images

    keys = [content_key(image_parts(model, edit, row, sampler)) for row in prompts]
    images = ImageSet(prompts, Passing(len(prompts), make), content_key(keys))
    return images


class _Memory:
    """An image store that reads from another one and keeps pictures in memory only."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._pictures: dict[str, np.ndarray] = {}

    def has_image(self, parts: dict[str, Any]) -> bool:
        return content_key(parts) in self._pictures or self._store.has_image(parts)

    def read_image(self, parts: dict[str, Any]) -> np.ndarray | None:
        found = self._pictures.get(content_key(parts))
        return self._store.read_image(parts) if found is None else found

    def write_image(self, parts: dict[str, Any], array: np.ndarray, text: dict[str, str] | None = None) -> None:
        self._pictures[content_key(parts)] = array

    def tensors(
        self, kind: str, parts: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:  # fmt: skip
        return self._store.tensors(kind, parts, make)


def image_parts(model: DiffusionModel | LazyModel, edit: Edit | None, row: Row, sampler: Sampler) -> dict[str, Any]:
    """Everything that decides one picture, as the store's key parts."""
    return {
        "version": VERSION,
        "model": model.fingerprint,
        "edit": edit.fingerprint if edit is not None and edit.kind != "none" else "none",
        "sampler": {"name": sampler.name, "steps": sampler.steps},
        "prompt": row.prompt,
        "seed": row.seed,
        "guidance": float(sampler.guidance if row.guidance is None else row.guidance),
        "width": row.width or model.size,
        "height": row.height or model.size,
    }


Item = tuple[int, Row, dict[str, Any]]


def _groups(items: Sequence[Item]) -> list[list[Item]]:
    """Items that may share a batch: of one size, and one way of guidance, as 1 leaves out the unconditional half."""
    groups: dict[tuple[int, int, bool], list[Item]] = {}
    for item in items:
        part = item[2]
        groups.setdefault((part["width"], part["height"], part["guidance"] == 1), []).append(item)
    return list(groups.values())


def _share(items: Sequence[Item], batch_size: int, team: Team) -> list[Item]:
    """The items of this process. Whole batches are dealt out, so that every item keeps its place in its batch."""
    starts = [(group, start) for group in _groups(items) for start in range(0, len(group), batch_size)]
    return [item for group, start in team.own(starts) for item in group[start : start + batch_size]]


def _claimed(
    items: Sequence[Item], batch_size: int, store: ImageStore | None, writer: ThreadPoolExecutor
) -> Generator[Sequence[Item], None, None]:
    """All items, whole batches at a time, while no other job of this machine or cluster is at theirs.

    What another job holds comes last, when it has let go. The writer lets a chunk go after the last of its files. So
    nobody who holds a chunk waits for another: there is no deadlock.

    Args:
        store: where other jobs put the same pictures; without a store that knows locks, all items come at once.
    """
    if not isinstance(store, Store):
        yield items
        return
    step = max(1, CLAIMED // batch_size) * batch_size
    chunks = [group[start : start + step] for group in _groups(items) for start in range(0, len(group), step)]
    busy: list[Sequence[Item]] = []
    for some, patience in ((chunks, 0), (busy, -1)):
        if some is busy and busy:
            log.info("waiting for another process that makes %d pictures", sum(map(len, busy)))
        for chunk in some:
            with storage(f"cannot lock pictures in {store.root}"):
                lock = artefact_lock(store.root, "image", content_key([content_key(part) for *_, part in chunk]))
                try:
                    lock.acquire(timeout=patience)
                except Timeout:
                    busy.append(chunk)
                    continue
            try:
                yield chunk
            finally:
                writer.submit(lock.release)


def _batches(items: Sequence[Item], missing: Collection[int], batch_size: int) -> Iterator[dict[int, Item]]:
    """Missing items by their place in the batch, which follows from their place among all items."""
    for group in _groups(items):
        waiting = [[item for item in group[place::batch_size] if item[0] in missing] for place in range(batch_size)]
        for row in itertools.zip_longest(*waiting):
            yield {place: item for place, item in enumerate(row) if item is not None}


def _make(
    model: DiffusionModel,
    texts: TextFeatures,
    batches: Sequence[Mapping[int, Item]],
    sampler: Sampler,
    batch_size: int,
    edited: bool,
    bar: tqdm,
) -> Iterator[tuple[Mapping[int, Item], list[np.ndarray]]]:
    """Every batch with its pictures in its order.

    Text and noise of the next batch are made before this one is asked for: a GPU works on it meanwhile.
    """
    if not batches:
        return
    calls = sampler.calls()
    inputs = _inputs(model, texts, batches[0], batch_size)
    for batch, following in itertools.zip_longest(batches, batches[1:]):
        latents = model.denoise(
            **inputs,
            sampler=sampler,
            on_call=lambda i, _: bar.set_postfix_str(f"step {i + 1}/{calls}"),
            in_threads=True,
        )
        if following is not None:
            inputs = _inputs(model, texts, following, batch_size)
        try:
            pictures = model.decode(latents, nan_to_black=edited)
        except FloatingPointError as error:
            raise BlackImageError(str(error)) from error
        yield batch, list(pictures[list(batch)].numpy())


def _inputs(
    model: DiffusionModel, texts: TextFeatures, batch: Mapping[int, Item], batch_size: int
) -> dict[str, Any]:  # fmt: skip
    """What `denoise` takes for `batch_size` rows: one of the batch's items fills the empty places."""
    first = next(iter(batch.values()))
    padded = [batch.get(place, first)[2] for place in range(batch_size)]
    width, height = padded[0]["width"], padded[0]["height"]
    return {
        "conditioning": texts.encode([part["prompt"] for part in padded]),
        "latents": model.latents([part["seed"] for part in padded], width, height),
        "guidance": [part["guidance"] for part in padded],
        "size": (width, height),
    }


def _finish(written: list[Future]) -> None:
    """Wait until these files are written, and forget them; what went wrong with one is raised."""
    for future in written:
        future.result()
    written.clear()


def is_black(picture: np.ndarray) -> bool:
    """True where all pixels are of one colour."""
    return bool((picture == picture[0, 0]).all())


def _black(model: DiffusionModel | LazyModel, row: Row) -> BlackImageError:
    return BlackImageError(
        f"the unedited model {model.name or model.fingerprint[:12]} gives a picture of one colour for row {row.id} "
        f"({row.prompt!r}, seed {row.seed}); its weights or its dtype are broken, try dtype=float32"
    )


def _notes(part: dict[str, Any]) -> dict[str, str]:
    names = ("prompt", "seed", "guidance", "model", "edit")
    sampler = f"{part['sampler']['name']} {part['sampler']['steps']} steps"
    return {**{name: str(part[name]) for name in names}, "sampler": sampler}
