"""What FIA's masks cost: the measurement counts the same work, the floor follows from shapes, ties are told apart."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import bench, bench_masks, bench_released, floor
from fia.fia import FIA
from fia.masks import MaskSet
from fia.saliency import LARGEST_GROUP
from harness.masks import pack
from harness.task import Concept

SMALL = [
    "model=folder", "device=cpu", "sampler=ddim20", "sampler.steps=2", "task.concepts=[tench,church]", "task.keep=[]",
    "method.num_pairs=3", "method.steps=2", "method.chunk=2", "method.r2=0.05",
]  # fmt: skip


@pytest.fixture
def settings(random_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results" / "bench")
    return [*SMALL, f"model.path={random_sd_folder}", f"store={tmp_path / 'store'}", f"records={tmp_path / 'runs'}"]


def test_the_masks_cost_is_measured_in_paired_rounds(settings, tmp_path, capsys):
    options = ["--parts", "masks", "--rounds", "2", "--steps", "1", "--concepts", "5", "--profile"]
    assert bench.main([*options, *settings]) == 0
    path = tmp_path / "results" / "bench" / "masks-folder-cpu.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    # Three base prompts and three for each of two concepts, guided, one step; denoised bare, and with statistics, for
    # which two prompts of a chunk share an unconditional row.
    assert result["unet_samples"] == {"denoising": 2 * 3 * 3, "statistics": (3 + 2) * 3}
    assert result["concepts"] == 2 and result["steps"] == 1
    assert result["goals"] == [] and "1 steps of 2, " in bench.heading(result), "the goal is about whole walks"
    # Five bytes a weight of a concept, and two float32 arrays of the layers' size.
    assert result["memory"]["concept"] / 5 == result["memory"]["moments"] / 8 > 0
    parts = {"denoising", "statistics", "products", "thresholds", "sorts", "selection"}
    assert [set(seconds) for seconds in result["rounds"]] == [parts] * 2
    own, rounds = result["medians"], result["rounds"]
    assert own["ratio"] == pytest.approx(statistics.median(s["statistics"] / s["denoising"] for s in rounds))
    assert own["ratio_per_unet_sample"] == pytest.approx(own["ratio"] * 18 / 15)
    calls = 3 * 3 / 2  # three prompts each in chunks of two: one batch and a half
    floors = [15 / 18 + calls * s["products"] / s["denoising"] for s in rounds]
    assert own["floor"] == pytest.approx(statistics.median(floors))
    assert own["ratio_to_floor"] > 0 and own["sort_to_threshold"] > 0
    shares = [one["share"] for one in result["operations"]]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    # A linear layer is one of them, wherever the rest of the time goes; all calls of all layers are counted.
    assert max(one["calls"] for one in result["operations"] if one["name"] == "aten::addmm") > calls
    shown = path.with_suffix(".md").read_text(encoding="utf-8")
    assert shown in capsys.readouterr().out and "| statistics : floor |" in shown
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("floor_", "limit"), [(0.9, 1.10), (1.2, 1.26)])
def test_the_goal_of_masks_follows_a_floor_above_it(floor_, limit):
    result = {"whole": True, "medians": {"ratio": 1.11, "floor": floor_}}
    (goal,) = bench_masks.goals(result)
    assert goal.limit == pytest.approx(limit) and goal.met == (limit > 1.11)
    assert bench_masks.goals({**result, "whole": False}) == []


def test_layers_of_one_shape_share_random_operands():
    """Or they would fill a card that the masks themselves fit on."""
    wide, deep = (2, 5, 4, 3), (2, 7, 6, 3)
    found = bench_masks.operands([wide, deep, wide], 1, torch.float64, torch.device("cpu"))
    shapes = {shape: [tuple(tensor.shape) for tensor in tensors] for shape, tensors in found.items()}
    assert shapes == {wide: [(1, 2, 5, 4), (1, 2, 5, 3), (3, 4)], deep: [(1, 2, 7, 6), (1, 2, 7, 3), (3, 6)]}
    assert all(tensor.dtype == torch.float64 for tensors in found.values() for tensor in tensors)


def test_the_floor_of_the_exact_term_follows_from_the_shapes():
    """X^T Y is as much arithmetic as the layer: all FFN2 layers have 3.2 % of SD 1.5's, counted per guidance half."""
    own = floor.published("sd")
    tokens = {320: 64 * 64, 640: 32 * 32, 1280: 16 * 16}
    expected = sum(2 * tokens[c] * c * 4 * c * 5 for c in tokens) + 2 * 8 * 8 * 1280 * 5120  # five a width; the middle
    assert own.product == expected and own.weights == 49_561_600
    assert own.share(2) == 2 * own.share(1) == pytest.approx(0.064, abs=0.001)
    assert own.state() <= 250e6 and own.state(3) - own.state() == 2 * own.weights
    small = floor.tiny()
    assert floor.group_on(own, 24e9)[0] == LARGEST_GROUP
    assert small.share(2) == 2 * small.product / small.unet > 0
    assert floor.table({"sd": own, "tiny": small}).count("\n") == 4


