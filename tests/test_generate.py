"""Pictures: stored one by one, taken up again, shared, and the same at any batch size."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch

from harness import generate as module
from harness.edit import Edit
from harness.generate import BlackImageError, ImageSet, generate
from harness.model import LazyModel
from harness.sampler import Sampler
from harness.store import Store
from harness.task import PromptSet, Row

SAMPLER = Sampler("ddim", 2, 4.0)


def prompt_set(n: int = 5, **changes: object) -> PromptSet:
    things = ["dog", "church", "gas pump"]
    return PromptSet("test", tuple(Row(f"r{i}", f"a {things[i % 3]}", seed=100 + i, **changes) for i in range(n)))


def run(model, prompts, store, edit=None, batch_size=2, sampler=SAMPLER):
    return generate(model, edit, prompts, sampler, store, batch_size=batch_size, progress=False)


def prune(model, value: float | None = None) -> Edit:
    """Zero all second feed-forward matrices, or set them to `value`."""
    layers = {f"{name}.weight": layer.weight for name, layer in model.layers("ffn2").items()}
    if value is None:
        return Edit.make("mask", {n: torch.ones_like(w, dtype=torch.bool) for n, w in layers.items()}, model)
    return Edit.make("delta", {n: torch.full_like(w, value) for n, w in layers.items()}, model)


def test_pictures_are_made_once_in_row_order(random_sd_model, tmp_path):
    store, prompts = Store(tmp_path), prompt_set()
    first = run(random_sd_model, prompts, store)
    assert (first.made, first.reused, first.black, len(first.images)) == (5, 0, 0, 5)
    assert random_sd_model.calls == 3 * 2 * 2 * SAMPLER.steps  # three full batches of two, guided
    assert {picture.shape for picture in first.images} == {(32, 32, 3)}
    again = run(random_sd_model, prompts, store)
    assert (again.made, again.reused, again.key) == (0, 5, first.key)
    assert all(np.array_equal(a, b) for a, b in zip(first.images, again.images, strict=True))
    single = run(random_sd_model, PromptSet("one", prompts.rows[3:4]), store)
    assert np.array_equal(single.images[0], first.images[3]) and single.key != first.key


def test_a_stored_run_loads_no_model(random_sd_folder, tmp_path):
    store = Store(tmp_path)
    made = run(LazyModel(random_sd_folder), prompt_set(2), store)
    lazy = LazyModel(random_sd_folder)
    assert run(lazy, prompt_set(2), store).key == made.key
    assert not lazy.loaded


def test_a_stopped_run_goes_on_where_it_stopped(random_sd_model, tmp_path, monkeypatch):
    store, decode, batches = Store(tmp_path), random_sd_model.decode, []

    def stopped_at_the_second_batch(*args, **options):
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return decode(*args, **options)

    monkeypatch.setattr(random_sd_model, "decode", stopped_at_the_second_batch)
    edit = prune(random_sd_model)
    with pytest.raises(KeyboardInterrupt):
        run(random_sd_model, prompt_set(), store, edit)
    assert random_sd_model.edit is None
    resumed = run(random_sd_model, prompt_set(), store, edit)
    assert (resumed.made, resumed.reused) == (3, 2)


def test_a_picture_that_cannot_be_written_stops_the_run_and_the_others_stay(random_sd_model, tmp_path, monkeypatch):
    store, write, tried = Store(tmp_path), Store.write_image, []

    def full(self, parts, *rest):
        tried.append(parts["seed"])
        if parts["seed"] == 102:
            raise OSError("no space left on device")
        return write(self, parts, *rest)

    monkeypatch.setattr(Store, "write_image", full)
    with pytest.raises(OSError, match="no space left"):
        run(random_sd_model, prompt_set(), store, prune(random_sd_model))
    assert random_sd_model.edit is None and tried[:3] == [100, 101, 102] and len(tried) <= 4
    monkeypatch.undo()
    resumed = run(random_sd_model, prompt_set(), store, prune(random_sd_model))
    assert resumed.reused == len(tried) - 1


def test_the_next_batch_is_prepared_before_pictures_are_asked_for_and_files_have_a_thread(
    random_sd_model, tmp_path, monkeypatch
):
    done, writers = [], set()

    def noted(word, work):
        def call(*args, **options):
            done.append(word)
            return work(*args, **options)

        return call

    write = Store.write_image
    monkeypatch.setattr(module, "_inputs", noted("inputs", module._inputs))
    for name in ("denoise", "decode"):
        monkeypatch.setattr(random_sd_model, name, noted(name, getattr(random_sd_model, name)))
    monkeypatch.setattr(Store, "write_image", lambda *args: (writers.add(threading.current_thread()), write(*args))[1])
    run(random_sd_model, prompt_set(4), Store(tmp_path))
    assert done == ["inputs", "denoise", "inputs", "decode", "denoise", "decode"]
    assert len(writers) == 1 and threading.current_thread() not in writers


def test_the_bits_do_not_depend_on_where_a_run_was_stopped(random_sd_model, tmp_path):
    prompts = prompt_set(7)
    whole = run(random_sd_model, prompts, Store(tmp_path / "whole"), batch_size=3)
    for taken in (1, 4):
        store = Store(tmp_path / str(taken))
        for row, picture in zip(prompts.rows[:taken], whole.images, strict=False):
            store.write_image(module.image_parts(random_sd_model, None, row, SAMPLER), picture)
        resumed = run(random_sd_model, prompts, store, batch_size=3)
        assert resumed.made == 7 - taken
        assert all(np.array_equal(a, b) for a, b in zip(whole.images, resumed.images, strict=True))


def test_a_damaged_picture_is_made_again(random_sd_model, tmp_path):
    store = Store(tmp_path)
    first = run(random_sd_model, prompt_set(2), store)
    victim = store.image_path(module.image_parts(random_sd_model, None, prompt_set(2).rows[1], SAMPLER))
    victim.write_bytes(victim.read_bytes()[:-30])
    again = run(random_sd_model, prompt_set(2), store)
    assert (again.made, again.reused) == (1, 1)
    assert np.abs(first.images[1].astype(int) - again.images[1]).max() <= 1


def test_pictures_do_not_depend_on_the_batch_size(random_sd_model, tmp_path):
    # Another batch size chooses other kernels: float32 rounding may move a pixel over one rounding step of 8 bits.
    sets = {
        size: run(random_sd_model, prompt_set(18), Store(tmp_path / str(size)), batch_size=size) for size in (1, 5, 16)
    }
    assert len({images.key for images in sets.values()}) == 1
    for images in sets.values():
        for a, b in zip(sets[1].images, images.images, strict=True):
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_rows_may_have_their_own_guidance_and_size(random_sd_model, tmp_path):
    store = Store(tmp_path)
    rows = (
        Row("a", "a dog", seed=1),
        Row("b", "a dog", seed=1, guidance=1.0),
        Row("c", "a dog", seed=1, width=48, height=32),
        Row("d", "a dog", seed=1, guidance=SAMPLER.guidance),
    )
    mixed = run(random_sd_model, PromptSet("mixed", rows), store, batch_size=4)
    assert [picture.shape for picture in mixed.images] == [(32, 32, 3), (32, 32, 3), (32, 48, 3), (32, 32, 3)]
    assert (mixed.made, mixed.reused) == (3, 1)  # d says what a has by default
    assert np.array_equal(mixed.images[0], mixed.images[3])
    assert not np.array_equal(mixed.images[0], mixed.images[1])
    assert [p.shape for p in mixed.images[1:3]] == [(32, 32, 3), (32, 48, 3)]
    assert np.array_equal(mixed.images[-1], mixed.images[3])


def test_an_edit_changes_pictures_and_leaves_the_model(random_sd_model, tmp_path):
    store, prompts = Store(tmp_path), prompt_set(2)
    before = {name: p.clone() for name, p in random_sd_model.unet.named_parameters()}
    plain = run(random_sd_model, prompts, store)
    edited = run(random_sd_model, prompts, store, prune(random_sd_model))
    assert edited.key != plain.key and edited.made == 2
    assert not np.array_equal(plain.images[0], edited.images[0])
    assert all(torch.equal(p, before[name]) for name, p in random_sd_model.unet.named_parameters())
    untouched = run(random_sd_model, prompts, store, Edit.make("none", {}, random_sd_model))
    assert (untouched.made, untouched.key) == (0, plain.key)
    with prune(random_sd_model).applied(random_sd_model), pytest.raises(RuntimeError, match="applies it itself"):
        run(random_sd_model, prompt_set(3), store)


@pytest.mark.parametrize("change", [{"seed": 9}, {"prompt": "a cat"}, {"guidance": 2.0}, {"width": 40}])
def test_everything_that_decides_a_picture_is_in_its_name(random_sd_model, change):
    row = {"id": "a", "prompt": "a dog", "seed": 1}
    parts = module.image_parts(random_sd_model, None, Row(**row), SAMPLER)
    assert module.image_parts(random_sd_model, None, Row(**{**row, **change}), SAMPLER) != parts
    assert module.image_parts(random_sd_model, None, Row(**{**row, "id": "b"}), SAMPLER) == parts
    assert module.image_parts(random_sd_model, None, Row(**row), Sampler("ddim", 3, 4.0)) != parts
    assert module.image_parts(random_sd_model, prune(random_sd_model), Row(**row), SAMPLER) != parts


def test_broken_pictures_stop_the_unedited_model_and_are_counted_of_an_edited_one(random_sd_model, tmp_path):
    store = Store(tmp_path)
    broken = prune(random_sd_model, value=float("nan"))
    edited = run(random_sd_model, prompt_set(3), store, broken)
    assert edited.black == 3 and edited.images[0].max() == 0
    assert run(random_sd_model, prompt_set(3), store, broken).black == 3
    with torch.no_grad():
        for layer in random_sd_model.layers("ffn2").values():
            layer.weight.fill_(float("nan"))
    with pytest.raises(BlackImageError, match="NaN"):
        run(random_sd_model, prompt_set(3), store)
    with torch.no_grad():
        random_sd_model.pipe.vae.decoder.conv_out.weight.zero_()
        for layer in random_sd_model.layers("ffn2").values():
            layer.weight.fill_(0)
    with pytest.raises(BlackImageError, match="one colour for row r0"):
        run(random_sd_model, prompt_set(3), store)
    assert not store.has_image(module.image_parts(random_sd_model, None, prompt_set(1).rows[0], SAMPLER))


def test_large_sets_are_read_from_the_store_when_asked_for(random_sd_model, tmp_path, monkeypatch):
    store = Store(tmp_path)
    whole = run(random_sd_model, prompt_set(3), store)
    monkeypatch.setattr(module, "KEPT_BYTES", 32 * 32 * 3)  # room for one
    lean = run(random_sd_model, prompt_set(3), store)
    assert len(lean.images._kept) == 1
    assert all(np.array_equal(a, b) for a, b in zip(whole.images, lean.images, strict=True))
    store.image_path(module.image_parts(random_sd_model, None, prompt_set(3).rows[2], SAMPLER)).unlink()
    with pytest.raises(RuntimeError, match="removed or damaged"):
        lean.images[2]


def test_a_part_is_handed_on_as_soon_as_its_pictures_are_there(random_sd_model, tmp_path, monkeypatch):
    """In memory, without reading a file; then its memory is free. The fourth row repeats the first one's picture."""
    monkeypatch.setattr(module, "SCORED", 2)
    rows = prompt_set(6).rows
    prompts = PromptSet("test", (*rows[:3], dataclasses.replace(rows[0], id="again"), *rows[3:5]))
    store, handed = Store(tmp_path), []
    reads: list[int] = []
    own = Store.read_image
    monkeypatch.setattr(Store, "read_image", lambda *given: reads.append(1) or own(*given))

    def ready(number: int, part: ImageSet) -> None:
        reads.clear()
        pictures = [picture.copy() for picture in part.images]
        handed.append((number, [row.id for row in part.prompts], part.key, len(reads), random_sd_model.calls, pictures))

    options = {"batch_size": 2, "progress": False, "ready": ready}
    made = generate(random_sd_model, None, prompts, SAMPLER, store, **options)
    assert [part.key for part in made.scored()] == [key for _, _, key, *_ in handed]
    assert [ids for _, ids, *_ in handed] == [["r0", "r1"], ["r2", "again"], ["r3", "r4"]]
    assert [number for number, *_ in handed] == [0, 1, 2]
    # A batch makes two pictures: the first part is there after one, the others after the second and the third.
    batch = 2 * 2 * SAMPLER.steps
    assert [calls for *_, calls, _ in handed] == [batch, 2 * batch, 3 * batch]
    assert [read for *_, read, _, _ in handed] == [0, 1, 0], "only the repeated picture is read"
    assert len(made.images._kept) == 5, "all that was made stays while there is room"
    shown = [picture for *_, pictures in handed for picture in pictures]
    assert all(np.array_equal(a, b) for a, b in zip(shown, made.images, strict=True))
    # Stored pictures are handed on too, and again once each.
    before, handed[:] = handed[:], []
    assert generate(random_sd_model, None, prompts, SAMPLER, store, **options).made == 0
    assert [one[:3] for one in handed] == [one[:3] for one in before]


