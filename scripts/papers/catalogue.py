"""The papers' tables and figures by name, read from ``catalogue.yaml``, whose head has its form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dassl.names import check_availability
from scripts.jobs.protocols import FEW_SHOT_DATASETS, PROTOCOLS, SUITE, Protocol
from scripts.reporting import published

FILE = Path(__file__).with_name("catalogue.yaml")
NOTHING_PRINTED = "none"  # of a row that the paper does not have
# Sets of the suite that base-to-novel can train on: its shifts have no training images.
SOURCE, SUITE_SHIFTS = "shapes", PROTOCOLS["ttt"].targets_of("shapes")
TRAINABLE_SUITE = tuple(name for name in SUITE if name not in SUITE_SHIFTS)
PICTURES = ("rows", "histogram", "maps")  # kinds of entries that draw trained masks


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    label: str
    protocol: str
    run: str = ""  # <trainer>/<config file>
    absent: str = ""  # why there is no run
    printed: str = ""  # row of the published table; default: the label
    backbone: str = published.USUAL  # of the published table
    setting: str = ""  # protocol of the published table
    release: str = ""  # what the release lacks, in words
    note: str = ""
    value: float | None = None  # of a sweep

    @property
    def trainer(self) -> str:
        """Its method."""
        return self.run.partition("/")[0]

    @property
    def cfg(self) -> str:
        """Stem of its config file."""
        return self.run.partition("/")[2]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the row has to know, whatever the runs give."""
        return tuple(filter(None, (self.release, self.note)))


@dataclass(frozen=True)
class Entry:
    """A table or figure of a paper."""

    name: str
    title: str
    kind: str
    protocol: Protocol
    rows: tuple[Row, ...]
    paper: str = ""
    table: str = ""
    axis: str = ""  # what a sweep's values are
    backbones: bool = False
    named: tuple[str, ...] = ()  # default datasets, if they are not the protocol's
    notes: tuple[str, ...] = ()

    def datasets(self) -> list[str]:
        """Datasets of the paper's table; a source that is trained on comes first."""
        if not self.protocol.crosses:
            return list(self.named or FEW_SHOT_DATASETS)
        source = ["imagenet"] if self.protocol.train_stage else []
        return [*source, *self.protocol.targets_of("imagenet")]

    def available(self) -> list[str]:
        """All datasets that can be asked for: the papers', then the bundled suite's."""
        if not self.protocol.crosses:
            return [*FEW_SHOT_DATASETS, *TRAINABLE_SUITE]
        return [*self.datasets(), SOURCE, *self.protocol.targets_of(SOURCE)]


@cache
def read_catalogue() -> dict[str, Entry]:
    """Return all entries by name, in the order of the papers."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {
        name: _entry(name, entry, content["releases"]) for name, entry in content["entries"].items()
    }


def find_entry(name: str) -> Entry:
    """Return an entry; a ValueError names those there are."""
    entries = read_catalogue()
    return entries[check_availability(name, entries, "name", " (docs/papers.md)")]


def _entry(name: str, given: dict[str, Any], releases: dict[str, str]) -> Entry:
    simple = {
        key: given[key] for key in ("title", "kind", "paper", "table", "axis") if key in given
    }
    rows = tuple(
        Row(
            label,
            **{
                "protocol": given["protocol"],
                **row,
                "release": releases[row["release"]] if "release" in row else "",
            },
        )
        for label, row in given["rows"].items()
    )
    return Entry(
        name,
        protocol=PROTOCOLS[given["protocol"]],
        rows=rows,
        backbones=given.get("backbones", False),
        named=tuple(given.get("datasets", ())),
        notes=tuple(given.get("notes", ())),
        **simple,
    )