def test_the_traffic_of_the_exact_term_is_counted_operation_by_operation():
    """One layer of 5 to 3 channels and two tokens: 20 numbers of X and 12 of Y in both halves, 15 weights."""
    own = floor.Floor("one", {"layer": (2, 3, 5)}, unet=1, product=60)
    of_the_product = (1 + 2 + 2 + 1 + 3 + 1 + 4) * 4 * 15  # the last four: the sum of a chunk and the running one
    squared, in_the_product = 3 * 4, 4  # read, written, and read by the sum; read once
    without_bias, widened = 2 * 4, 2 + 4
    as_it_is = 20 * (squared + in_the_product) + 12 * (without_bias + squared + in_the_product)
    # By kernels: X and Y read for their sums and for the product, which is written and read once a half; the running
    # sum of a chunk is read and written.
    kernels = 2 * 4 * 32 + 2 * (4 + 4) * 15 + 8 * 15
    assert own.traffic(2, chunk=1, element=4) == (4 * 32 + 8 * 15, kernels, as_it_is + of_the_product)
    assert own.traffic(2, chunk=1, element=2) == (
        2 * 32 + 8 * 15, kernels - 2 * 2 * 32, as_it_is + 32 * widened + of_the_product
    )  # fmt: skip
    _, of_a_half, plainly = own.traffic(1, chunk=1, element=4)
    assert plainly == as_it_is / 2 + of_the_product - 2 * 4 * 15
    assert of_a_half == 2 * 4 * 16 + 8 * 15 + 8 * 15


def test_the_floor_of_closed_forms_follows_from_the_shapes():
    """Fifty concepts at SD 1.5's sizes: 24,960 channels of 768 features, 75 rows a concept."""
    found = floor.closed_forms(24_960, 768)
    step = 2 * 24_960 * 768**2
    assert found["uce"] == step + 768**3 // 3 + 2 * 768**3 + 4 * 50 * 768**2
    masked = 2 * 3_750 * 768 * 24_960
    assert masked == pytest.approx(144e9, rel=0.01)
    copies = 2 * 50 * 768 * 24_960  # one noisy copy of every concept
    assert found["scapre"] == masked + step + 30 * copies + 2 * 3_750 * 768**2 + 768**3 // 3
    assert found["scapre_scale"] - found["scapre"] == 12 * copies
    shown = floor.rest_table({"sd": floor.Rest(13_300_000_000, 2_515_000_000_000, found)})
    assert shown.splitlines()[-1].startswith("| sd | 13.3 | 2515 | 30.62 | 235.3 |")


def test_no_clone_of_the_release_is_bad_input(settings, tmp_path, capsys):
    assert bench.main(["--parts", "released", "--released", str(tmp_path), *settings]) == 2
    error = capsys.readouterr().err
    assert "no clone of the released program" in error and len(error.splitlines()) == 1


# A stand-in for the authors' program: it calls the pipeline as theirs does, and selects the first weight of each layer.
CLONE = {
    "__init__": "",
    "utils": """
from types import SimpleNamespace

def FIAConfig(**values):
    seen.append(values)
    return SimpleNamespace(**values)

seen = []
""",
    "hooks": "",
    "saliency": """
def compute_concept_saliency(pipe, prompts, base, config):
    for prompt in [*prompts, *base]:
        pipe(prompt, num_inference_steps=config.inference_steps, guidance_scale=7.5, output_type="latent")
    return pipe.unet
""",
    "neurons": """
def build_concept_mask(unet, config):
    masks = []
    for name, module in sorted(unet.named_modules()):
        if name.endswith("ff.net.2"):
            masks.append(module.weight == module.weight[0, 0])
    return masks
""",
    "mask_fusion": """
def fuse_masks(masks, alpha):
    return masks[0], {}
""",
}


