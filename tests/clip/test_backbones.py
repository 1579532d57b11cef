import zipfile

import open_clip
import pytest
import torch

import clip
from clip import backbones, checkpoints, names
from clip.backbones import has_vision_transformer, input_spec, lay_out_for_gpu
from tests.conftest import tiny_model
from tests.dassl.torch_files import flip_bit_in


def assert_same_model(backbone, stock):
    images, tokens = torch.randn(2, 3, 32, 32), open_clip.tokenize(["a cat", "two dogs"])
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.encode_image(images), stock.encode_image(images), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            backbone.encode_text(tokens), stock.encode_text(tokens), rtol=1e-4, atol=1e-5
        )


def test_state_dict_file_loads_exactly(tiny_checkpoint):
    backbone = clip.load(tiny_checkpoint)
    assert (backbone.embed_dim, backbone.image_size) == (64, 32)
    assert backbone.image_mean == input_spec("ViT-B/16").mean
    stock = tiny_model().state_dict()
    assert all(torch.equal(v, stock[k]) for k, v in backbone.model.state_dict().items())
    assert_same_model(backbone, tiny_model())


def test_half_precision_state_dict_as_openai_writes_it(tmp_path):
    state = {k: v.half() for k, v in tiny_model().state_dict().items()}
    state |= {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(state, tmp_path / "half.pt")
    backbone = clip.load(str(tmp_path / "half.pt"))
    assert backbone.dtype == torch.float32
    assert torch.equal(backbone.model.visual.proj, state["visual.proj"].float())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torchscript_archive(tmp_path, monkeypatch, dtype):
    model = tiny_model().to(dtype)
    model.register_buffer("input_resolution", torch.tensor(32))  # as OpenAI's archives have it
    inputs = {
        "encode_image": torch.zeros(1, 3, 32, 32, dtype=dtype),
        "encode_text": torch.zeros(1, 77, dtype=torch.long),
    }
    path = tmp_path / "archive.pt"
    torch.jit.trace_module(model, inputs, check_trace=False).save(str(path))
    expected = torch.jit.load(str(path)).state_dict()
    monkeypatch.setattr(torch.jit, "load", None)  # it would run what is in the archive
    state = checkpoints.read_state_dict(path)
    assert state.keys() == expected.keys()
    assert all(v.dtype == expected[k].dtype for k, v in state.items())
    assert all(torch.equal(v, expected[k]) for k, v in state.items())
    assert_same_model(clip.load(str(path)), tiny_model().to(dtype).float())


@pytest.mark.parametrize("name", ["text_projection", "transformer.resblocks.0.ln_1.bias"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, name):
    state = tiny_model().state_dict()
    state[name].view(-1)[1] = float("inf")
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=rf"bad\.pt.*'{name}' in it has infinite or NaN"):
        clip.load(str(tmp_path / "bad.pt"))


def test_size_of_a_file_is_read_off_shapes_alone(tmp_path, monkeypatch):
    vision = {"layers": (1, 1, 1, 1), "width": 16, "image_size": 96}
    resnet = open_clip.model.CLIP(
        64, open_clip.model.CLIPVisionCfg(**vision), open_clip.model.CLIPTextCfg(width=64, heads=1)
    )
    for name, model in (("resnet", resnet), ("vit", tiny_model())):
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    loaded = {name: clip.load(str(tmp_path / f"{name}.pt")) for name in ("resnet", "vit")}
    bundled = clip.load("shapes")
    monkeypatch.setattr(torch, "frombuffer", None)  # what makes numbers of a file's bytes
    for name, backbone in loaded.items():
        spec = input_spec(str(tmp_path / f"{name}.pt"))
        assert spec == clip.InputSpec(backbone.image_size, backbone.image_mean, backbone.image_std)
    assert (loaded["resnet"].image_size, loaded["vit"].image_size) == (96, 32)
    assert input_spec("shapes").size == bundled.image_size


def test_size_of_a_file_that_is_no_clip(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="'text_projection' is missing"):
        input_spec(str(tmp_path / "other.pt"))
    torch.save({"text_projection": torch.ones(1)}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"part\.pt does not fit OpenAI's CLIP layout"):
        input_spec(str(tmp_path / "part.pt"))


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    state = tiny_model().state_dict()
    state["visual.proj"][0, 0] = 1e6
    torch.save(state, tmp_path / "large.pt")
    assert clip.load(str(tmp_path / "large.pt")).model.visual.proj[0, 0] == 1e6
    with pytest.raises(ValueError, match="'visual.proj' has infinite or NaN values in fp16"):
        clip.load(str(tmp_path / "large.pt"), precision="fp16")


def test_a_flipped_bit_is_noticed(tmp_path):
    torch.save(tiny_model().state_dict(), tmp_path / "bad.pt")
    flip_bit_in(tmp_path / "bad.pt", "data/7")
    with pytest.raises(ValueError, match="Bad CRC-32 for file 'bad/data/7'"):
        clip.load(str(tmp_path / "bad.pt"))


def test_training_checkpoint_with_module_prefix(tmp_path):
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in tiny_model().state_dict().items()}},
        tmp_path / "m.pt",
    )
    assert_same_model(clip.load(str(tmp_path / "m.pt")), tiny_model())


