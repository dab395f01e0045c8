"""The published judges of the SD suite, through the code that loads the real weights, with random ones of the same
layout in the local cache: ResNet-50, CLIP, and both Inceptions."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eval.classify import Classify
from eval.clip import OpenClip
from eval.fid import Fid
from eval.inception import SIZE, TORCHSCRIPT_SHA256, TORCHSCRIPT_URL, CleanInception, Inception, clean_resize
from eval.resnet import ResNet50
from eval.weights import published_weights


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Noise of these sizes (height, width), uint8."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """torch.hub's cache of a machine without a network."""

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(cache: Path, state: object, name: str) -> str:
    """Put weights into the cache as `NAME-HASH8.pth`; returns their address."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file = f"{name}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    (cache / file).write_bytes(buffer.getvalue())
    return f"https://example.org/models/{file}"


# Files of the cache.


def test_weights_come_from_the_cache_and_are_checked_there(cache: Path) -> None:
    url = publish(cache, {"w": torch.arange(3)}, "net")
    assert published_weights(url, "a net")["w"].tolist() == [0, 1, 2]
    path = cache / url.rpartition("/")[2]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"is not the published file of a net: its sha256 is .*delete it"):
        published_weights(url, "a net")
    path.unlink()
    with pytest.raises(ValueError, match=rf"a net are not in the local cache .*no route to host.*put {url} into"):
        published_weights(url, "a net")
    with pytest.raises(ValueError, match="does not name its sha256"):
        published_weights("https://example.org/net.pth", "a net")


def test_weights_are_tensors_only(cache: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        published_weights(publish(cache, {"w": SimpleNamespace()}, "net"), "a net")


# ResNet-50.


@pytest.mark.parametrize("weights", ["IMAGENET1K_V2", "IMAGENET1K_V1"])
def test_resnet_loads_and_judges(weights: str, cache: Path) -> None:
    from torchvision.models import ResNet50_Weights, resnet50

    torch.manual_seed(0)
    network = resnet50().eval()
    entry = ResNet50_Weights[weights]
    judge = ResNet50(weights, device="cpu", batch=2)
    judge.__dict__["_entry"] = SimpleNamespace(
        url=publish(cache, network.state_dict(), "resnet50"), meta=entry.meta, transforms=entry.transforms
    )
    images = pictures((260, 300), (300, 260), (300, 300))
    found = judge.logits(images)["object"]
    assert found.shape == (3, 1000) and judge.id == f"torchvision-resnet50-{weights.lower()}"
    # By hand, in the same batches.
    with torch.inference_mode():
        x = torch.stack([entry.transforms()(torch.from_numpy(image).permute(2, 0, 1)) for image in images])
        torch.testing.assert_close(found, torch.cat([network(x[:2]), network(x[2:])]))


def test_resnet_crops_are_those_of_the_published_scores() -> None:
    from torchvision.models import ResNet50_Weights

    sizes = {one.name: (one.transforms().resize_size, one.transforms().crop_size) for one in ResNet50_Weights}
    assert sizes == {"IMAGENET1K_V2": ([232], [224]), "IMAGENET1K_V1": ([256], [224])}
    hashes = {one.name: one.url.rpartition("-")[2] for one in ResNet50_Weights}
    assert hashes == {"IMAGENET1K_V2": "11ad3fa6.pth", "IMAGENET1K_V1": "0676ba61.pth"}


# CLIP.


@pytest.mark.parametrize(("model", "patch", "width"), [("ViT-B-32", 32, 512), ("ViT-L-14", 14, 768)])
def test_clip_models_are_openais(model: str, patch: int, width: int) -> None:
    """What makes a score comparable: patches, width, QuickGELU, and the preprocessing of OpenAI's release."""
    import open_clip

    config = open_clip.get_model_config(f"{model}-quickgelu")
    assert (config["vision_cfg"]["patch_size"], config["embed_dim"], config["quick_gelu"]) == (patch, width, True)
    assert open_clip.get_pretrained_cfg(f"{model}-quickgelu", "openai")["quick_gelu"]


