"""A tiny random CLIP in OpenAI's format, shared by all tests."""

import copy
import gc
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import filelock
import open_clip
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from clip import checkpoints
from clip.backbones import Backbone, InputSpec
from tests import forked_python

# Files of few tests that take long, or wait.
LONG = (
    *("test_interruption.py", "test_datasets_guide.py", "trainers/test_time/test_sharing.py"),
    *("dassl/distributed/test_machines.py", "dassl/test_distributed.py", "scripts/test_gpu.py"),
    *("scripts/exporting/test_export.py", "scripts/jobs/test_warm.py", "scripts/test_wise_ft.py"),
    *("scripts/benchmarks/test_gpu.py", "scripts/reporting/test_page_browser.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Let files be begun in the order below rather than in pytest-xdist's own."""
    if hasattr(config.option, "loadscopereorder"):  # it is installed
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the files, begin with those that take long.

    Begun last, one would leave the other processes without work.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    number = Counter(item.path for item in items)
    long = {Path(__file__).parent / name for name in LONG}
    assert all(path.is_file() for path in long), "LONG names the files of tests"
    items.sort(key=lambda item: (item.path not in long, -number[item.path]))


def pytest_collection_finish() -> None:
    """Look for garbage among what tests make only: all that was imported takes 0.3 s each time."""
    gc.freeze()


MEAN = STD = (0.5, 0.5, 0.5)


def tiny_model(layers: int = 2, quick_gelu: bool = True) -> torch.nn.Module:
    """32 pixels, patches of 16, width 128 with 2 heads, D = 64."""
    torch.manual_seed(0)
    return open_clip.model.CLIP(
        embed_dim=64,
        vision_cfg=open_clip.model.CLIPVisionCfg(
            layers=layers, width=128, patch_size=16, image_size=32
        ),
        text_cfg=open_clip.model.CLIPTextCfg(width=128, heads=2, layers=layers),
        quick_gelu=quick_gelu,
    ).eval()


_TINY: list[torch.nn.Module] = []


@pytest.fixture
def tiny_backbone() -> Backbone:
    """A fresh copy; tests may change it."""
    if not _TINY:
        _TINY.append(tiny_model())
    backbone = Backbone(copy.deepcopy(_TINY[0]), "tiny", InputSpec(32, MEAN, STD))
    return backbone.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny CLIP as a state-dict file."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.pt"
    torch.save(tiny_model().state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def whole_shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data root with the bundled suite drawn into it, for tests that count its pictures."""
    from datasets.shapes import ensure_rendered

    folder = tmp_path_factory.getbasetemp()
    # Workers of pytest-xdist have folders beside each other: the first one draws it for all.
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with filelock.FileLock(shared / "whole.lock"):
        ensure_rendered(shared / "whole")
    return str(shared / "whole")


@pytest.fixture(scope="session", autouse=True)
def undrawn_weights() -> Iterator[None]:
    """Draw no random weights for a model that gets its own at once: most of a small run's start.

    PyTorch's generator is left as if they had been drawn, so that all numbers stay the same.
    """
    build = checkpoints.build_model_from_openai_state_dict
    states: dict[Any, torch.Tensor] = {}  # of the generator: before, and of what model, to behind

    def build_undrawn(weights: dict[str, torch.Tensor], **how: Any) -> torch.nn.Module:
        shapes = tuple((name, value.shape) for name, value in weights.items())
        before = torch.get_rng_state().numpy().tobytes(), shapes
        if before not in states:
            model = build(weights, **how)
            states[before] = torch.get_rng_state()
            return model
        with (
            mock.patch.object(torch.Tensor, "normal_", lambda self, *_, **__: self),
            mock.patch.object(torch.Tensor, "uniform_", lambda self, *_, **__: self),
        ):
            model = build(weights, **how)
        torch.set_rng_state(states[before])
        return model

    with mock.patch.object(checkpoints, "build_model_from_openai_state_dict", build_undrawn):
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced_files() -> Iterator[None]:
    """Wait for no disk: what is written here need not outlast a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def forking_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A command that runs programs as ``python`` does, but has imported PyTorch already."""
    with forked_python.forking_python(tmp_path_factory.mktemp("python")) as command:
        yield command


TEST_PICTURES = 5  # of a class, in ``shapes_root``


@pytest.fixture(scope="session")
def shapes_root(whole_shapes: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data root with the bundled suite but few test pictures.

    Every run ends with an evaluation, which costs more than the one epoch that most tests train.
    """
    from datasets.shapes import CHECKSUMS

    root = tmp_path_factory.mktemp("data")
    source, target = Path(whole_shapes, "shapes"), root / "shapes"
    target.mkdir()
    sums, kept = json.loads((source / CHECKSUMS).read_text()), {}
    for file in source.glob("split_zhou_*.json"):
        parts = json.loads(file.read_text())
        # A picture's file is named by its number in its class.
        parts["test"] = [row for row in parts["test"] if int(Path(row[0]).stem) < TEST_PICTURES]
        (target / file.name).write_text(json.dumps(parts))
        kept |= {path: sums[path] for rows in parts.values() for path, _, _ in rows}
    for path in kept:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, target / path)
    (target / CHECKSUMS).write_text(json.dumps(kept))
    shutil.copy2(source / "version.txt", target)
    return str(root)


@pytest.fixture(autouse=True)
def same_threads():
    """Undo ``torch.set_num_threads``: with a pool of threads, a fork of a later test would hang."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def ended_workers(monkeypatch: pytest.MonkeyPatch):
    """End the worker processes of a test's loaders with it.

    Left to the garbage collector they may lose their queues before they are told to stop, and then
    it waits five seconds for each.
    """
    started: list[_MultiProcessingDataLoaderIter] = []
    start = _MultiProcessingDataLoaderIter.__init__

    def noted(self, *args, **kwargs):
        started.append(self)
        start(self, *args, **kwargs)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__init__", noted)
    yield
    for iterator in started:
        iterator._shutdown_workers()


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch):
    """(owner, name) -> a list that gets the arguments of each call; ``owner.name`` works on."""

    def count(owner, name: str) -> list:
        calls: list = []
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            calls.append((*args, *kwargs.values()))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
        return calls

    return count


@pytest.fixture
def late_reading(monkeypatch: pytest.MonkeyPatch):
    """Let the CPU's numbers wait as those of a GPU do."""
    monkeypatch.setattr("dassl.utils.readings.LATE_DEVICES", {"cpu"})


REPOSITORY = Path(__file__).resolve().parents[1]


def config_of_run(root, output, method: str | None, *options: str, dataset="shapes", flags=()):
    """What train.py reads from these flags and files, on the CPU with seed 1."""
    from scripts.training.config import build_config
    from scripts.training.parser import argument_parser

    words = ["--root", str(root), "--output-dir", str(output), "--seed", "1", "--device", "cpu"]
    words += ["--dataset-config-file", str(REPOSITORY / f"configs/datasets/{dataset}.yaml")]
    if method:
        words += ["--config-file", str(REPOSITORY / f"configs/trainers/{method}.yaml")]
    return build_config(argument_parser().parse_args([*words, *flags, *options]))


@pytest.fixture
def make_config(shapes_root: str, tmp_path: Path):
    """(method config file or None, trailing options, flags) -> the config of a run on Shapes."""

    def make(method: str | None, *options: str, output: str = "run", **how):
        return config_of_run(shapes_root, tmp_path / output, method, *options, **how)

    return make
