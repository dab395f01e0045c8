"""The tiny world still computes what it computed: tests/golden/tiny.json, made by `python tests/make_golden.py`.

Tolerances. All is float32. Other kernels add up in another order: with two threads, or without oneDNN, latents differ
by 2e-6 of their largest value, and pictures by 2e-5, where single pixels are rounded to another level. A number may
differ by 2e-4 of the largest one of its group: ten times what kernels do, and a fraction of what a change of 3 % in the
weights of one layer does, which is tested too. Saliency is what differences leave over, so it may differ by 1e-3; and
of the weights that a mask selects, those beside the threshold may change places: 1 in 100 of a layer's.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import make_golden
import pytest
import torch
from make_golden import GOLDEN, Values

from harness.model import DiffusionModel
from tinyworld.freeze import WORLD, card
from tinyworld.judges import Classifier

pytestmark = pytest.mark.skipif(not WORLD.exists(), reason="the tiny world's weights are not in this checkout")

# Of the largest number of a group.
TOLERANCE, TOLERANCES = 2e-4, {"saliency": 1e-3, "masks": 1e-2}
STALE = f"{GOLDEN.name} was made from other weights: run `python tests/make_golden.py` and look at what changed"


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return make_golden.load()


@pytest.fixture(scope="module")
def measured(model: DiffusionModel) -> Values:
    """Everything that the script measures."""
    parts = [part(model) for part in (make_golden.text, make_golden.pictures, make_golden.masks)]
    return {name: numbers for part in parts for name, numbers in part.items()} | (
        make_golden.classifiers() | make_golden.clip_and_markers()
    )


def _golden() -> Values:
    golden = json.loads(GOLDEN.read_text())
    assert golden["world"] == card()["hash"], STALE
    return golden["values"]


def _distances(found: Values) -> dict[str, float]:
    """How far each group is from the golden one, in units of what it may differ by."""
    golden, distances = _golden(), {}
    for name, values in found.items():
        numbers, expected = torch.tensor(values).double(), torch.tensor(golden[name]).double()
        assert numbers.shape == expected.shape, name
        far = float((numbers - expected).abs().max() / expected.abs().max())
        distances[name] = far / TOLERANCES.get(name, TOLERANCE)
    return distances


def test_the_world_computes_its_golden_values(measured: Values):
    assert {name: far for name, far in _distances(measured).items() if not far <= 1} == {}


def test_every_golden_value_is_compared_and_says_something(measured: Values):
    golden = _golden()
    assert golden.keys() == measured.keys() and sum(map(len, golden.values())) > 500
    assert [name for name, numbers in golden.items() if len(set(numbers)) < 2] == []


@pytest.mark.parametrize(
    ("find", "group"),
    [
        (lambda model: next(iter(model.layers("ffn2").values())), "latents/4/sixteenths"),
        (lambda model: model.unet.conv_out, "latents/1/sixteenths"),
        (lambda model: model.pipe.vae.decoder.conv_in, "pictures"),
    ],
    ids=["a feed-forward layer", "the UNet's last", "the decoder's first"],
)
def test_a_layer_whose_weights_change_by_three_percent_is_seen(
    model: DiffusionModel, find: Callable[[DiffusionModel], torch.nn.Module], group: str
):
    weight = find(model).weight
    before = weight.detach().clone()
    try:
        weight.data.mul_(1.03)
        assert _distances(make_golden.pictures(model))[group] > 3
    finally:
        weight.data.copy_(before)


def test_a_text_encoder_whose_weights_change_by_three_percent_is_seen():
    model = make_golden.load()  # one of its own: the features of prompts are kept
    model.encoders[0].get_input_embeddings().weight.data.mul_(1.03)
    assert _distances(make_golden.text(model))["text"] > 3


def test_a_judge_whose_weights_change_by_three_percent_is_seen(monkeypatch: pytest.MonkeyPatch):
    build = Classifier.network.func

    def network(self: Classifier) -> torch.nn.Module:
        network = build(self)
        next(network.parameters()).data.mul_(1.03)
        return network

    monkeypatch.setattr(Classifier, "network", property(network))
    distances = _distances(make_golden.classifiers())
    assert distances["classifier/icon"] > 3 and distances["features"] > 3 and distances["drawings"] <= 1


def test_other_weights_ask_for_new_golden_values(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("test_golden.card", lambda: {"hash": "0" * 64})
    with pytest.raises(AssertionError, match=r"run `python tests/make_golden\.py`"):
        _golden()
