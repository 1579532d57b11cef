"""Names shared by the job driver and the reports: protocols, dataset groups, run directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.rows import ROWS

REPO = Path(__file__).resolve().parents[2]


def work_folder(repo: Path = REPO) -> Path:
    """Return where data and output lie by default: the clone of the project, if there is one.

    Where it is installed as a package, that is the current folder.
    """
    return repo if (repo / "pyproject.toml").is_file() else Path.cwd()


ALL_SHOTS = (1, 2, 4, 8, 16)
ALL_IMAGES = -1  # in place of a number of shots

FEW_SHOT_DATASETS = tuple(row.config for row in ROWS if row.group == "few_shot")


def _target_groups() -> dict[str, dict[str, tuple[str, ...]]]:
    groups: dict[str, dict[str, tuple[str, ...]]] = {
        name: {"targets": tuple(other for other in FEW_SHOT_DATASETS if other != name)}
        for name in FEW_SHOT_DATASETS
    }
    for row in ROWS:
        if row.trained_on:
            of_source = groups.setdefault(row.trained_on, {})
            of_source[row.group] = (*of_source.get(row.group, ()), row.config)
    return groups


# By source and group, what its models are evaluated on by default; a protocol names its groups.
TARGET_GROUPS = _target_groups()
IMAGENET_SHIFTS = TARGET_GROUPS["imagenet"]["shifts"]
SHIFTS = tuple(row.config for row in ROWS if row.group in ("shifts", "extra"))
SUITE = tuple(row.config for row in ROWS if row.bundled)
# Other datasets, without published numbers, follow by name, as do the user's own.
DATASET_ORDER = tuple(row.config for row in ROWS if row.published or row.bundled)


@dataclass(frozen=True)
class Protocol:
    """How one protocol splits classes and names its stages."""

    name: str  # on the command line and of the directory under the output
    # Directory of the training runs; empty when the protocol trains nothing, and evaluates the
    # pre-trained model or what a method's first stage made of it.
    train_stage: str
    train_classes: str  # ``DATASET.SUBSAMPLE_CLASSES`` while training
    test_stage: str  # directory of the evaluation runs; empty when training's own test is all
    test_classes: str  # ``DATASET.SUBSAMPLE_CLASSES`` of the evaluation runs
    shots: tuple[int, ...]  # default images per class
    trainer: str = "LightRA"
    # Groups of ``TARGET_GROUPS`` that one source's model is evaluated on; empty where the dataset
    # of the training is the one to test on.
    targets: tuple[str, ...] = ()

    def classes_of(self, stage: str) -> str:
        """Return the classes (all, base or new) that runs of a stage are tested on."""
        return self.train_classes if stage == self.train_stage else self.test_classes

    @property
    def stages(self) -> tuple[str, ...]:
        """Directories of its stages, training first."""
        return tuple(filter(None, (self.train_stage, self.test_stage)))

    @property
    def crosses(self) -> bool:
        """Whether it trains on one source and evaluates on other datasets."""
        return bool(self.targets)

    def targets_of(self, source: str) -> list[str]:
        """Return what a source's model is evaluated on by default; empty for an unknown source."""
        groups = TARGET_GROUPS.get(source, {})
        return [name for group in self.targets for name in groups.get(group, ())]

    @property
    def base_to_novel(self) -> bool:
        """Whether it tests base and new classes apart, so that a harmonic mean sums it up."""
        return [self.classes_of(stage) for stage in self.stages] == ["base", "new"]


# A row is all that a new protocol needs: reports show a column per stage (reporting.results has
# CLASS_METRICS), and the harmonic mean where the stages are base and new classes.
PROTOCOLS = {
    row.name: row
    for row in (
        Protocol("base2novel", "train_base", "base", "test_new", "new", (16,)),
        Protocol("few_shot", "train", "all", "", "", ALL_SHOTS),
        Protocol(
            "cross_dataset", "train", "all", "test", "all", (16,), targets=("targets", "shifts")
        ),
        # RAda's efficient fine-tuning (arXiv:2507.15480): base-to-novel on frozen encoders.
        Protocol("eft", "train_base", "base", "test_new", "new", (16,), trainer="RAda"),
        # Its full fine-tuning, on all images, and its test-time training, on shifts only.
        Protocol(
            "fft",
            *("train", "all", "test", "all"),
            (ALL_IMAGES,),
            trainer="RAdaFT",
            targets=("shifts", "extra"),
        ),
        Protocol("ttt", "", "all", "test", "all", (16,), trainer="RAdaTTT", targets=("shifts",)),
    )
}


@dataclass(frozen=True)
class RunKey:
    """What identifies a run; its directory is made of nothing else."""

    protocol: str
    stage: str
    dataset: str
    shots: int
    trainer: str
    cfg: str
    seed: int

    def directory(self, output: Path) -> Path:
        """Return the run's directory under ``output``."""
        shots = "all" if self.shots == ALL_IMAGES else self.shots
        parts = (self.protocol, self.stage, self.dataset, f"shots_{shots}")
        return output.joinpath(*parts, self.trainer, self.cfg, f"seed{self.seed}")

    @classmethod
    def parse(cls, directory: str | Path) -> RunKey | None:
        """Read a key back from a run directory; None when the path has another layout."""
        parts = Path(directory).parts[-7:]
        if len(parts) < 7 or parts[0] not in PROTOCOLS:
            return None
        protocol, stage, dataset, shots, trainer, cfg, seed = parts
        shots, seed = shots.removeprefix("shots_"), seed.removeprefix("seed")
        if not ((shots.isdecimal() or shots == "all") and seed.isdecimal()):
            return None
        count = ALL_IMAGES if shots == "all" else int(shots)
        return cls(protocol, stage, dataset, count, trainer, cfg, int(seed))


def source_of(shift: str) -> str:
    """Return the dataset that this one is a shift of; empty if it is none."""
    for source, groups in TARGET_GROUPS.items():
        if shift in (*groups.get("shifts", ()), *groups.get("extra", ())):
            return source
    return ""


def dataset_rank(dataset: str) -> tuple[int, str]:
    """Sort key: the field's order first, the user's own datasets after it by name."""
    known = dataset in DATASET_ORDER
    return (DATASET_ORDER.index(dataset) if known else len(DATASET_ORDER), dataset)


def split_words(words: Sequence[str] | None) -> list[str]:
    """Split list values at spaces and commas: ``--devices "0 1"`` is ``--devices 0 1``."""
    split = [part for word in words or () for part in word.replace(",", " ").split()]
    return list(dict.fromkeys(split))


def read_shots(words: Sequence[str]) -> tuple[int, ...]:
    """Read ``--shots``: numbers of images per class, or ``all``."""
    numbers = [word for word in split_words(words) if word != "all"]
    try:
        shots = read_integers("--shots", numbers, least=1)
    except ValueError as error:
        raise ValueError(f"{str(error).removesuffix('.')}, nor all.") from None
    return (*shots, *[ALL_IMAGES] * (len(numbers) < len(split_words(words))))


def read_integers(flag: str, words: Sequence[str], least: int) -> tuple[int, ...]:
    """Read the values of a flag that takes whole numbers from ``least`` on."""
    for word in split_words(words):
        if not word.isdecimal() or int(word) < least:
            raise ValueError(f"{flag}: {word!r} is no whole number from {least} on.")
    return tuple(dict.fromkeys(int(word) for word in split_words(words)))
