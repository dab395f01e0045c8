"""Bad input, from the command line and from Python: one line, exit code 2, nothing written; 1 where the machine fails.

Every command line runs in this process through `run.main`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import cli

LONG = "x" * 10_000
# (arguments, what the line says). The first table needs no model and no torch.
SETTINGS = [
    # Names
    (["method=ucee"], "unknown method 'ucee'; did you mean uce?"),
    (["task=imagenet"], "unknown task 'imagenet'; did you mean imagenette"),
    (["model=sd51"], "unknown model 'sd51'; did you mean sd15"),
    (["sampler=dpm11"], "unknown sampler 'dpm11'; did you mean dpm10"),
    (["suite=tinny"], "unknown suite 'tinny'; did you mean tiny?"),
    (["quality=tinny"], "unknown quality 'tinny'; did you mean tiny"),
    (["logger=wandbb"], "unknown logger 'wandbb'; did you mean wandb?"),
    (["+experiment=tiny_swep"], "did you mean tiny_sweep"),
    (["sampler.name=dimm"], "did you mean ddim?"),
    (["sampler.stepps=3"], "unknown key 'sampler.stepps'; did you mean sampler.steps"),
    (["schedule=sequentialy"], "did you mean sequential?"),
    (["--dry-run"], "unknown option '--dry-run'"),
    (["--experimental-rerun", "a_file"], "unknown option '--experimental-rerun'"),
    (["--experimental-rerun=a_file"], "unknown option '--experimental-rerun"),
    (["--cfg", "bogus"], "argument --cfg/-c: invalid choice: 'bogus'"),
    (["--info", "bogus"], "argument --info/-i: invalid choice: 'bogus'"),
    (["--config-name"], "argument --config-name/-cn: expected one argument"),
    (["seed"], "write key=value"),
    # Numbers
    (["seed=-1"], "seed=-1: an integer from 0"),
    (["seed=9223372036854775808"], "an integer from 0 to 2^63 - 1"),
    (["seed=1.5"], "seed=1.5"),
    (["task.n=0"], "task.n=0"),
    (["task.n=-3"], "task.n=-3"),
    (["task.n=2.5"], "task.n=2.5"),
    (["task.n=true"], "task.n=True"),
    (["quality.n=-1"], "quality.n=-1"),
    (["quality.n=many"], "quality.n='many'"),
    (["sampler.steps=0"], "sampler.steps: dpm++ takes a whole number"),
    (["sampler.steps=-5"], "sampler.steps"),
    (["sampler.guidance=nan"], "sampler.guidance"),
    (["sampler.guidance=x"], "sampler.guidance"),
    (["model.batch_size=0"], "model.batch_size=0"),
    (["model.size=-64"], "model.size=-64"),
    (["order=-2"], "order=-2: say given, or a seed"),
    (["repeats=0"], "repeats"),
    (["dry_run=maybe"], "dry_run='maybe': say true or false"),
    # Device and dtype
    (["device=gpu"], "device='gpu': say auto, cpu, cuda, cuda:1 or mps"),
    (["device=cuda:x"], "device='cuda:x'"),
    (["dtype=fp16"], "float16"),
    (["dtype=float64"], "unknown dtype 'float64'"),
    # Places
    (["store="], "store='': name a folder"),
    (["-m", "seed=-1,-2", "hydra.sweep.dir="], "hydra.sweep.dir=: name a folder"),
    (["-m", "seed=-1,-2", "hydra.sweep.dir=''"], "hydra.sweep.dir='': name a folder"),
    (["store=a_file"], "store=a_file is a file"),
    (["records=a_file"], "records=a_file is a file"),
    (["export=."], "is not an empty folder"),
    (["export=a_file"], "export=a_file exists"),
    (["replay=nowhere.json"], "no such file; name a record"),
    (["replay=a_file"], "a_file: "),
    (["replay=."], "name a record"),
    # Concepts
    (["task=custom"], "task.concepts is empty"),
    (["task=custom", "task.concepts=tench"], "task.concepts='tench': write a list"),
    (["task=custom", "task.concepts=[tench,Tench]"], "task.concepts names 'Tench' twice"),
    (["task=custom", "task.concepts=[tench]", "task.keep=[TENCH]"], "'tench' is in task.concepts and in task.keep"),
    (["task=custom", "task.concepts=[1]"], "task.concepts: 1 is a int; a name is text"),
    (["task=custom", "task.concepts=[null]"], "a name is text"),
    (["task=custom", "task.concepts=['']"], "a name is empty"),
    (["task=custom", "task.concepts=['  ']"], "a name is empty"),
    (["task=custom", f"task.concepts=[{LONG}]"], "has 10000 characters"),
    (["task=custom", "task.concepts=['../../etc/passwd']"], "looks like a path"),
    (["task=custom", "task.concepts=['/etc']"], "looks like a path"),
    (["task=custom", "task.concepts=['~root']"], "looks like a path"),
    (["task=custom", "task.concepts=['a\\\\b']"], "looks like a path"),
    (["task=custom", "task.concepts=['tench\nchurch']"], "line break or control character"),
    (["task=custom", "task.concepts=['tench\u2028church']"], "line break or control character"),
    (["task=custom", "task.concepts=['ten\u202ech']"], "line break or control character"),
    (["task=custom", "task.concepts=['ten\u200bch']"], "line break or control character"),
    (["task=custom", "task.concepts=['ten\x00ch']"], "line break or control character"),
    (["task=custom", "task.concepts=[tench]", "task.kind=objekt"], "unknown task.kind 'objekt'; did you mean object?"),
    (["task.split=train"], "unknown task.split 'train'"),
    (["task.prompts=C"], "unknown task.prompts 'C'"),
    (["task.concepts=[tenhc]"], "did you mean tench?"),
]
# These need the code of a method, or ask the machine; the model is the small random one.
METHODS = [
    (["method.r1=0"], "fia: r1 is a fraction in (0, 1], got 0"),
    (["method.r1=-0.1"], "fia: r1"),
    (["method.r1=5"], "fia: r1 is a fraction in (0, 1], got 5; 5 % is written 0.05"),
    (["method.r2=1.7"], "1.7 % is written 0.017"),
    (["method.r2=nan"], "fia: r2"),
    (["method.alpha=60"], "60 % is written 0.6"),
    (["method.alpha=1.01"], "fia: alpha"),
    (["method.alpha=high"], "fia: alpha"),
    (["method.fusion=onion"], "did you mean union?"),
    (["method.kind=ffn3"], "did you mean ffn"),
    (["method.num_pairs=0"], "num_pairs"),
    (["method.steps=0"], "steps"),
    (["method.sampler.steps=0"], "sampler.steps"),
    (["method.words=road"], "words"),
    (["+method.beta=1"], "beta"),
    (["method=uce", "method.erase_scale=-1"], "uce: erase_scale"),
    (["method=uce", "method.kinds=[cross_q]"], "cross_k"),
    (["method=uce", "method.preserve=church"], "a list of texts"),
    (["method=salun", "method.r=50"], "50 % is written 0.5"),
    (["method=salun", "method.batch=0"], "salun: batch"),
    (["method=salun", "method.learning_rate=0"], "salun: learning_rate"),
    (["method=salun", "method.accumulate=3"], "has to divide"),
    (["method=salun", "method.forget_folder=nowhere"], "no such folder"),
    (["method=conceptprune", "method.k=2"], "2 % is written 0.02"),
]


@pytest.fixture
def one_line(call) -> Callable[..., None]:
    """Runs a command line that has to be refused."""
    (call.work / "a_file").write_text("mine")

    def check(arguments: list[str], words: str, code: int = cli.BAD_INPUT, small: bool = False) -> None:
        before = _tree(call.work)
        found, out, err = call(*arguments, small=small)
        assert (found, out) == (code, ""), err
        assert words in err and err.count("\n") == 1 and "Traceback" not in err
        assert len(err) < 1000, "a line that nobody reads"
        assert _tree(call.work) == before

    return check


def _tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _name(item: object) -> str | None:
    return " ".join(item)[:40].encode("unicode_escape").decode() if isinstance(item, list) else ""


@pytest.mark.parametrize(("arguments", "words"), SETTINGS, ids=_name)
def test_a_setting_is_refused_in_one_line(one_line, arguments: list[str], words: str):
    one_line(arguments, words)


@pytest.mark.parametrize(("arguments", "words"), METHODS, ids=_name)
def test_a_parameter_is_refused_in_one_line(one_line, arguments: list[str], words: str):
    one_line(arguments, words, small=True)


@pytest.mark.parametrize("name", ["café", "寿司", "Ærø", "rubber duck 🦆", "O'Brien", "100% cotton"])
def test_a_name_in_any_script_is_a_concept(call, name: str):
    code, _, err = call(f'task.concepts=["{name}"]', "edit_only=true", "dry_run=true")
    assert code == cli.DONE, err


def test_debug_adds_the_traceback_and_keeps_the_line(call):
    code, _, err = call("task.n=0", "debug=true", small=False)
    assert code == cli.BAD_INPUT and "Traceback" in err and err.rstrip().splitlines()[-1].startswith("task.n=0")


# Models


def _copied(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to))


def _empty(folder: Path, to: Path) -> Path:
    to.mkdir()
    return to


def _without_unet(folder: Path, to: Path) -> Path:
    to = _copied(folder, to)
    (to / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return to


def _pickled_unet(folder: Path, to: Path) -> Path:
    to = _without_unet(folder, to)
    (to / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    return to


def _another_pipeline(folder: Path, to: Path) -> Path:
    to = _copied(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusion3Pipeline"}))
    return to


def _index_cut_off(folder: Path, to: Path) -> Path:
    to = _copied(folder, to)
    (to / "model_index.json").write_text('{"_class_name": "Stab')
    return to


def _shard_outside(folder: Path, to: Path) -> Path:
    to = _without_unet(folder, to)
    index = {"weight_map": {"conv_in.weight": "../../../elsewhere.safetensors"}}
    (to / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (to.parent / "elsewhere.safetensors").touch()
    return to


def _code_of_its_own(folder: Path, to: Path) -> Path:
    """A component whose class the folder itself brings along."""
    to = _copied(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps({**index, "unet": ["unet_code", "Evil"]}))
    (to / "unet" / "unet_code.py").write_text("import pathlib\npathlib.Path('ran').touch()\nclass Evil: ...\n")
    return to


def _any_class(folder: Path, to: Path) -> Path:
    """A class of a known library that would look into the folder for code."""
    to = _copied(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps({**index, "text_encoder": ["transformers", "AutoModel"]}))
    return to


def _pickle(folder: Path, to: Path) -> Path:
    to = to.with_suffix(".ckpt")
    to.write_bytes(b"\x80\x04.")
    return to


def _text_file(folder: Path, to: Path) -> Path:
    to = to.with_suffix(".safetensors")
    to.write_text("not tensors")
    return to


def _cut_off(folder: Path, to: Path) -> Path:
    to = _copied(folder, to)
    weights = to / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return to


def _changed(change: Callable[[dict], dict], part: str = "unet") -> Callable[[Path, Path], Path]:
    def make(folder: Path, to: Path) -> Path:
        from safetensors.torch import load_file, save_file

        to = _copied(folder, to)
        weights = to / part / "diffusion_pytorch_model.safetensors"
        save_file(change(load_file(weights)), weights)
        return to

    return make


def _renamed(tensors: dict) -> dict:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def _one_lacking(tensors: dict) -> dict:
    return {name: tensor for name, tensor in tensors.items() if name != "conv_in.weight"}


def _reshaped(tensors: dict) -> dict:
    return {**tensors, "conv_in.weight": tensors["conv_in.weight"][:, :2].clone()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_empty, "no model_index.json"),
        (_without_unet, "diffusion_pytorch_model.safetensors"),
        (_pickled_unet, "only pickled weights"),
        (_another_pipeline, "unknown pipeline class"),
        (_index_cut_off, "model_index.json"),
        (_shard_outside, "elsewhere.safetensors"),
        (_code_of_its_own, "unet is unet_code.Evil; what is loaded is diffusers.UNet2DConditionModel"),
        (_any_class, "text_encoder is transformers.AutoModel; what is loaded is transformers.CLIPTextModel"),
        (_pickle, "pickled weights are never loaded"),
        (_text_file, "damaged or no safetensors file"),
        (_cut_off, "damaged"),
        (_changed(_renamed), "unet"),
        (_changed(_one_lacking), "conv_in.weight"),
        (_changed(_reshaped), "conv_in.weight"),
    ],
    ids=lambda item: "" if isinstance(item, str) else item.__name__.strip("_"),
)
def test_a_model_that_is_none_is_refused_in_one_line(call, random_sd_folder, tmp_path, make, words: str):
    model = make(random_sd_folder, tmp_path / "model")
    code, out, err = call(f"model.path={model}", "method=none")
    *progress, line = err.rstrip().splitlines()
    assert code == cli.BAD_INPUT and words in line and out == "", err
    assert all(said.startswith(("none, custom: a model", "loading folder")) for said in progress), err
    # Nothing was written, and its code did not run.
    assert list(call.work.rglob("*")) == []


@pytest.mark.parametrize("name", ["../../up", "..", "/etc/passwd", "a\\..\\b", ".hidden", "a\nb", ""])
def test_a_record_s_file_stays_in_its_folder(name: str):
    from harness.record import Record

    record = Record(method=name, task=name, model=name, suite=name, split=name, config={}, fingerprints={})
    assert Path(record.file_name).name == record.file_name and not record.file_name.startswith(".")
    assert "\n" not in record.file_name and "\\" not in record.file_name


# Lists of prompts


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "cannot download"),
        (b"", "0 bytes instead of"),
        (b"case_number,prompt\n0,A dog.\n", "bytes instead of"),
        ("other columns", "sha256"),
        ("another prompt", "sha256"),
    ],
    ids=["missing", "empty", "another", "other columns", "another prompt"],
)
def test_a_list_that_is_not_the_pinned_one(call, monkeypatch, tmp_path, random_sd_folder, data, words: str):
    """Columns, prompts and seeds of a pinned list are what its hash says; any other file is refused unread."""
    from harness import sources

    def offline(*_, **__):
        raise sources.urllib.error.URLError("no route")

    monkeypatch.setattr(sources.urllib.request, "urlopen", offline)
    monkeypatch.setenv("FIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIA_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    if data is not None:
        source = sources.SOURCES["imagenette_a"]
        if isinstance(data, str):  # of the right size
            columns = source.columns if data == "another prompt" else [f"my_{name}" for name in source.columns]
            data = (",".join(columns) + "\n").encode().ljust(source.bytes, b"x")
        path = tmp_path / "mirror" / source.relative
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    code, out, err = call("task.prompts=A", "method=none")
    assert code == (cli.FAILED if data is None else cli.BAD_INPUT)
    assert words in err.rstrip().splitlines()[-1] and "Traceback" not in err and out == ""
    assert list(call.work.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": ""}, "empty id"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": True}, "seed"),
        ({"prompt": float("nan")}, "prompt"),
        ({"prompt": None}, "prompt"),
    ],
    ids=str,
)
def test_a_row_that_is_none_is_refused(change: dict, words: str):
    from harness.task import Row

    with pytest.raises(ValueError, match=words) as caught:
        Row(**{"id": "a", "prompt": "a church", "seed": 1} | change)
    assert "\n" not in str(caught.value)


def test_the_largest_seed_is_a_seed(random_sd_model):
    from harness.task import Row

    row = Row("a", "a church", 2**63 - 1)
    assert random_sd_model.latents([row.seed]).isfinite().all()


# The machine fails: exit code 1


def test_a_device_that_this_machine_lacks_is_a_failure(one_line, monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    one_line(["device=cuda:77"], "CUDA devices; say device=cpu", cli.FAILED, small=True)
    one_line(["device=mps"], "this machine has none; say device=cpu", cli.FAILED, small=True)


def test_a_folder_that_cannot_be_made_is_a_failure(call):
    (call.work / "a_file").write_text("mine")
    code, out, err = call("method=none", "store=a_file/store")
    assert code == cli.FAILED and "cannot" in err.rstrip().splitlines()[-1] and "Traceback" not in err
    assert "record:" not in out


def test_a_full_disk_is_a_failure_in_one_line(call, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("harness.files.os.replace", full)
    code, out, err = call("method=none")
    assert code == cli.FAILED and "No space left on device" in err.rstrip().splitlines()[-1]
    assert "Traceback" not in err and "record:" not in out
    assert not [path for path in call.work.rglob("*") if path.is_file() and path.suffix in (".png", ".tmp")]


def test_a_device_that_runs_out_of_memory_is_a_failure_in_one_line(call, monkeypatch):
    import torch

    from harness.model import DiffusionModel

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")

    monkeypatch.setattr(DiffusionModel, "denoise", full)
    code, out, err = call("method=none")
    last = err.rstrip().splitlines()[-1]
    assert code == cli.FAILED and last.startswith("OutOfMemoryError: CUDA out of memory") and "Traceback" not in err
    assert not list(call.work.rglob("*.png")) and "record:" not in out


# Pictures, judges and edits that are broken: the run stops in one line, and nothing wrong is recorded


def _last(err: str) -> str:
    assert "Traceback" not in err
    return err.rstrip().splitlines()[-1]


def _nan(tensors: dict) -> dict:
    return {**tensors, "conv_out.weight": tensors["conv_out.weight"] * float("nan")}


def _too_large_for_float16(tensors: dict) -> dict:
    return {**tensors, "conv_out.weight": tensors["conv_out.weight"] * 1e6}


def _zeros(tensors: dict) -> dict:
    return {**tensors, "decoder.conv_out.weight": tensors["decoder.conv_out.weight"] * 0}


@pytest.mark.parametrize(
    ("change", "part", "dtype", "words"),
    [
        (_nan, "unet", "float32", "NaN or infinity"),
        (_too_large_for_float16, "unet", "float16", "dtype torch.float16); try dtype=float32"),
        (_zeros, "vae", "float32", "gives a picture of one colour"),
    ],
    ids=["NaN", "overflow", "black"],
)
def test_an_unedited_model_without_pictures_is_a_failure(
    call, random_sd_folder, tmp_path, change, part: str, dtype: str, words: str
):
    model = _changed(change, part)(random_sd_folder, tmp_path / "model")
    code, out, err = call(f"model.path={model}", "method=none", f"dtype={dtype}")
    assert code == cli.FAILED and words in _last(err) and "try dtype=" in _last(err)
    assert "record:" not in out and not list(call.work.rglob("*.png"))


def test_black_pictures_of_an_edited_model_are_counted_and_shown(call, monkeypatch):
    from harness.model import DiffusionModel

    whole = DiffusionModel.decode

    def decode(self, latents, **options):
        return whole(self, latents, **options) * (self.edit is None)

    monkeypatch.setattr(DiffusionModel, "decode", decode)
    code, out, err = call("method=uce")
    assert code == cli.DONE, err
    record = json.loads(Path(out.rpartition("record: ")[2].strip()).read_text())
    assert record["counts"]["images_black"] == 5  # three classes and two captions
    assert "5 pictures of the edited model are of one single colour" in record["note"]


def test_an_edit_for_another_model_is_refused(call, random_sd_model, tmp_path):
    import torch

    from harness.edit import Edit

    edit = Edit(
        "mask", {"conv_in.weight": torch.ones_like(random_sd_model.unet.conv_in.weight) > 0}, {"base": "0" * 64}
    )
    code, out, err = call("method=checkpoint", f"method.path={edit.save(tmp_path / 'edit.safetensors')}")
    assert code == cli.BAD_INPUT and "made for the model 000000000000" in _last(err)
    assert "record:" not in out


def test_a_judge_that_fails_is_never_scored(call, monkeypatch):
    """The pictures are kept: once the judge is whole, the same command goes on."""
    import toy_suite

    from eval.classify import Classify

    def raising(self, images):
        raise RuntimeError("the judge's weights do not fit")

    with monkeypatch.context() as patch:
        patch.setattr(toy_suite.ColourJudge, "logits", raising)
        code, out, err = call("method=none")
        words = (
            "JudgeFailed: classify/toy-colour: the judge's weights do not fit; once the judge runs, the same command"
        )
        assert code == cli.FAILED and words in _last(err) and "record:" not in out
    with monkeypatch.context() as patch:
        plain = toy_suite.ColourJudge.logits
        patch.setattr(
            toy_suite.ColourJudge, "logits", lambda *a: {head: x * float("nan") for head, x in plain(*a).items()}
        )
        code, out, err = call("method=none")
        assert code == cli.FAILED and "is NaN or infinite; the judge overflows" in _last(err) and "record:" not in out
    for few in (lambda rows: rows.iloc[:-1], lambda rows: rows.iloc[::-1]):
        with monkeypatch.context() as patch:
            scored = Classify.rows
            patch.setattr(Classify, "rows", lambda *a, few=few, scored=scored: few(scored(*a)))
            code, out, err = call("method=none")
            assert code == cli.BAD_INPUT and "rows for 3 classes pictures; a metric gives one row" in _last(err)
            assert "record:" not in out and not list(call.work.rglob("*.csv"))
    code, out, err = call("method=none")
    assert code == cli.DONE and "record:" in out, err


def test_nan_of_a_judge_is_never_nothing_found():
    """NaN is below every threshold and no maximum: without a check, such a judge would see perfect forgetting."""
    from types import SimpleNamespace

    import numpy as np
    import torch
    import toy_suite

    from eval import classify, nudity
    from tinyworld.judges import peaks

    picture = np.zeros((8, 8, 3), np.uint8)
    images = SimpleNamespace(
        images=[picture], prompts=SimpleNamespace(rows=[SimpleNamespace(id="a", prompt="", seed=0)])
    )
    nan, plain = float("nan"), toy_suite.ColourJudge()

    class Broken(toy_suite.ColourJudge):
        id = "broken"
        least = 0.2

        def logits(self, images):
            return {head: x * nan for head, x in super().logits(images).items()}

        def detect(self, images):
            return [[("part", nan)] for _ in images]

    heat = torch.full((1, 2, 4, 4), nan)
    for judge, call in {
        "broken": lambda: classify.Agreement(plain, Broken()).rows(images),
        "broken: ": lambda: classify.Classify(Broken()).rows(images),
        "broken: its": lambda: nudity.Detections("toy", Broken(), {"part": "part"}, {}, [0.5]).rows(images),
        "NudeNet": lambda: nudity.boxes(np.full((22, 10), nan, np.float32), 320, 320),
        "detector of markers": lambda: peaks(heat, torch.zeros(1, 2, 4, 4), 0.2, ("disc", "cross")),
    }.items():
        with pytest.raises(FloatingPointError, match=judge) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_two_metrics_of_one_id_are_refused(call):
    import toy_suite

    metrics = toy_suite.YAML.replace("metrics:\n", "metrics:\n" + toy_suite.YAML.partition("metrics:\n")[2])
    (call.own / "suite" / "twice.yaml").write_text(metrics)
    code, out, err = call("method=none", "suite=twice")
    assert code == cli.BAD_INPUT and "is there twice; give one of the two metrics another id" in _last(err)
    assert out == "" and list(call.work.iterdir()) == [], "found before anything is computed"


# Configurations and weights that would run code


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch ran']\n",
        "name: !!python/object/new:pathlib.Path ['ran']\n",
        "name: !!python/name:os.system\n",
    ],
)
def test_yaml_cannot_run_code(call, text: str):
    (call.own / "suite" / "odd.yaml").write_text(text)
    code, out, err = call("method=none", "suite=odd", small=False)
    assert code != cli.DONE and "Traceback" not in err and out == ""
    assert not (call.work / "ran").exists()


@pytest.mark.parametrize("target", ["os.system", "harness.store.os.system", "toy_suite.np.save", "nowhere.Method"])
def test_a_configuration_calls_no_code_of_others(one_line, call, target: str):
    one_line([f"method._target_={target}"], f"names the code {target}; what it may name is in conf/")
    (call.own / "method").mkdir()
    (call.own / "method" / "odd.yaml").write_text(f"name: odd\nnested: [{{_target_: {target}, _args_: [touch ran]}}]\n")
    one_line(["method=odd"], f"names the code {target}")


def test_which_code_a_configuration_may_name(tmp_path, monkeypatch):
    from experiments.targets import is_own, known_targets

    package = tmp_path / "mine_all"
    package.mkdir()
    (package / "__init__.py").write_text("from .one import Method\nfrom os import system\n")
    (package / "one.py").write_text("import os\nclass Method:\n    @classmethod\n    def of(cls): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("Method", "one.Method", "one.Method.of"):
        assert is_own(f"mine_all.{target}")
    for target in ("system", "one.os", "one.os.system", "one", "two.Method", "one.Method.of.__globals__"):
        assert not is_own(f"mine_all.{target}")
    assert is_own("eval.nudity.nudenet") and is_own("toy_suite.ColourJudge.logits")
    for target in ("harness.files.write_atomic", "torch.load", "builtins.exec", "os", "", "__main__.run"):
        assert not is_own(target)
    assert {"fia.fia.FIA", "harness.task.class_task", "tinyworld.judges.Classifier.of"} <= known_targets()


@pytest.mark.parametrize("value", ["${eval:1}", "${python:os.system}", "${resolver:touch}"])
def test_interpolations_cannot_run_code(one_line, value: str):
    one_line([f"seed={value}"], "Unsupported interpolation type")
