"""UCE: the closed form against per-row least squares, the specification's invariants, and edits of random models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.uce import UCE, solve
from experiments.search import NO_PRESET
from harness.edit import NoEffectError
from harness.schedule import scheduled
from harness.screen import ScreenedPromptError
from harness.task import Concept
from harness.tokens import aligned_rows, last_token_rows

NAMES = ("tench", "church", "gas pump", "cup", "owl", "harp", "kite", "drum", "boat", "fox")
CONCEPTS = [Concept(name, "object") for name in NAMES]
LEGACY = {"tokens": "aligned", "preserve_empty": True, "preserve_scale": None, "expand_guides": False}
CONF = Path(__file__).resolve().parents[1] / "conf"
D = 12


def no_stage(*_):
    raise AssertionError("UCE stores nothing")


def edit(model, concepts=CONCEPTS[:2], seed=0, **settings):
    return UCE(**settings).edit(model, concepts, seed, no_stage)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(texts: int = 3, rows: int = 2, keep: int = 4, seed: int = 0):
    """Two layers, (c, g) of some texts, and features to preserve."""
    weights = {"a": draw(5, D, seed=seed + 1), "b": draw(9, D, seed=seed + 2)}
    erase = [(draw(rows, D, seed=seed + 10 + i), draw(rows, D, seed=seed + 50 + i)) for i in range(texts)]
    return weights, erase, draw(keep, D, seed=seed + 3)


def run(weights, erase, keep, technique="replace", s=1.0, p=1.0, ridge=0.5):
    return solve(weights, erase, keep.T @ keep, technique=technique, s=s, p=p, ridge=ridge)


def targets(w: np.ndarray, erase, technique: str) -> np.ndarray:
    """v* [rows, o] by its definition, text by text."""
    found = []
    for c, g in erase:
        v, u = g.numpy() @ w.T, c.numpy() @ w.T
        u = u / np.linalg.norm(u)
        found.append(v - (u * v).sum() * u if technique == "tensor" else v)
    return np.concatenate(found)


# The closed form


@pytest.mark.parametrize("technique", ["replace", "tensor"])
@pytest.mark.parametrize(("s", "p", "ridge"), [(1.0, 1.0, 0.5), (3.0, 0.1, 0.02), (0.2, 0.0, 5.0)])
def test_every_row_is_the_least_squares_solution(technique, s, p, ridge):
    weights, erase, keep = case()
    new = run(weights, erase, keep, technique, s, p, ridge)
    c = torch.cat([c for c, _ in erase]).numpy()
    features = np.concatenate([s**0.5 * c, p**0.5 * keep.numpy(), ridge**0.5 * np.eye(D)])
    for name, weight in weights.items():
        w, v = weight.numpy(), targets(weight.numpy(), erase, technique)
        wanted = np.concatenate([s**0.5 * v, p**0.5 * keep.numpy() @ w.T, ridge**0.5 * w.T])
        for i in range(len(w)):
            expected = np.linalg.lstsq(features, wanted[:, i], rcond=None)[0]
            np.testing.assert_allclose(new[name][i].numpy(), expected, rtol=0, atol=1e-12 * np.abs(w).max())
        # The normal equations W' M2 = M1 as the paper's code writes them.
        m1 = ridge * w + s * v.T @ c + p * w @ keep.numpy().T @ keep.numpy()
        m2 = ridge * np.eye(D) + s * c.T @ c + p * keep.numpy().T @ keep.numpy()
        assert np.linalg.norm(new[name].numpy() @ m2 - m1) < 1e-12 * np.linalg.norm(m1)


def test_normal_equations_where_features_are_nearly_dependent():
    """Like padding tokens: many rows, almost alike, long."""
    weights, _, keep = case()
    base = 20 * draw(1, D)
    erase = [(base + 0.05 * draw(40, D, seed=i), 20 * draw(1, D, seed=9) + 0.05 * draw(40, D, seed=-i)) for i in (4, 5)]
    new = run(weights, erase, keep)
    c, g = (torch.cat(rows) for rows in zip(*erase))
    m2 = 0.5 * torch.eye(D) + c.T @ c + keep.T @ keep
    assert torch.linalg.cond(m2) > 1e4
    for name, w in weights.items():
        m1 = 0.5 * w + (g @ w.T).T @ c + w @ keep.T @ keep
        assert torch.linalg.norm(new[name] @ m2 - m1) < 1e-9 * torch.linalg.norm(m1)


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_no_force_no_change(technique):
    weights, erase, keep = case()
    assert all(torch.equal(w, weights[n]) for n, w in run(weights, erase, keep, technique, s=0.0, p=3.0).items())


def test_a_guide_that_is_the_text_itself_changes_nothing():
    weights, erase, keep = case()
    new = run(weights, [(c, c) for c, _ in erase], keep)
    assert all(torch.equal(w, weights[n]) for n, w in new.items())


def test_features_orthogonal_to_all_others_keep_their_outputs():
    weights, erase, keep = case(texts=2, rows=2, keep=3)
    used = torch.cat([*(c for c, _ in erase), keep])
    free = torch.linalg.svd(used).Vh[len(used) :]
    assert len(free) == D - 7
    for technique in ("replace", "tensor"):
        for name, w in run(weights, erase, keep, technique).items():
            torch.testing.assert_close(free @ w.T, free @ weights[name].T, rtol=0, atol=1e-12)
            assert (erase[0][0] @ (w - weights[name]).T).abs().max() > 0.1


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_one_feature_by_its_formula(technique):
    weights, erase, _ = case(texts=1, rows=1)
    c, square = erase[0][0], float(erase[0][0].square().sum())
    for s, ridge in ((1.0, 0.5), (0.3, 7.0)):
        new = run(weights, erase, torch.zeros(1, D).double(), technique, s=s, ridge=ridge)
        for name, w in weights.items():
            v = torch.from_numpy(targets(w.numpy(), erase, technique))
            expected = (ridge * c @ w.T + s * square * v) / (ridge + s * square)
            torch.testing.assert_close(c @ new[name].T, expected, rtol=1e-12, atol=1e-12)
            if technique == "tensor":  # nothing of the guide's output points along the text's own
                assert abs(float((v * (c @ w.T)).sum())) < 1e-12


def test_rank_and_limits():
    weights, erase, keep = case(texts=2, rows=2)
    for technique in ("replace", "tensor"):
        new = run(weights, erase, keep, technique, p=0.0)
        assert all(torch.linalg.matrix_rank(new[n] - w, atol=1e-10) <= 4 for n, w in weights.items())
        strong, weak = run(weights, erase, keep, technique, s=1e10), run(weights, erase, keep, technique, ridge=1e10)
        for name, w in weights.items():
            c, v = torch.cat([c for c, _ in erase]), torch.from_numpy(targets(w.numpy(), erase, technique))
            torch.testing.assert_close(c @ strong[name].T, v, rtol=0, atol=1e-6)
            torch.testing.assert_close(weak[name], w, rtol=0, atol=1e-6)
    held = run(weights, erase, keep, p=1e10)
    for name, w in weights.items():
        torch.testing.assert_close(keep @ held[name].T, keep @ w.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_order_and_repetition(technique):
    weights, erase, keep = case()
    forward, backward = run(weights, erase, keep, technique), run(weights, erase[::-1], keep, technique)
    twice, scaled = run(weights, erase * 2, keep, technique), run(weights, erase, keep, technique, s=2.0)
    for name in weights:
        torch.testing.assert_close(forward[name], backward[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(twice[name], scaled[name], rtol=0, atol=1e-12)


def test_results_keep_the_weights_dtype_and_are_computed_in_double():
    weights, erase, keep = case()
    exact = run(weights, erase, keep)
    for dtype in (torch.float32, torch.float16):
        rounded = {name: w.to(dtype) for name, w in weights.items()}
        again = run({name: w.double() for name, w in rounded.items()}, erase, keep)
        for name, w in run(rounded, erase, keep).items():
            assert w.dtype == dtype and torch.equal(w, again[name].to(dtype))
            assert not torch.equal(w.double(), exact[name])


def test_bad_systems_are_refused():
    weights, erase, keep = case()
    with pytest.raises(ValueError, match="a takes 12 features, the text encoder gives 13"):
        solve(weights, [(draw(1, 13), draw(1, 13))], torch.zeros(13, 13), technique="replace", s=1, p=1, ridge=1)
    with pytest.raises(ValueError, match="ridge=1e-300 is lost beside"):
        run(weights, [(torch.ones(3, D).double(), erase[0][0][:1].expand(3, D))], 0 * keep, ridge=1e-300)


# Features


def test_rows_of_subject_tokens(random_sd_model):
    model = random_sd_model
    hidden = model.encode(["owl", "gas pump", ""]).hidden  # one token a letter: subjects end at 3, 7 and 0
    assert torch.equal(last_token_rows(model, ["owl", "gas pump", ""]), hidden[[0, 1, 2], [3, 7, 0]])
    c, g = aligned_rows(model, "owl", "gas pump")
    assert torch.equal(c, hidden[0, 3:16]) and torch.equal(g, hidden[1, 7:20])  # 13 rows: subject, end, padding
    c, g = aligned_rows(model, "owl", "")
    assert torch.equal(c, hidden[0, 3:20]) and torch.equal(g, hidden[2, :17])
    assert torch.equal(last_token_rows(model, [""]), last_token_rows(model, ["owl"]) * 0 + hidden[0, 0])


def test_the_legacy_rows_by_hand(random_sd_model):
    """Everything from model to new weights for one concept, in numpy."""
    made = edit(random_sd_model, [Concept("owl", "object")], **LEGACY)
    owl, empty = (random_sd_model.encode([text]).hidden[0].double().numpy() for text in ("owl", ""))
    c, g = owl[3:], empty[:17]
    m2 = 0.5 * np.eye(32) + c.T @ c + empty.T @ empty
    for name, layer in {**random_sd_model.layers("cross_k"), **random_sd_model.layers("cross_v")}.items():
        w = layer.weight.double().numpy()
        expected = (0.5 * w + w @ g.T @ c + w @ empty.T @ empty) @ np.linalg.inv(m2)
        np.testing.assert_allclose(made.tensors[f"{name}.weight"].numpy(), expected, atol=2e-7)
    assert made.info["preserved"] == 1 and made.info["preserve_scale"] == 1.0


# Edits


@pytest.mark.parametrize("settings", [{}, LEGACY, {"technique": "tensor"}], ids=["current", "legacy", "tensor"])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_edits_of_both_models(random_sd_model, random_sdxl_model, count, settings):
    for model in (random_sd_model, random_sdxl_model):
        before = {n: p.clone() for n, p in model.unet.named_parameters()}
        made = edit(model, CONCEPTS[:count], **settings)
        declared = {f"{n}.weight" for kind in ("cross_k", "cross_v") for n in model.layers(kind)}
        assert made.kind == "delta" and made.tensors.keys() == declared
        assert all(torch.equal(p, before[n]) for n, p in model.unet.named_parameters()) and model.calls == 0
        for other in (CONCEPTS[:count], CONCEPTS[:count][::-1]):  # order does not matter, to the bit
            assert edit(model, other, seed=7, **settings).fingerprint == made.fingerprint
        for name, tensor in made.tensors.items():
            assert tensor.dtype == before[name].dtype and not torch.equal(tensor, before[name])
        assert 0 < made.info["relative_change"] < 10


def test_concepts_arrive_at_their_guides_and_preserved_texts_stay(random_sd_model):
    model = random_sd_model
    made = edit(model, CONCEPTS[:2], guides="cup", preserve=["boat"], ridge=1e-4)
    loose = edit(model, CONCEPTS[:2], guides="cup", ridge=1e-4)
    rows = dict(zip(("tench", "church", "cup", "boat"), last_token_rows(model, ["tench", "church", "cup", "boat"])))
    for name, layer in model.layers("cross_v").items():
        w, new, free = layer.weight, made.tensors[f"{name}.weight"], loose.tensors[f"{name}.weight"]
        size = (w @ rows["cup"]).norm()
        for erased in ("tench", "church"):
            assert (
                (new @ rows[erased] - w @ rows["cup"]).norm() < 0.01 * size < (w @ (rows[erased] - rows["cup"])).norm()
            )
        assert (new @ rows["boat"] - w @ rows["boat"]).norm() < 0.01 * size
        assert (free @ rows["boat"] - w @ rows["boat"]).norm() > (new @ rows["boat"] - w @ rows["boat"]).norm()


def test_preserve_lists(random_sd_model):
    def made(**settings):
        return edit(random_sd_model, **settings)

    plain = made()
    assert made(preserve=["TENCH", "church"]).fingerprint == plain.fingerprint  # what is forgotten is not preserved
    assert made(preserve=["cup"], preserve_scale=0.0).fingerprint == plain.fingerprint
    cup = made(preserve=["cup", "owl"])
    assert cup.fingerprint != plain.fingerprint
    assert cup.fingerprint == made(preserve=["owl", "cup"]).fingerprint
    scales = [
        made(preserve=list(NAMES[2:count]), preserve_empty=True, preserve_scale=None).info["preserve_scale"]
        for count in (2, 5, 10)
    ]
    assert scales == [1.0, 0.25, pytest.approx(1 / 9)]
    many = [f"name {i}" for i in range(40)]
    assert made(preserve=many, preserve_scale=None).info["preserve_scale"] == 0.1


@pytest.mark.parametrize("settings", [{"preserve": ["a school"]}, {"guides": "a school"}])
def test_texts_go_through_the_screen(random_sd_model, settings: dict):
    marked = Concept("marked", "explicit")
    with pytest.raises(ScreenedPromptError, match=r"^a text of uce is refused by the prompt screen: 'school'"):
        edit(random_sd_model, [marked], **settings)
    assert edit(random_sd_model, CONCEPTS[:1], **settings).tensors


def test_kinds(random_sd_model):
    values = edit(random_sd_model, kinds=["cross_v"])
    assert values.tensors.keys() == {f"{n}.weight" for n in random_sd_model.layers("cross_v")}


def test_texts_and_guides():
    owl, monet = Concept("owl", "object"), Concept("Monet", "style")
    assert UCE().pairs([owl, monet]) == [("owl", ""), ("Monet", "art")]
    assert UCE(guides="bird").pairs([owl, monet]) == [("owl", "bird"), ("Monet", "bird")]
    assert UCE(guides={"OWL": "bird"}).pairs([owl, monet]) == [("owl", "bird"), ("Monet", "art")]
    both = UCE(expand_prompts=True).pairs([owl, monet])
    assert (
        len(both) == 12 and both[1] == ("image of owl", "image of ") and both[11] == ("style of Monet", "style of art")
    )
    bare = UCE(expand_prompts=True, expand_guides=False).pairs([monet])
    assert bare[1] == ("painting by Monet", "art")
    with pytest.raises(ValueError, match=r"uce: guides names 'monnet', .* did you mean 'monet'"):
        UCE(guides={"owl": "bird", "Monnet": "art"}).pairs([owl, monet])


def test_one_map_of_guides_serves_every_schedule(random_sd_model):
    """A schedule may hand over one concept at a time; the guides of the others are no mistake then."""
    concepts, guides = CONCEPTS[:2], {"tench": "owl", "Church": "cup"}
    pairs = [("tench", "owl"), ("church", "cup")]
    method = UCE(guides=guides)
    assert method.edit(random_sd_model, concepts, 0, no_stage).info["pairs"] == sorted(pairs)
    for schedule in ("sequential", "merged"):
        made = scheduled(schedule, method, random_sd_model, concepts, 0, no_stage)
        assert [part["pairs"] for part in made[-1].info["parts"]] == [[pair] for pair in pairs]
        with pytest.raises(ValueError, match=r"uce: guides names 'churhc'.* did you mean 'church'"):
            scheduled(schedule, UCE(guides={"churhc": "cup"}), random_sd_model, concepts, 0, no_stage)


def test_edits_without_effect_say_why(random_sd_model):
    themselves = {"tench": "tench", "church": "church"}
    for settings in ({"erase_scale": 0}, {"guides": themselves}):
        with pytest.raises(NoEffectError, match="erase_scale is 0, or every concept is its own guide"):
            edit(random_sd_model, **settings)
    assert (
        edit(random_sd_model, guides=themselves, technique="tensor").info["relative_change"] > 0
    )  # it sends them to 0


def test_broken_numbers_are_not_handed_on(random_sd_model, monkeypatch):
    layer = next(iter(random_sd_model.layers("cross_k").values()))
    old = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"uce: .*attn2\.to_k: NaN or infinity") as caught:
        edit(random_sd_model)
    assert "\n" not in str(caught.value)
    with torch.no_grad():
        layer.weight.copy_(old)
    monkeypatch.setattr("baselines.uce.solve", lambda weights, *_, **__: {n: w / 0 for n, w in weights.items()})
    with pytest.raises(FloatingPointError, match=r"uce: the new .*: NaN or infinity"):
        edit(random_sd_model)
    sound = last_token_rows

    def broken(model, texts):
        return sound(model, texts) / (0 if "owl" in texts else 1)

    monkeypatch.setattr("baselines.uce.last_token_rows", broken)
    for settings in ({"concepts": [Concept("owl", "object")]}, {"preserve": ["owl"]}):
        with pytest.raises(FloatingPointError, match="uce: text features: NaN or infinity"):
            edit(random_sd_model, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": "all"}, "unknown value of uce's tokens: 'all'"),
        ({"technique": "replaced"}, "did you mean replace"),
        ({"kinds": ["ffn2"]}, "uce's kinds: 'ffn2'.*cross_k, cross_v"),
        ({"kinds": "cross_k"}, "kinds is a list"),
        ({"kinds": []}, "kinds names at least one"),
        ({"guides": ["art"]}, "guides is null, one text, or a map"),
        ({"guides": {"owl": 3}}, "3 is none"),
        ({"preserve": "cat"}, r"preserve is a list of texts such as \[cat,dog\], got 'cat'"),
        ({"preserve": [True]}, "True is none"),
        ({"ridge": 0}, "ridge is a number > 0, got 0"),
        ({"erase_scale": -1}, "erase_scale is a number >= 0"),
        ({"preserve_scale": "1"}, "preserve_scale is a number"),
        ({"preserve_scale": float("nan")}, "preserve_scale is a number"),
        ({"expand_prompts": "false"}, "expand_prompts is true or false"),
    ],
)
def test_bad_parameters(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        UCE(**settings)
    assert "\n" not in str(caught.value)


def test_configurations():
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    def made(*overrides: str) -> UCE:
        return instantiate(compose("config", [*overrides, NO_PRESET]).method)

    with initialize_config_dir(str(CONF), version_base=None):
        current, legacy = made("method=uce"), made("method=uce_legacy")
        listed = made("method=uce", "method.preserve=${task.keep}", "method.guides={tench: fish}")
    assert current == UCE(kinds=["cross_k", "cross_v"])
    assert legacy == UCE(name="uce_legacy", kinds=["cross_k", "cross_v"], **LEGACY)
    assert listed.guides == {"tench": "fish"} and "church" in listed.preserve and len(listed.preserve) == 5