@pytest.fixture
def resnet(tmp_path):
    """A tiny ResNet of OpenAI's form, and its file."""
    stock = open_clip.model.CLIP(
        embed_dim=64,
        vision_cfg=open_clip.model.CLIPVisionCfg(layers=(1, 1, 1, 1), width=64, image_size=32),
        text_cfg=open_clip.model.CLIPTextCfg(width=64, heads=1, layers=1),
        quick_gelu=True,
    ).eval()
    torch.save(stock.state_dict(), tmp_path / "rn.pt")
    return stock, str(tmp_path / "rn.pt")


def test_resnet_checkpoint(resnet):
    stock, file = resnet
    backbone = clip.load(file)
    assert_same_model(backbone, stock)
    assert backbone.vision_transformer is None


def test_a_resnet_for_a_gpu_has_its_channels_last(resnet):
    stock, file = resnet
    backbone = clip.load(file)
    images = torch.randn(2, 3, 32, 32)
    expected = backbone.encode_image(images)
    # Kernels of one pixel or one channel lie the same either way.
    kernels = [p for p in backbone.parameters() if p.ndim == 4 and min(p.shape) > 1]
    assert not any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    lay_out_for_gpu(backbone)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert_same_model(backbone, stock)
    torch.testing.assert_close(backbone.encode_image(images), expected, rtol=1e-4, atol=1e-5)


def test_a_vision_transformer_stays_as_it_is(tiny_backbone):
    lay_out_for_gpu(tiny_backbone)
    assert all(p.is_contiguous() for p in tiny_backbone.parameters())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_low_precision_weights(tiny_checkpoint, precision, dtype):
    backbone = clip.load(tiny_checkpoint, precision=precision)
    assert backbone.dtype == dtype
    assert backbone.model.ln_final.weight.dtype == torch.float32
    features = backbone.encode_image(torch.randn(1, 3, 32, 32))
    exact = clip.load(tiny_checkpoint).encode_image(torch.zeros(1, 3, 32, 32))
    assert features.dtype == dtype
    assert features.shape == exact.shape


def test_frozen_and_in_evaluation(tiny_checkpoint):
    backbone = clip.load(tiny_checkpoint)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.model.training


def test_bundled_model():
    backbone = clip.load("shapes")
    assert (backbone.image_size, backbone.embed_dim) == (48, 128)
    assert checkpoints.BUNDLED.stat().st_size < 10 * 2**20
    pair = backbone.encode_text(backbone.tokenize(["a red circle", "a blue square"]))
    assert torch.cosine_similarity(pair[0], pair[1], dim=0) < 0.9