def test_a_part_is_handed_on_once(random_sd_model, tmp_path):
    """Also where a row is met again, as when another job makes a repeated picture meanwhile."""
    made, handed = run(random_sd_model, prompt_set(2), Store(tmp_path)), []
    parts = module._Parts(made, made.images, lambda number, part: handed.append(number))
    for rows in ([0], [1], [1, 0]):
        parts.add(rows)
    assert handed == [0]


def test_parts_wait_for_what_is_missing(random_sd_model, tmp_path, monkeypatch):
    """Of rows that are partly stored, and where memory has room for one picture only."""
    monkeypatch.setattr(module, "SCORED", 2)
    monkeypatch.setattr(module, "KEPT_BYTES", 32 * 32 * 3)
    store, prompts, handed = Store(tmp_path), prompt_set(4), []
    run(random_sd_model, PromptSet("some", (prompts.rows[0], *prompts.rows[2:])), store)
    options = {"batch_size": 1, "progress": False}
    made = generate(
        random_sd_model, None, prompts, SAMPLER, store, **options,
        ready=lambda number, part: handed.append((number, len(list(part.images)))),
    )  # fmt: skip
    assert made.made == 1 and handed == [(1, 2), (0, 2)]


def test_a_broken_model_s_stored_pictures_are_not_handed_on(random_sd_model, tmp_path):
    store, prompts = Store(tmp_path), prompt_set(2)
    store.write_image(
        module.image_parts(random_sd_model, None, prompts.rows[0], SAMPLER), np.zeros((32, 32, 3), np.uint8)
    )
    handed = []
    with pytest.raises(BlackImageError):
        generate(
            random_sd_model, None, PromptSet("one", prompts.rows[:1]), SAMPLER, store, batch_size=1, progress=False,
            ready=lambda *given: handed.append(given),
        )  # fmt: skip
    assert not handed


