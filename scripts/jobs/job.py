"""A job: one run of ``train.py``, its command line, and when it is done.

A directory that exists proves nothing. A job is done when all of these hold:

* its ``result.json`` is whole and says ``"status": "complete"``;
* the ``job.json`` that the driver wrote beside it before the start carries the fingerprint the
  job has now: a hash of what the two config files and their ``_BASE_`` *contain* (comments,
  spelling of the YAML, which of the files a key stands in and the ``PER_DATASET`` entries of other
  datasets do not count), of the files they name (class descriptions, class names, a backbone), of
  the trailing options, of seed, shots, classes and trainer, and of the training job's fingerprint;
* what the run itself recorded in ``identity.json`` that it read, the dataset's lists, folders and
  images among it, is still the same;
* for an evaluation or a second stage, the training run it needs is done and is still the very run
  it was made from (``job.json`` keeps the hash of that run's ``result.json``).

The fingerprint leaves out keys that cannot change a result, such as the device and the data
directory (see ``dassl.config.identity``), and the revision of the code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl.config.identity import IDENTITY_NAME, digest_of, shown
from dassl.config.inputs import InputCheck
from dassl.results import RESULT_NAME, no_result, read_identity, read_object, read_result
from dassl.utils.files import atomic_write
from scripts.jobs.content import content_changes
from scripts.jobs.protocols import RunKey

PREVIOUS, RECORD = "result.previous.json", "job.json"
LOG, RESUME = "job.log", "resume.pth.tar"


@dataclass(frozen=True, eq=False)
class Job:
    """One run of ``train.py``."""

    key: RunKey
    directory: Path  # its own directory, absolute
    flags: tuple[str, ...]  # program and flags, without the device's
    options: tuple[str, ...]  # KEY VALUE, the protocol's last
    fingerprint: str  # hash of everything that decides the result (module docstring)
    parent: Job | None = None  # training job that this one evaluates or starts from
    content: dict[str, Any] = field(default_factory=dict)  # what the fingerprint is the hash of
    # Where files that the run read are now, see ``dassl.config.inputs.places_of``.
    places: dict[str, str] = field(default_factory=dict)
    # Compares recorded with present inputs; jobs of one driver share one.
    check: InputCheck = field(default_factory=InputCheck)

    def __str__(self) -> str:
        """Return the run directory's parts, which name the job."""
        return str(self.key.directory(Path()))

    def command(self, device_flags: tuple[str, ...] = ()) -> list[str]:
        """Return the whole command line."""
        return [*self.flags, *device_flags, *self.options]

    @property
    def log(self) -> Path:
        """File that takes everything the job prints."""
        return self.directory / LOG

    def parent_digest(self) -> str:
        """Return the hash of the training run's result; empty for a training job."""
        if self.parent is None:
            return ""
        try:
            content = (self.parent.directory / RESULT_NAME).read_bytes()
        except FileNotFoundError:
            return "missing"
        return hashlib.sha256(content).hexdigest()

    def to_do(self) -> str:
        """Return why the job has to run; empty when it is done."""
        # Cheapest check first; the last one looks at the dataset's files.
        if self.parent is not None and self.parent.to_do():
            return "its training run is not done"
        result = read_result(self.directory)
        if result is None:
            return no_result(self.directory)
        record = read_object(self.directory / RECORD)
        if record is None:
            return f"result of unknown origin (no {RECORD})"
        changed = self._changed(record)
        if changed:
            return changed
        if record.get("parent_result") != self.parent_digest():
            return "its training run was repeated"
        return self._other_inputs(result)

    def _changed(self, record: dict[str, Any]) -> str:
        """Name the difference to what the driver recorded before the start; "" if there is none."""
        if record.get("fingerprint") == self.fingerprint:
            return ""
        before = record.get("content")
        if not isinstance(before, dict):  # of an older version
            return "config or options changed"
        # Another hash over the same content: a file has only moved.
        lines = content_changes(before, self.content)
        return f"config or options changed: {shown(lines)}" if lines else ""

    def _other_inputs(self, result: dict[str, Any]) -> str:
        """Say which recorded inputs differ now; empty if none does or none was recorded."""
        if "identity" not in result:  # of an older version
            return ""
        identity = read_identity(self.directory)
        if identity is None or digest_of(identity) != result["identity"]:
            return f"{IDENTITY_NAME} is missing or was changed after the run"
        return shown(self.check.changes(identity.get("inputs", {}), self.places))

    def begin(self, command: list[str]) -> None:
        """Record what is about to run and move what another run left out of the way."""
        before = read_object(self.directory / RECORD)
        if before is not None and self._changed(before):
            # train.py would ignore it as well, but not without a note in the result.
            (self.directory / RESUME).unlink(missing_ok=True)
        stale = self.directory / RESULT_NAME
        if stale.exists():
            # Kept, because it may have cost hours, but under a name that no report reads.
            stale.replace(self.directory / PREVIOUS)
        record = {
            "format": 1,
            "fingerprint": self.fingerprint,
            "content": self.content,
            "parent_result": self.parent_digest(),
            "command": command,
        }
        with atomic_write(self.directory / RECORD) as file:
            file.write(json.dumps(record, indent=1, default=str) + "\n")
