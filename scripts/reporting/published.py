"""Numbers that papers print, read from ``published.yaml``, whose head explains its form.

They are quoted beside our own means only when those cover the same datasets, with the same backbone
and shots.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from scripts.jobs.protocols import SHIFTS

FILE = Path(__file__).with_name("published.yaml")
USUAL = "ViT-B/16"


@dataclass(frozen=True)
class Published:
    """One printed row."""

    method: str  # as printed
    backbone: str  # as ``result.json`` has it
    values: dict[str, float]  # accuracy in percent by column of the protocol's table of means
    source: str  # where the numbers were read, and what to know before comparing
    # The same of single datasets, where the paper has them.
    by_dataset: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method, with its backbone where that is not the usual one."""
        return self.method if self.backbone == USUAL else f"{self.method} ({self.backbone})"


@cache  # every section of a report asks
def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return content


def read_tables() -> list[dict[str, Any]]:
    """Return all tables, each with its paper's full title as ``source``."""
    content = _content()
    return [
        {**table, "source": f"{content['papers'][table['paper']]}; {table['table']}"}
        for table in content["tables"]
    ]


def find_table(paper: str, table: str, backbone: str, protocol: str = "") -> dict[str, Any]:
    """Return a table by what it is called; ``protocol`` if several of a backbone have the name."""
    found = [
        one
        for one in read_tables()
        if (one["paper"], one["table"], one["backbone"]) == (paper, table, backbone)
        and protocol in ("", one["protocol"])
    ]
    if len(found) != 1:
        raise LookupError(f"{FILE.name} has {len(found)} tables {paper}, {table!r}, {backbone}")
    return found[0]


def rows_of(table: dict[str, Any]) -> Iterator[Published]:
    """Yield a table's rows of means, ``remade`` ones as the mean of the row's shifted datasets."""
    for method, row in table["rows"].items():
        given = row if isinstance(row, dict) else {"values": row}
        # A row that lists datasets has their mean beside them; reports quote only means.
        listed = given["values" if "values" in given else "mean"]
        pairs = listed if isinstance(listed, dict) else zip(table["columns"], listed, strict=True)
        values: dict[str, float] = dict(pairs)
        if name := table.get("remade"):
            values |= {name: statistics.fmean(values[one] for one in values if one in SHIFTS)}
        by_dataset = {
            dataset: dict(zip(table["columns"], printed, strict=True))
            for dataset, printed in given.items()
            if "mean" in given and dataset != "mean"
        }
        source = given.get("source", table["source"])
        yield Published(method, table["backbone"], values, source, by_dataset)


def trainer_of(method: str, protocol: str) -> str:
    """Return the name of our trainer for a printed method; its own name if it is the same."""
    names: dict[str, dict[str, str]] = _content()["trainers"]
    return names.get(protocol, {}).get(method) or names["everywhere"].get(method, method)


def shown(protocol: str) -> list[Published]:
    """Return the rows that a protocol's report may print, in the file's order."""
    return [
        row
        for table in read_tables()
        if table["protocol"] == protocol
        for row in rows_of(table)
        if table.get("shown") == "all" or row.method in table.get("shown", ())
    ]