def test_the_released_program_is_run_beside_ours_and_masks_are_compared(settings, tmp_path, capsys):
    package = tmp_path / "clone" / "fia"
    package.mkdir(parents=True)
    for name, text in CLONE.items():
        (package / f"{name}.py").write_text(text)
    own = [text for text in settings if not text.startswith(("method.r2", "method.num_pairs", "method.steps"))]
    own += ["method.num_pairs=2", "method.steps=2", "method.sampler.steps=2"]
    before = sys.modules["fia.fia"]
    options = ["--parts", "released", "--released", str(package.parent), "--rounds", "2"]
    # The stand-in's masks are none of FIA's: that is a failure, and is said.
    assert bench.main([*options, *own]) == 1
    out, err = capsys.readouterr()
    assert "weights differ that are at no tie, and" in err and "of the fused masks where no single mask" in err
    assert sys.modules["fia.fia"] is before and not hasattr(sys.modules.get("fia.utils"), "seen")
    path = tmp_path / "results" / "bench" / "released-folder-cpu.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    # Two concepts with two pairs, three guided calls (PNDM); ours makes the base prompts once, and two of the calls,
    # the first with one unconditional row.
    assert result["unet_samples"] == {"released": 2 * 4 * 3 * 2, "ours": 3 * (3 + 4), "denoising": 3 * 2 * 2 * 2}
    assert len(result["rounds"]) == 2 and all(min(one.values()) > 0 for one in result["rounds"])
    bare = [one["released"] / one["denoising"] for one in result["rounds"]]
    assert result["medians"]["ratio_to_denoising"] == pytest.approx(statistics.median(bare))
    ratios = [one["released"] / one["ours"] for one in result["rounds"]]
    assert result["medians"]["ratio"] == pytest.approx(statistics.median(ratios))
    assert result["dtype"] == "float32" and result["differing_without_a_tie"] > 0
    assert result["pruned_differing_without_a_tie"] > 0 and result["pruned_released"] > 0
    assert path.with_suffix(".md").read_text(encoding="utf-8") in out


def test_ties_are_told_from_differences():
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [0.8, 0.2, 0.1, 0.0]])
    ours = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)
    theirs = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)  # the other of two equal scores
    differ, far = bench_released.differing(scores, ours, theirs, 0.5)
    assert np.argwhere(differ).tolist() == [[0, 1], [0, 2]] and not far.any()
    theirs[1, 0] = False
    differ, far = bench_released.differing(scores, ours, theirs, 0.5)
    assert differ.sum() == 3 and np.argwhere(far).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("fused", "wrong"),
    [([[1, 1, 0, 0]], 0), ([[1, 0, 1, 0]], 0), ([[1, 1, 0, 1]], 1), ([[0, 1, 0, 0]], 1)],
)
def test_fused_masks_may_differ_only_where_a_single_one_does_at_a_tie(fused, wrong):
    """One concept of one layer, whose two middle scores are equal; the release takes the other of them."""
    method, job = FIA(r2=0.5, alpha=1.0, steps=1), SimpleNamespace(concept=Concept("tench", "object"), prompts=("p",))
    kept = {("p",): {"strength/a": torch.tensor([[0.9, 0.5, 0.5, 0.1]]), "count/a": torch.zeros(1, 4)}}
    masks = MaskSet({job.concept: pack({"a": torch.tensor([[True, True, False, False]])})})
    theirs = [[torch.tensor([[True, False, True, False]])]]
    found = bench_released.compare(method, [job], kept, masks, theirs, [torch.tensor(fused, dtype=torch.bool)])
    assert (found["selected"], found["differing"], found["differing_without_a_tie"]) == (2, 2, 0)
    assert found["pruned_differing_without_a_tie"] == wrong and found["pruned"] == 2


@pytest.mark.parametrize(
    ("extra", "says"),
    [(["method=none"], "method=fia"), (["method=fia_release"], "method=fia")],
)
def test_bad_input_is_one_line(settings, extra, says, capsys):
    kept = [text for text in settings if not text.startswith("method.")]
    assert bench.main(["--parts", "masks", *kept, *extra]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
