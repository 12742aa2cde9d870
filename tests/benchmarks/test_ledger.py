"""Records keep what is needed to understand them, and the newest are found again."""

import json
from pathlib import Path

import pytest

from benchmarks import ledger, plot
from benchmarks.ledger import Record
from benchmarks.timing import Summary

RECORD = Record("kernels", {"layer": "64@32"}, "sparse", 1, Summary(2.0, 1.0, 3.0), Summary(4.0, 3.0, 5.0), "dense")


def test_a_record_is_one_line_with_its_circumstances(tmp_path: Path) -> None:
    ledger.append([RECORD, RECORD], tmp_path / "new")
    ledger.append([RECORD], tmp_path / "new")
    rows = list(ledger.read("kernels", tmp_path / "new"))
    assert len(rows) == 3
    row = rows[0]
    assert row["case"] == {"layer": "64@32"}
    assert row["value"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert (row["ratio"]["median"], row["against"], row["unit"], row["threads"]) == (4.0, "dense", "ms", 1)
    assert set(row["hardware"]) == {"cpu", "family_model", "isa", "cores", "memory_gib"}
    assert set(row["versions"]) == {"torch", "onednn", "mkl", "tost_kernels", "python"}
    assert row["command"].startswith("python ")
    assert row["date"].endswith("+00:00")
    assert "load" in row


def row(median: float, **changes: object) -> dict[str, object]:
    base: dict[str, object] = {"case": {"at": 1}, "variant": "v", "threads": 1, "against": None}
    where: dict[str, object] = {"hardware": {"cpu": "x"}, "versions": {"torch": "2"}}
    return base | where | {"ratio": {"median": median, "low": median, "high": median}} | changes


def test_plots_take_the_newest_of_one_machine() -> None:
    rows = [
        row(1.0, hardware={"cpu": "another"}),
        row(2.0),
        row(3.0, case={"at": 0}),
        row(4.0),
    ]
    kept = plot.newest(rows)
    assert [r["ratio"]["median"] for r in kept] == [4.0, 3.0]
    assert plot.series(kept, "at") == ([0, 1], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0])
    with pytest.raises(ValueError, match="records: expected at least one"):
        plot.newest([])


def test_the_command_line_of_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"layer": "64@32", "part": "all three", "sparsity": 0.9}
    ledger.append([Record("kernels", case, "sparse", 1, RECORD.value, RECORD.ratio, "dense float32")], tmp_path)
    plot.main(["--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "kernels.png").read_bytes().startswith(b"\x89PNG")
    for arguments, message in ((["kernel"], "got 'kernel'"), (["--results", str(tmp_path / "none")], "there is no ledger")):
        with pytest.raises(SystemExit):
            plot.main(arguments)
        assert message in capsys.readouterr().err


def test_ledger_lines_hold_only_json(tmp_path: Path) -> None:
    ledger.append([RECORD], tmp_path)
    (line,) = (tmp_path / "kernels.jsonl").read_text().splitlines()
    assert json.loads(line)["question"] == "kernels"
