"""Tables of a protocol as the papers print them, with what a reader has to know below them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scripts.jobs.plan import protocols
from scripts.jobs.protocols import dataset_rank
from scripts.reporting.checks import run_notes, untrained, warnings
from scripts.reporting.published import PUBLISHED
from scripts.reporting.results import Cells, Run, Selection, Series, Stat, group, series_names
from scripts.reporting.scores import (
    CLASS_METRICS,
    MEAN,
    MEAN_SHIFTS,
    MEAN_TARGETS,
    MEANS,
    Score,
    scores,
)

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
    "Rows marked * are as published; scripts/reporting/published.py names the source of each."
)
NOT_SHOWN_LINE = (
    "Published means are not shown: they are over all datasets of the protocol, with ViT-B/16 and"
    " the protocol's shots, and these runs are not."
)


@dataclass(frozen=True)
class Table:
    """Texts of a table, the first ``labels`` columns being labels."""

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int = 1


@dataclass
class Section:
    """Tables over one set of comparable runs.

    Attributes:
        title: Heading.
        protocol: Protocol name.
        source: Training dataset of a section on what crosses over to others, else empty.
        suite: Whether it holds numbers of the bundled suite.
        names: Label of each series.
        scores: Numbers.
        tables: Tables over them.
        captions: Lines that explain the numbers.
        warnings: Lines that cast doubt on them.
        notes: What the runs themselves noted.
        comparable: Series whose backbone is the one of the published numbers.
    """

    title: str
    protocol: str
    source: str
    suite: bool
    names: dict[Series, str]
    scores: list[Score]
    tables: list[Table] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comparable: list[Series] = field(default_factory=list)

    def text(self, series: Series, dataset: str, metric: str, shots: int | None = None) -> str:
        """Return a number as printed, ``-`` when it is missing."""
        wanted = (series, dataset, metric)
        for score in self.scores:
            same = (score.series, score.dataset, score.metric) == wanted
            if same and shots in (None, score.shots):
                return format_stat(score.stat)
        return "-"

    def datasets(self) -> list[str]:
        """Return the datasets in table order, without the means."""
        names = {score.dataset for score in self.scores if score.dataset not in MEANS}
        return sorted(names, key=dataset_rank)

    def rows(self) -> list[str]:
        """Return the datasets and, if there are several, their mean."""
        datasets = self.datasets()
        return [*datasets, MEAN] if len(datasets) > 1 else datasets

    def covers(
        self, metric: str, wanted: Iterable[str], shots: int, aside: Iterable[str] = ()
    ) -> bool:
        """Tell whether a comparable series has a metric on exactly the wanted datasets.

        Args:
            metric: Metric.
            wanted: Datasets that the papers' mean is over.
            shots: Images per class.
            aside: Datasets that do not enter the mean in question.
        """
        for series in self.comparable:
            found = {
                score.dataset
                for score in self.scores
                if (score.series, score.metric, score.shots) == (series, metric, shots)
            }
            if found - {*MEANS, *aside} == set(wanted):
                return True
        return False

    def shots(self) -> list[int]:
        """Return the numbers of shots there are."""
        return sorted({score.shots for score in self.scores})


def format_stat(stat: Stat) -> str:
    """Return ``84.94 ± 0.31``, or ``84.94`` where there is no deviation."""
    return f"{stat.mean:.2f}" if stat.std is None else f"{stat.mean:.2f} ± {stat.std:.2f}"


def build_sections(runs: Sequence[Run], selection: Selection) -> list[Section]:
    """Build the sections of a protocol from its finished runs.

    The bundled suite never shares a mean with other datasets: it has a section of its own. Where
    models are evaluated on other datasets, a section holds what was trained on one source.
    """
    protocol = protocols.PROTOCOLS[selection.protocol]
    crosses = protocol.crosses
    parts: dict[str, list[Run]] = {}
    for run in _without_first_stages(runs, selection) if crosses else runs:
        in_suite = "suite" if run.key.dataset in protocols.SUITE else ""
        parts.setdefault(run.source if crosses else in_suite, []).append(run)
    sections = []
    for name in sorted(parts, key=dataset_rank):
        source = name if crosses else ""
        sections.append(_section(group(parts[name]), selection, source))
    return sections


def _without_first_stages(runs: Sequence[Run], selection: Selection) -> list[Run]:
    """Leave out what only another run started from: its row would be empty but for the source."""
    stage = protocols.PROTOCOLS[selection.protocol].test_stage
    shown = {(run.key.trainer, run.key.cfg) for run in runs if run.key.stage == stage}
    own = (selection.protocol, *selection.cfg)
    return [run for run in runs if run.key.cfg in own or (run.key.trainer, run.key.cfg) in shown]


def _section(cells: Cells, selection: Selection, source: str) -> Section:
    protocol = selection.protocol
    base_to_novel = protocols.PROTOCOLS[protocol].base_to_novel
    suite = any(cell.dataset in protocols.SUITE for cell in cells)
    row = protocols.PROTOCOLS[protocol]
    how = "trained on" if row.train_stage else "shifts of"
    subject = f", {how} {source or 'an unknown source'}" if row.crosses else ""
    ordered = sorted((cell.series for cell in cells), key=lambda one: not untrained(cells, one))
    names = series_names(ordered, protocol)
    section = Section(
        title=f"{protocol}{subject}{' (Shapes suite, demonstration)' if suite else ''}",
        protocol=protocol,
        source=source,
        suite=suite,
        names=names,
        scores=scores(protocol, cells, source),
        captions=[SEEDS_LINE, *([HM_LINE] if base_to_novel else [])],
        warnings=warnings(cells, selection),
        notes=list(run_notes(cells)),
        comparable=[] if suite else [one for one in names if _vit_b16(cells, one)],
    )
    make = _base2novel if base_to_novel else _cross_dataset if row.crosses else _by_classes
    section.tables = (_few_shot if protocol == "few_shot" else make)(section)
    if suite:
        section.captions.append(SUITE_LINE)
    elif any(cell.endswith(" *") for table in section.tables for row in table.rows for cell in row):
        section.captions.append(PUBLISHED_LINE)
    elif protocol in PUBLISHED and set(section.datasets()) <= set(protocols.DATASET_ORDER):
        section.captions.append(NOT_SHOWN_LINE)
    return section


def _vit_b16(cells: Cells, series: Series) -> bool:
    runs = [run for cell, found in cells.items() if cell.series == series for run in found.values()]
    return all(run.result.get("backbone") == "ViT-B/16" for run in runs)


def _published(protocol: str, columns: Sequence[str]) -> list[list[str]]:
    """Return the reported rows that have a number in one of the columns."""
    rows = []
    for row in PUBLISHED.get(protocol, ()):
        values = [f"{row.values[name]:.2f}" if name in row.values else "-" for name in columns]
        if set(values) != {"-"}:
            rows.append([f"{row.method} *", *values])
    return rows


def _base2novel(section: Section) -> list[Table]:
    """One row per dataset and trainer, and the table of means in which the papers' rows stand."""
    metrics = {"base": "base", "novel": "novel", "hm": "HM"}
    rows = [
        [dataset, name, *(section.text(one, dataset, metric) for metric in metrics)]
        for dataset in section.rows()
        for one, name in section.names.items()
    ]
    means = [
        [name, *(section.text(one, MEAN, metric) for metric in metrics)]
        for one, name in section.names.items()
        if len(section.datasets()) > 1
    ]
    if section.covers("hm", protocols.FEW_SHOT_DATASETS, 16):
        means += _published(section.protocol, list(metrics))
    header = ["dataset", "trainer", *metrics.values()]
    tables = [Table("per dataset", header, rows, labels=2)]
    if len(means) > 1:
        tables.append(Table("means over datasets", ["trainer", *metrics.values()], means))
    return tables