def test_bundled_file_round_trip(tmp_path):
    model = tiny_model().half().float()
    seen = torch.tensor([5, 49406, 49407])
    kept = model.token_embedding.weight[seen].clone()
    checkpoints.save_bundled(model, seen, tmp_path / "b.pt", {"note": 1})
    content = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(content["token_rows"].float(), kept)
    assert (tmp_path / "b.pt").stat().st_size < 3e6  # the full table alone would be 12 MB


def test_names_for_every_openai_model_exist_in_open_clip():
    for name in clip.available_models():
        if name != "shapes":
            arch = names.openai_arch(name)
            assert open_clip.get_model_config(arch)["quick_gelu"]
            assert "openai" in open_clip.list_pretrained_tags_by_model(arch)


@pytest.mark.parametrize(
    ("name", "size"),
    [("ViT-L/14@336px", 336), ("RN50x4", 288), ("siglip:ViT-B-16-SigLIP@webli", 224),
     ("openclip:ViT-B-16@laion2b_s34b_b88k", 224)],
)  # fmt: skip
def test_input_spec_needs_no_weights(name, size):
    assert input_spec(name).size == size
    if name.startswith("siglip"):
        assert input_spec(name).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("RN50", False), ("ViT-B/16", True), ("shapes", True), ("openclip:RN50@yfcc15m", False),
     ("openclip:ViT-B-16@laion2b_s34b_b88k", True), ("siglip:ViT-B-16-SigLIP@webli", False)],
)  # fmt: skip
def test_has_vision_transformer(name, expected):
    assert has_vision_transformer(name) is expected


@pytest.mark.parametrize(
    ("name", "message"),
    [("ViT-B/61", r"Nearest names: \['ViT-B/16'"), ("openclip:ViT-B-17@x", "Nearest"),
     ("openclip:ViT-B-16@laion", "laion2b_s34b_b88k"), ("nowhere/clip.pt", "no such file"),
     ("open_clip:RN50@yfcc15m", r"Nearest names: \['openclip:RN50@yfcc15m'"),
     ("ALIGN:kakaobrain/align-base", r"Nearest names: \['align:kakaobrain/align-base'"),
     ("kakaobrain/align-base", r"Nearest names: \['align:kakaobrain/align-base'"),
     ("hub:someone/something", "Nearest names.*align:<hub id or directory>")],
)  # fmt: skip
def test_unknown_names(name, message):
    for function in (clip.load, input_spec, has_vision_transformer):
        with pytest.raises(ValueError, match=message):
            function(name)


def test_unknown_precision(tiny_checkpoint):
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        clip.load(tiny_checkpoint, precision="fp8")


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "OPENAI_CACHE", tmp_path)

    def unreachable(*args, **kwargs):
        raise RuntimeError("no route")

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(ConnectionError, match="--backbone.*'shapes' needs no download"):
        clip.load("ViT-B/16")


def test_openai_file_in_the_cache_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "OPENAI_CACHE", tmp_path)
    torch.save(tiny_model().state_dict(), tmp_path / "ViT-B-16.pt")
    backbone = clip.load("ViT-B/16")
    assert backbone.name == "ViT-B/16"
    assert backbone.embed_dim == 64


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_malicious_and_broken_files_are_refused(tmp_path):
    torch.save({"text_projection": Exploit(tmp_path / "owned")}, tmp_path / "bad.pt")
    (tmp_path / "short.pt").write_bytes(b"PK\x03\x04 cut off")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save({"text_projection": torch.zeros(2, 2)}, tmp_path / "partial.pt")
    with zipfile.ZipFile(tmp_path / "fake.pt", "w") as archive:
        archive.writestr("fake/constants.pkl", b"junk")
    for name in ("bad", "short", "other", "partial", "fake"):
        with pytest.raises(ValueError, match=f"{name}\\.pt"):
            clip.load(str(tmp_path / f"{name}.pt"))
    assert not (tmp_path / "owned").exists()


def test_tokenize_matches_open_clip_and_refuses_long_texts():
    assert torch.equal(clip.tokenize(["A Photo"]), open_clip.tokenize(["A Photo"]))
    with pytest.raises(ValueError, match="takes 77"):
        clip.tokenize("cat " * 100)
