"""DePT's released checkpoints: keys of every host, and the classes that their probe serves."""

import pytest
import torch

from dassl.engine import build_trainer
from tests.trainers.baselines import write_released
from tests.trainers.plain import SMALL, whole_clip
from tests.trainers.test_dept import FILES

FOLDERS = {"MaPLe": "MultiModalPromptLearner"}
NEW, ALL = (("DATASET.SUBSAMPLE_CLASSES", half) for half in ("new", "all"))
PROBE = {
    "film_lp_img.scale": "image_scale",
    "film_lp_img.bias": "image_shift",
    "film_lp_text.scale": "text_scale",
    "film_lp_text.bias": "text_shift",
    "linear_probe_proj.weight": "weight",
    "linear_probe_proj.bias": "bias",
}


@pytest.fixture
def build(make_config):
    """(host, trailing options) -> trainer on Shapes, 20 classes."""

    def make(host="CoOp", *options, output="run"):
        return build_trainer(make_config(f"DePT/{FILES[host]}", *SMALL, *options, output=output))

    return make


def learner_of(trainer, host):
    """A release's prompt learner with values of its own: its keys -> (our key, values)."""
    own = {n: torch.randn_like(p) for n, p in trainer.model.host.named_parameters()
           if p.requires_grad}  # fmt: skip
    found = {}
    for name, value in own.items():
        kind = name.split("prompts.")[1]
        if host != "MaPLe":
            found["ctx" if kind == "vectors" else kind] = (name, value.squeeze(0))
        elif kind == "vectors":
            found["ctx"] = (name, value)
        else:
            j, end = int(kind.split(".")[1]), kind.split(".")[2]
            key = f"compound_prompt_projections.{j - 1}" if j else "proj"
            found[f"{key}.{end}"] = (name, value)
    return found


def released(trainer, host="CoOp", rows=20, prefix="prompt_learner."):
    """The state that a release of DePT writes: the whole model, in its layout."""
    torch.manual_seed(4)
    state = {}
    for key, (_, value) in learner_of(trainer, host).items():
        if host == "MaPLe" and key == "ctx":
            state[f"{prefix}ctx"] = value[0]
            more = {f"{prefix}compound_prompts_text.{j}": v for j, v in enumerate(value[1:])}
            state.update(more)
        else:
            state[prefix + key] = value
    if host == "KgCoOp":
        state[f"{prefix}bias_vectors"] = torch.randn(1, 512)
        state[f"{prefix}meta_net.linear1.weight"] = torch.randn(512, 512)
        state[f"{prefix}meta_net.linear1.bias"] = torch.randn(512)
        if prefix:
            state["adapter.fc.0.weight"] = torch.randn(128, 512)
    frozen = whole_clip()
    if not prefix:
        frozen = {n.removeprefix("prompt_learner."): v for n, v in frozen.items()}
    for name in PROBE:
        shape = {"linear_probe_proj.weight": (rows, 128), "linear_probe_proj.bias": (rows,)}
        state[name] = torch.randn(shape.get(name, (128,)))
    return {**frozen, **state}


def write(tmp_path, state, host="CoOp", folder=None):
    folder = folder or FOLDERS.get(host, "prompt_learner")
    return write_released(tmp_path / "released", folder, state, 10)


def same(found, value):
    return torch.equal(found, value.half().float())


@pytest.mark.parametrize("prefix", ["prompt_learner.", ""])
@pytest.mark.parametrize("host", list(FILES))
def test_released_checkpoint_loads_and_evaluates(build, tmp_path, host, prefix):
    trainer = build(host)
    state = released(trainer, host, prefix=prefix)
    before = trainer.test()
    trainer.load_model(write(tmp_path, state, host), epoch=10)
    assert trainer.test() != before
    torch.manual_seed(4)
    own = dict(trainer.model.host.named_parameters())
    for name, value in learner_of(trainer, host).values():
        found = own[name] if host == "MaPLe" else own[name].squeeze(0)
        assert same(found, value), name
    probe = trainer.model.probe
    for name, ours in PROBE.items():
        assert same(getattr(probe, ours), state[name]), name
    assert probe.knows_classes()