def test_passing_pictures_are_the_same_and_never_stored(random_sd_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    store, prompts, edit = Store(tmp_path / "none"), prompt_set(), prune(random_sd_model)
    kept = run(random_sd_model, prompts, Store(tmp_path / "kept"), edit)
    calls = random_sd_model.calls
    chunks = module.passing(random_sd_model, edit, prompts, SAMPLER, store, batch_size=2)
    assert [len(part.prompts) for part in chunks.parts] == [len(part.images) for part in chunks.parts] == [2, 2, 1]
    assert random_sd_model.calls == calls and (chunks.made, chunks.reused) == (0, 0), "nothing was looked at"
    assert np.array_equal(chunks.parts[1].images[1], kept.images[3])
    assert (chunks.made, chunks.parts[1].made) == (2, 2)
    seen = [picture for part in chunks.parts for picture in part.images]
    assert all(np.array_equal(a, b) for a, b in zip(seen, kept.images, strict=True)) and chunks.made == 5
    assert chunks.parts[0].key == run(random_sd_model, PromptSet("first", prompts.rows[:2]), store, edit).key
    assert len(list((tmp_path / "none").glob("image/*/*.png"))) == 2  # of that last call alone


def test_passing_pictures_that_were_let_go_are_made_again_and_stored_ones_read(random_sd_model, tmp_path):
    store, prompts = Store(tmp_path), prompt_set(3)
    part = module.passing(random_sd_model, None, prompts, SAMPLER, store, batch_size=4).parts[0]
    first = part.images[0]
    part.images.let_go()
    assert np.array_equal(part.images[0], first) and part.made == 6
    run(random_sd_model, PromptSet("two", prompts.rows[:2]), store)
    part = module.passing(random_sd_model, None, prompts, SAMPLER, store, batch_size=4).parts[0]
    part.images.load()
    assert (part.made, part.reused) == (1, 2) and len(part.images[:2]) == 2


def test_passing_black_pictures_are_counted(random_sd_model, tmp_path):
    broken = prune(random_sd_model, value=float("nan"))
    part = module.passing(random_sd_model, broken, prompt_set(3), SAMPLER, Store(tmp_path), batch_size=2).parts[0]
    part.images.load()
    assert part.black == 3