@pytest.mark.parametrize("model", ["ViT-B-32-quickgelu", "ViT-L-14-quickgelu"])
def test_clip_loads_and_embeds(model: str, tmp_path: Path, monkeypatch) -> None:
    """Both towers shrunk to one narrow layer; patches, context and loading as published."""
    import open_clip
    from open_clip import factory
    from safetensors.torch import save_model

    config = open_clip.get_model_config(model)
    config["embed_dim"] = 32
    config["vision_cfg"] |= {"layers": 1, "width": 64}
    config["text_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    monkeypatch.setitem(factory._MODEL_CONFIGS, model, config)
    torch.manual_seed(0)
    network = open_clip.create_model(model)
    save_model(network, tmp_path / "open_clip_model.safetensors")
    asked = []

    def cached(published: dict, **kwargs: object) -> str:
        asked.append(published["hf_hub"])
        return str(tmp_path / "open_clip_model.safetensors")

    monkeypatch.setattr(factory, "download_pretrained", cached)
    encoder = OpenClip(model, device="cpu", batch=2)
    images, prompts = pictures((64, 64), (48, 64), (300, 200)), ["a road", "a tree", "a road " * 100]
    for vectors in (encoder.image_features(images), encoder.text_features(prompts)):
        assert vectors.shape == (3, 32)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert asked == [open_clip.get_pretrained_cfg(model, "openai")["hf_hub"]]
    # Rows are stored under the very file: those of a damaged one are never taken for the others'.
    file = tmp_path / "open_clip_model.safetensors"
    assert encoder.fingerprint == hashlib.sha256(file.read_bytes()).hexdigest() and asked[1:] == asked[:1]
    file.write_bytes(file.read_bytes() + b"?")
    assert OpenClip(model).fingerprint == hashlib.sha256(file.read_bytes()).hexdigest() != encoder.fingerprint
    # The weights are the file's: the same towers by hand.
    with torch.inference_mode():
        transform = open_clip.image_transform(224, is_train=False)
        x = torch.stack([transform(Image.fromarray(image)) for image in images])
        torch.testing.assert_close(encoder.image_features(images), network.eval().encode_image(x, normalize=True))
        ids = open_clip.get_tokenizer(model)(prompts)
        assert ids.shape == (3, 77) and ids[2, -1] == ids.max()
        torch.testing.assert_close(encoder.text_features(prompts), network.encode_text(ids, normalize=True))


# Inception.


@pytest.fixture(scope="module")
def inception_state() -> dict[str, torch.Tensor]:
    """Random weights of torch-fidelity's layout."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        return module.FeatureExtractorInceptionV3("random", ["2048"]).state_dict()


def test_inception_loads_and_takes_photos_of_any_size(cache: Path, monkeypatch, inception_state) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as module

    monkeypatch.setattr(module, "URL_INCEPTION_V3", publish(cache, inception_state, "inception"))
    extractor = Inception(device="cpu", batch=2)
    images = pictures((40, 30), (30, 40), (40, 30))
    found = extractor.features(images)
    assert found.shape == (3, 2048) and found.dtype == torch.float32
    # Each picture by itself gives the same features, so sizes were not mixed up.
    for image, features in zip(images, found):
        torch.testing.assert_close(extractor.features([image])[0], features, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[2], rtol=1e-3)


class Pooled(torch.nn.Module):
    """In place of the TorchScript network: `layers` repeats the mean of each channel to 2,048 features."""

    class Layers(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.mean(dim=[2, 3]).repeat(1, 682), x[:, :2, 0, 0]], dim=1)

    def __init__(self) -> None:
        super().__init__()
        self.layers = Pooled.Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + 1000


def publish_torchscript(cache: Path) -> str:
    """Put a TorchScript file where clean-fid's belongs; returns its sha256."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Pooled()), buffer)
    (cache / TORCHSCRIPT_URL.rpartition("/")[2]).write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def test_clean_inception_loads_and_scales_as_clean_fid_does(cache: Path) -> None:
    extractor = CleanInception(device="cpu", batch=2, sha256=publish_torchscript(cache))
    images = [
        np.full(size, level, np.uint8) for size, level in (((40, 30, 3), 0), ((30, 40, 3), 128), ((9, 9, 3), 192))
    ]
    found = extractor.features(images)
    assert found.shape == (3, 2048)
    for features, level in zip(found, (-1.0, 0.0, 0.5)):
        torch.testing.assert_close(features, torch.full((2048,), level))


def test_only_the_stated_torchscript_file_is_opened(cache: Path, monkeypatch) -> None:
    """A TorchScript file runs code when it is opened."""
    publish_torchscript(cache)
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("an unknown file was opened"))
    with pytest.raises(ValueError, match=r"not the published file of clean-fid's Inception: its sha256 is"):
        CleanInception(device="cpu").features(pictures((8, 8)))
    for wrong in ("", None, "f58cb9b6"):
        with pytest.raises(ValueError, match=r"extractor\.sha256=.*runs code.*64 hex digits"):
            CleanInception(sha256=wrong)


def test_a_record_names_the_published_file_where_the_id_does() -> None:
    named = {
        "0676ba61": Classify(ResNet50("IMAGENET1K_V1")),
        "11ad3fa6": Classify(ResNet50("IMAGENET1K_V2")),
        "6726825d": Fid(Inception()),
    }
    for digits, metric in named.items():
        assert metric.sha256 == digits and metric.fingerprint == "", "stored rows go by the id alone"
    assert Fid(CleanInception()).sha256 == CleanInception().fingerprint == TORCHSCRIPT_SHA256


def test_the_two_extractors_share_no_column_and_no_stored_row() -> None:
    one, other = Inception(), CleanInception()
    assert (one.features_id, other.features_id) == ("torch-fidelity-inception2048", "cleanfid-clean-inception2048")
    assert other.fingerprint != CleanInception(sha256="0" * 64).fingerprint


# clean-fid's resize.


@pytest.mark.parametrize("size", [(512, 512), (480, 640), (64, 64)])
def test_clean_resize_is_an_antialiased_bicubic_without_rounding(size: tuple[int, int]) -> None:
    """torch's antialiased bicubic filter is PIL's, in another implementation."""
    (image,) = pictures(size)
    found = clean_resize(image)
    assert found.shape == (SIZE, SIZE, 3) and found.dtype == np.float32
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), atol=0.01)
    assert (found != np.round(found)).mean() > 0.9


def test_clean_resize_keeps_channels_apart_and_stays_in_range() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[:, 50:, 0] = 255
    found = clean_resize(image)
    assert found[..., 1:].max() == 0 and found.min() == 0 and found.max() == 255
    same = pictures((SIZE, SIZE))[0]
    np.testing.assert_array_equal(clean_resize(same), same)


def test_clean_resize_is_not_the_one_of_8_bit_pictures() -> None:
    (image,) = pictures((512, 512))
    rounded = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC), float)
    assert 0.1 < np.abs(clean_resize(image) - rounded).mean() < 0.5