def test_probe_moved_with_the_learner(build, tmp_path):
    trainer = build()
    state = {f"prompt_learner.{n}" if n in PROBE else n: v for n, v in released(trainer).items()}
    assert "prompt_learner.film_lp_img.scale" in state
    trainer.load_model(write(tmp_path, state, folder="DePT"), epoch=10)
    assert same(trainer.model.probe.image_scale, state["prompt_learner.film_lp_img.scale"])


@pytest.mark.parametrize(
    ("options", "rows", "serves"),
    [(NEW, 20, False), (ALL, 20, False), (ALL, 40, True), (("SEED", "1"), 19, False)],
)
def test_probe_serves_the_classes_that_it_can_have_been_trained_on(
    build, tmp_path, options, rows, serves
):
    """There are no class names in the file; a release is trained on base classes, or on all."""
    trainer = build("CoOp", *options)
    state = released(trainer, rows=rows)
    trainer.load_model(write(tmp_path, state), epoch=10)
    model, image = trainer.model.eval(), torch.randn(2, 3, 48, 48)
    assert model.probe.knows_classes() == serves
    assert same(model.backbone.text_prompts.vectors[0], state["prompt_learner.ctx"])
    assert same(model.probe.image_scale, state["film_lp_img.scale"])
    if serves:
        assert same(model.probe.weight, state["linear_probe_proj.weight"])
    else:
        assert torch.equal(model(image), model.host(image))


@pytest.mark.parametrize("half", ["base", "new"])
def test_imagenets_rows_go_by_label(build, tmp_path, half):
    trainer = build("CoOp", "DATASET.SUBSAMPLE_CLASSES", half)
    dataset, labels = trainer.dm.dataset, [(37 * k) % 1000 for k in range(20)]
    dataset.imagenet_names = [f"class {k}" for k in range(1000)]
    dataset.imagenet_labels = [[label] for label in labels]
    state = released(trainer, rows=1000)
    folder = write(tmp_path, state)
    trainer.load_model(folder, epoch=10)
    probe = trainer.model.probe
    assert probe.knows_classes()
    assert same(probe.weight, state["linear_probe_proj.weight"][labels])
    assert same(probe.bias, state["linear_probe_proj.bias"][labels])
    dataset.imagenet_labels[3] = [3, 4]  # a class of two of ImageNet's has no row
    trainer.load_model(folder, epoch=10)
    assert not probe.knows_classes()


def test_what_does_not_fit_is_refused(build, tmp_path, make_config):
    trainer = build()
    for lost, message in (
        ("film_lp_text.bias", r"Missing keys: probe\.text_shift"),
        ("linear_probe_proj.bias", r"Missing keys: probe\.bias"),
        ("prompt_learner.ctx", r"Missing keys: host\.backbone\.text_prompts\.vectors"),
        ("linear_probe_proj.weight", "Missing keys: .*probe"),  # a run of the host alone
    ):
        state = released(trainer)
        del state[lost]
        with pytest.raises(ValueError, match=message):
            trainer.load_model(write(tmp_path, state), epoch=10)
    state = released(trainer)
    state["prompt_learner.ctx"] = torch.zeros(4, 128)
    with pytest.raises(ValueError, match=r"4 vectors, the model's 16: set TRAINER\.CoOp\.N_CTX 4"):
        trainer.load_model(write(tmp_path, state), epoch=10)
    with pytest.raises(FileNotFoundError, match=r'No checkpoint at ".*DePT'):
        trainer.load_model(write(tmp_path / "other", state, folder="Model"), epoch=10)
    other = build_trainer(make_config("CoOp/base2novel", *SMALL, output="CoOp"))
    other.save_model(0, other.output_dir)
    with pytest.raises(ValueError, match="trained with method 'CoOp'"):
        trainer.load_model(other.output_dir)


def test_own_folder_comes_first(build, tmp_path):
    trainer = build()
    trainer.model.probe.bias.data.fill_(7.0)
    trainer.save_model(0, trainer.output_dir)
    write_released(tmp_path, "prompt_learner", released(trainer), 1)
    (tmp_path / "DePT").symlink_to(f"{trainer.output_dir}/DePT")
    again = build(output="again")
    again.load_model(tmp_path, epoch=1)
    assert (again.model.probe.bias == 7).all()