def _few_shot(section: Section) -> list[Table]:
    """One row per dataset and trainer, one column per number of shots."""
    shots = section.shots()
    rows = [
        [dataset, name, *(section.text(one, dataset, "accuracy", count) for count in shots)]
        for dataset in section.rows()
        for one, name in section.names.items()
    ]
    # A column of the published row counts only where our own mean is over the same datasets.
    full = [
        str(count) if section.covers("accuracy", protocols.FEW_SHOT_DATASETS, count) else ""
        for count in shots
    ]
    rows += [[MEAN, *row] for row in _published("few_shot", full)]
    header = ["dataset", "trainer", *(f"{count} shot{'s' * (count > 1)}" for count in shots)]
    return [Table("accuracy by images per class", header, rows, labels=2)]


def _cross_dataset(section: Section) -> list[Table]:
    """Source, targets and their mean; source, shifts and theirs."""
    shifts = [name for name in section.datasets() if name in protocols.SHIFTS]
    targets = [name for name in section.datasets() if name not in (*shifts, section.source)]
    protocol = protocols.PROTOCOLS[section.protocol]
    default = protocol.targets_of("imagenet")
    own = [section.source] if section.source and protocol.train_stage else []
    heading = "mean" if "targets" in protocol.targets else "OOD mean"
    tables = []
    for title, mean, datasets, rest in (
        ("targets", MEAN_TARGETS, targets, shifts),
        ("shifts", MEAN_SHIFTS, shifts, targets),
    ):
        papers = [name for name in default if (name in protocols.SHIFTS) == (title == "shifts")]
        if not datasets:
            continue
        columns = [*own, *datasets, mean]
        rows = [
            [name, *(section.text(one, column, "accuracy") for column in columns)]
            for one, name in section.names.items()
        ]
        # Either mean is the papers' only if it is over exactly what theirs is.
        covered = section.covers("accuracy", papers, protocol.shots[0], aside=[*own, *rest])
        if section.source == "imagenet" and covered:
            rows += _published(section.protocol, [*own, *datasets, title])
        tables.append(Table(title, ["trainer", *own, *datasets, heading], rows))
    return tables


def _by_classes(section: Section) -> list[Table]:
    """One row per dataset and trainer, one column per stage, headed by its classes."""
    protocol = protocols.PROTOCOLS[section.protocol]
    classes = [protocol.classes_of(stage) for stage in protocol.stages]
    rows = [
        [dataset, name, *(section.text(one, dataset, CLASS_METRICS[half]) for half in classes)]
        for dataset in section.rows()
        for one, name in section.names.items()
    ]
    return [Table("accuracy by classes", ["dataset", "trainer", *classes], rows, labels=2)]
