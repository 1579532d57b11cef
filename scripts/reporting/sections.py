"""Tables of a protocol as the papers print them, with what a reader has to know below them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scripts.jobs.protocols import (
    DATASET_ORDER,
    FEW_SHOT_DATASETS,
    PROTOCOLS,
    REPO,
    SHIFTS,
    SUITE,
    Protocol,
    dataset_rank,
)
from scripts.reporting import published
from scripts.reporting.checks import run_notes, warnings
from scripts.reporting.results import CLASS_METRICS, Selection, with_labels
from scripts.reporting.scores import MEAN, MEAN_SHIFTS, MEAN_TARGETS, MEANS, score

if TYPE_CHECKING:
    import pandas as pd

SUITE_LINE = (
    "The Shapes suite is a bundled demonstration on rendered pictures with a tiny model; its"
    " numbers are not comparable to published ones."
)
SEEDS_LINE = (
    "Accuracy in percent: mean ± sample standard deviation (ddof = 1) over seeds; a single seed"
    " prints no deviation. The deviation of a mean over datasets is that of the seeds' means."
)
HM_LINE = (
    "HM = 2bn/(b + n) of the means over seeds (its deviation is over the seeds' own HMs); in the"
    " mean row of the mean base and the mean novel accuracy."
)
PUBLISHED_LINE = (
    f"Rows marked * are as published; {published.FILE.relative_to(REPO)} names the source of each."
)
NOT_SHOWN_LINE = (
    "Published means are not shown: they are over all datasets of the protocol, with ViT-B/16 and"
    " the protocol's shots, and these runs are not."
)


@dataclass(frozen=True)
class Table:
    """A table of texts; the first ``labels`` columns are labels."""

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int = 1


@dataclass
class Section:
    """Tables over one set of comparable runs."""

    title: str
    protocol: Protocol
    source: str  # training dataset if the protocol crosses to others, else empty
    suite: bool  # holds numbers of the bundled suite
    series: list[str]  # labels of the rows
    untrained: list[str]  # those of them in which nothing is trained
    runs: pd.DataFrame  # with the labels of `scripts.reporting.results.with_labels`
    scores: pd.DataFrame  # from `scripts.reporting.scores.score`
    backbones: dict[str, str]  # of each series whose runs all have the same; empty for the suite
    captions: list[str]  # lines that explain the numbers
    warnings: list[str]  # lines that cast doubt on them
    notes: list[str]  # what the runs themselves noted
    tables: list[Table] = field(default_factory=list)

    def datasets(self) -> list[str]:
        """Return the datasets in table order, without the means."""
        return sorted(set(self.scores.dataset) - set(MEANS), key=dataset_rank)

    def places(self) -> list[str]:
        """Return the datasets and, if there are several, their mean."""
        datasets = self.datasets()
        return [*datasets, MEAN] if len(datasets) > 1 else datasets

    def shots(self) -> list[int]:
        """Return the numbers of shots there are."""
        return sorted(set(self.scores.shots))

    def zero_shot(self) -> list[str]:
        """Return the series that use no training image.

        What is not trained may still be made from training images, as Tip-Adapter's cache is: then
        it changes with their number, or numbers of it are chosen on images.
        """
        found = []
        for name in self.untrained:
            own = self.scores[self.scores.series == name]
            same = own.groupby(["dataset", "metric"])["mean"].nunique().eq(1).all()
            if same and not own.val_policy.any():
                found.append(name)
        return found

    def rows(self, places: Sequence[str], key: str, columns: Iterable[object]) -> list[list[str]]:
        """Return the numbers of every place and series as printed, ``-`` where one is missing.

        Args:
            places: Datasets or means; empty if ``key`` is the dataset.
            key: What the columns are values of: metric, shots or dataset.
            columns: Its values.
        """
        import pandas as pd

        index = ["dataset", "series"] if places else ["series"]
        texts = self.scores.assign(text=self.scores.apply(_text, axis=1))
        wide = texts.pivot(index=index, columns=key, values="text")
        wanted = pd.MultiIndex.from_product([places, self.series]) if places else self.series
        # reindex adds rows for places and series that have no number at all.
        wide = wide.reindex(index=wanted, columns=list(columns)).astype(object).fillna("-")
        return wide.reset_index().to_numpy().tolist()

    def covered(
        self,
        wanted: Iterable[str],
        metric: str = "accuracy",
        shots: int | None = None,
        aside: Iterable[str] = (),
    ) -> set[str]:
        """Return the backbones with which a series has a metric on exactly the wanted datasets.

        Args:
            wanted: Datasets that the papers' mean is over.
            metric: As in the scores.
            shots: Images per class; default: the protocol's.
            aside: Datasets that do not enter the mean in question.
        """
        covering = self.covering(wanted, metric, shots, aside)
        return {self.backbones.get(series, "") for series in covering}

    def covering(
        self,
        wanted: Iterable[str],
        metric: str = "accuracy",
        shots: int | None = None,
        aside: Iterable[str] = (),
    ) -> set[str]:
        """Return the series that have a metric on exactly the wanted datasets; see `covered`."""
        shots = self.protocol.shots[0] if shots is None else shots
        same = self.scores[(self.scores.metric == metric) & (self.scores.shots == shots)]
        return {
            str(series)
            for series, own in same.groupby("series")
            if set(own.dataset) - {*MEANS, *aside} == set(wanted)
        }

    def published(self, columns: Mapping[str, set[str]]) -> list[list[str]]:
        """Return the papers' rows that have a number beside ours.

        ``columns`` are names in the papers' tables, with the backbones ours are `covered` with.
        """
        rows = []
        for row in published.shown(self.protocol.name):
            texts = [
                f"{row.values[name]:.2f}" if name in row.values and row.backbone in ours else "-"
                for name, ours in columns.items()
            ]
            if set(texts) != {"-"}:
                rows.append([f"{row.label} *", *texts])
        return rows


def _text(score: pd.Series) -> str:
    """Return ``84.94 ± 0.31``, or ``84.94`` where there is no deviation (NaN)."""
    deviation = f" ± {score['std']:.2f}" if score["std"] == score["std"] else ""
    return f"{score['mean']:.2f}{deviation}"


def build_sections(runs: pd.DataFrame, selection: Selection) -> list[Section]:
    """Build the sections of a protocol from its finished runs.

    The bundled suite never shares a mean with other datasets: it has a section of its own. If the
    protocol crosses to other datasets, each source has a section.
    """
    protocol = PROTOCOLS[selection.protocol]
    if protocol.crosses:
        runs = _without_first_stages(runs, selection)
    # groupby leaves out NaN, which map gives to all that is not in the suite.
    parts = runs.source if protocol.crosses else runs.dataset.isin(SUITE).map({True: "suite"})
    grouped = {str(name): part for name, part in runs.groupby(parts.fillna(""))}
    return [
        _section(grouped[name], selection, name if protocol.crosses else "")
        for name in sorted(grouped, key=dataset_rank)
    ]


def _without_first_stages(runs: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    """Drop runs that only others started from: their rows would be empty but for the source."""
    tested = runs[runs.stage == PROTOCOLS[selection.protocol].test_stage]
    shown = set(zip(tested.trainer, tested.cfg, strict=True))
    own = (selection.protocol, *selection.cfg)
    pairs = zip(runs.trainer, runs.cfg, strict=True)
    return runs[[pair[1] in own or pair in shown for pair in pairs]]


def _section(runs: pd.DataFrame, selection: Selection, source: str) -> Section:
    protocol = PROTOCOLS[selection.protocol]
    runs = with_labels(runs, protocol.name)
    # One dataset of the suite is enough: no published number may stand beside its numbers.
    suite = bool(runs.dataset.isin(SUITE).any())
    how = "trained on" if protocol.train_stage else "shifts of"
    subject = f", {how} {source or 'an unknown source'}" if protocol.crosses else ""
    grouped = runs.groupby("series", sort=False)
    trains, backbones = grouped.trains.any(), grouped.backbone.unique()
    section = Section(
        title=f"{protocol.name}{subject}{' (Shapes suite, demonstration)' if suite else ''}",
        protocol=protocol,
        source=source,
        suite=suite,
        series=sorted(trains.index, key=trains.get),  # methods without training first
        untrained=[name for name in trains.index if not trains[name]],
        runs=runs,
        scores=score(runs, protocol, source),
        # A series of mixed backbones compares with nothing; a warning names it.
        backbones={} if suite else {k: v[0] for k, v in backbones.items() if len(v) == 1},
        captions=[SEEDS_LINE, *([HM_LINE] if protocol.base_to_novel else [])],
        warnings=warnings(runs, selection),
        notes=list(run_notes(runs)),
    )
    if protocol.name == "few_shot":
        section.tables = _few_shot(section)
    elif protocol.crosses:
        section.tables = _cross_dataset(section)
    else:
        section.tables = _by_classes(section)
    if suite:
        section.captions.append(SUITE_LINE)
    elif any(cell.endswith(" *") for table in section.tables for row in table.rows for cell in row):
        section.captions.append(PUBLISHED_LINE)
    elif published.shown(protocol.name) and set(section.datasets()) <= set(DATASET_ORDER):
        section.captions.append(NOT_SHOWN_LINE)
    return section


def _by_classes(section: Section) -> list[Table]:
    """One row per dataset and trainer, one column per stage, headed by its classes.

    Base to novel also has a column for the harmonic mean, and a table of means with papers' rows.
    """
    protocol = section.protocol
    classes = [protocol.classes_of(stage) for stage in protocol.stages]
    if not protocol.base_to_novel:
        rows = section.rows(section.places(), "metric", [CLASS_METRICS[half] for half in classes])
        return [Table("accuracy by classes", ["dataset", "trainer", *classes], rows, labels=2)]
    metrics = {"base": "base", "novel": "novel", "hm": "HM"}
    rows = section.rows(section.places(), "metric", metrics)
    tables = [Table("per dataset", ["dataset", "trainer", *metrics.values()], rows, labels=2)]
    # Even without papers' rows, several trainers are easier to compare in a table of means.
    means = [row[1:] for row in rows if row[0] == MEAN]
    means += section.published(dict.fromkeys(metrics, section.covered(FEW_SHOT_DATASETS, "hm")))
    if len(means) > 1:
        tables.append(Table("means over datasets", ["trainer", *metrics.values()], means))
    return tables


def _few_shot(section: Section) -> list[Table]:
    """One row per dataset and trainer, one column per number of shots."""
    shots = section.shots()
    rows = section.rows(section.places(), "shots", shots)
    # A column of a published row counts only where our own mean is over the same datasets.
    columns = {str(count): section.covered(FEW_SHOT_DATASETS, shots=count) for count in shots}
    rows += [[MEAN, *row] for row in section.published(columns)]
    header = ["dataset", "trainer", *(f"{count} shot{'s' * (count > 1)}" for count in shots)]
    return [Table("accuracy by images per class", header, rows, labels=2)]


def _cross_dataset(section: Section) -> list[Table]:
    """Source, targets and their mean; source, shifts and theirs."""
    protocol = section.protocol
    own = [section.source] if section.source and protocol.train_stage else []
    shifts = [name for name in section.datasets() if name in SHIFTS]
    targets = [name for name in section.datasets() if name not in (*shifts, section.source)]
    heading = "mean" if "targets" in protocol.targets else "OOD mean"
    tables = []
    for title, mean, datasets, rest in (
        ("targets", MEAN_TARGETS, targets, shifts),
        ("shifts", MEAN_SHIFTS, shifts, targets),
    ):
        if not datasets:
            continue
        rows = section.rows((), "dataset", [*own, *datasets, mean])
        if section.source == "imagenet":
            # A mean compares with the papers' only if it is over exactly the same datasets.
            default = protocol.targets_of("imagenet")
            papers = [name for name in default if (name in SHIFTS) == (title == "shifts")]
            covered = section.covered(papers, aside=[*own, *rest])
            rows += section.published(dict.fromkeys([*own, *datasets, title], covered))
        tables.append(Table(title, ["trainer", *own, *datasets, heading], rows))
    return tables
