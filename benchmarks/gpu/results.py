"""What a run has found, in memory and in DIR/results.json: written again after every case, so that a kill loses one case."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ledger import Record
from benchmarks.timing import Summary

FILE = "results.json"


@dataclass
class Section:
    """state: running, done, "out of time" or failed. left_out: cases for which no time was left. failures: case -> reason."""

    state: str = "running"
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)


@dataclass
class Results:
    """about: hardware, versions, commit, command. targets: rows of `targets.judge`."""

    about: dict[str, Any]
    sections: dict[str, Section] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)

    def of(self, question: str, **case: Any) -> Iterator[Record]:
        """The records of a section whose case has these entries."""
        for record in self.records:
            if record.question == question and all(record.case.get(key) == value for key, value in case.items()):
                yield record

    def failed(self) -> bool:
        """Whether anything that ran went wrong."""
        return any(section.failures for section in self.sections.values())

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / (FILE + ".part")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """What `write` wrote. Raises FileNotFoundError where there is none."""
        data = json.loads((folder / FILE).read_text())
        records = []
        for row in data["records"]:
            ratio = Summary(**row.pop("ratio")) if row["ratio"] is not None else row.pop("ratio")
            records.append(Record(**row | {"value": Summary(**row["value"]), "ratio": ratio}))
        sections = {name: Section(**section) for name, section in data["sections"].items()}
        return cls(data["about"], sections, records, data["targets"])
