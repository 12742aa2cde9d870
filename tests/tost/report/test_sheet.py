"""A table of values: the same cells in a terminal, Markdown, LaTeX and CSV."""

import csv
import io
import re

import pytest
from rich.console import Console

from tests.tost.report.made_runs import TIMES
from tost.paired import Paired, paired
from tost.report import Difference, Number, Range, Sheet, Spread, csv_tables, step_time_sheet
from tost.report.sheet import Change, Part

WON = paired([0.5, 0.5, 0.5], [0.6, 0.7, 0.65])
SHEET = Sheet(
    "50% of a_b & c",
    ("variant", "accuracy %", "against x", "kept", "layout"),
    (
        ("tost {1}", Spread([7.0, 9.0]), Difference(WON), Part(1234, 5000), "last"),
        ("[x], 1", Spread([0.07 * 100]), Difference(None), "", "first"),
    ),
    "Left -> right, ±1 < 2.",
    texts=("layout",),
    keys=(("data", "digits, small"),),
)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_values_say_themselves() -> None:
    assert str(Number(1234567)) == "1,234,567"
    assert str(Number(2.0, ".2f", "x")) == "2.00x"
    assert str(Number(None)) == str(Spread([])) == str(Difference(None)) == ""
    assert str(Spread([1.0, 3.0], ".1f", ".3f")) == "2.0 ± 1.414"
    assert str(Range(1.0, 2.5)) == "1.0 - 2.5"
    assert str(Change(29696, 0)) == "29,696 -> 0"
    assert str(Difference(WON)) == "+15.00 [+2.58, +27.42], 3/3, won"
    assert str(Difference(paired([0.9], [0.88]))) == "-2.00, 0/1, undecided"
    assert str(Difference(paired([None], [0.88]))) == "no pair"


def test_markdown_and_terminal_have_the_same_cells() -> None:
    sheet = step_time_sheet(TIMES)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(sheet.rich())
    terminal, markdown = console.export_text(), sheet.markdown()
    for cell in [*sheet.header, *(cell for row in sheet.cells for cell in row)]:
        assert cell in terminal
        assert cell in markdown
    assert markdown.splitlines()[3] == "| :-- | --: | --: | --: | --: |"


def test_a_name_is_no_markup() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(Sheet("[t]", ("[h]", "c"), (("[/x] [red]", "1"),), "[n]").rich())
    assert all(word in console.export_text(clear=False) for word in ("[t]", "[h]", "[/x] [red]", "[n]"))


def test_bars_in_cells_do_not_break_a_markdown_table() -> None:
    lines = Sheet("t", ("a | b", "c", "d"), (("x | y", "1", "z"),), texts=("d",)).markdown().splitlines()
    assert lines[2:5] == [r"| a \| b | c | d |", "| :-- | --: | :-- |", r"| x \| y | 1 | z |"]


def test_step_times_compare_with_dense() -> None:
    sheet = step_time_sheet(TIMES, threads=2)
    assert sheet.title == "Duration of a training step, 2 threads"
    assert sheet.cells == (
        ("dense", "80.0", "79.0 - 82.0", "1.00x", "channels_last"),
        ("sparse", "20.0", "19.0 - 21.0", "4.00x", "batch_last"),
        ("sparse, no compiled kernel, ghosts alive", "160.0", "159.0 - 161.0", "0.50x", "contiguous"),
    )


def test_csv_has_plain_numbers_in_columns_of_their_own() -> None:
    first, second = read(SHEET.csv())
    assert first["data"] == second["data"] == "digits, small"
    assert (first["variant"], first["layout"]) == ("tost {1}", "last")
    assert (float(first["accuracy % mean"]), first["accuracy % n"]) == (8.0, "2")
    assert float(first["accuracy % std"]) == pytest.approx(2**0.5)
    assert (second["accuracy % mean"], second["accuracy % std"]) == ("7", "")  # 0.07 * 100 is 7, and one has no spread
    points = {name: float(first[f"against x {name}"]) for name in ("mean", "low", "high")}
    assert WON.low is not None
    assert WON.high is not None
    assert points == pytest.approx({"mean": 15.0, "low": 100 * WON.low, "high": 100 * WON.high})
    assert [first[f"against x {name}"] for name in ("wins", "losses", "n", "verdict")] == ["3", "0", "3", "won"]
    assert second["against x mean"] == second["against x verdict"] == ""
    assert (first["kept"], first["kept of"], second["kept"]) == ("1234", "5000", "")


def test_tables_of_one_name_share_a_csv_file() -> None:
    other = Sheet("t", ("variant", "more"), (("z", Number(1.5)),), keys=(("data", "b"),))
    apart = Sheet("t", ("x",), (("1",),), name="summary")
    tables = csv_tables([SHEET, other, apart])
    rows = read(tables[""])
    assert [row["variant"] for row in rows] == ["tost {1}", "[x], 1", "z"]
    assert (rows[0]["more"], rows[2]["more"], rows[2]["layout"]) == ("", "1.5", "")
    assert tables["summary"] == "x\n1\n"


def test_latex_is_a_table_that_tex_can_read() -> None:
    text = SHEET.latex()
    assert text.startswith("\\begin{table}\n\\centering\n")
    assert text.endswith("\\end{table}\n")
    assert r"\caption{50\% of a\_b \& c}" in text
    assert r"\begin{tabular}{lrrrl}" in text
    assert r"Left $\rightarrow$ right, $\pm$1 $<$ 2." in text
    rules = [text.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")]
    assert rules == sorted(rules)
    rows = text[rules[0] : rules[2]].splitlines()
    assert rows[1] == r"variant & accuracy \% & against x & kept & layout \\"
    assert rows[3].startswith(r"tost \{1\} & 8.00 $\pm$ 1.41 & $+$15.00 [$+$2.58, $+$27.42], 3/3, won & 1,234 of 5,000 & last")
    assert rows[4].startswith("{}[x], 1 & 7.00 &")  # or the row above would take the bracket for its own
    cells = [re.split(r"(?<!\\)&", row) for row in (rows[1], rows[3], rows[4])]
    assert all(len(row) == 5 for row in cells)
    without = re.sub(r"\\.", "", text)
    assert without.count("{") == without.count("}")
    assert not re.search(r"[%#~^]", without)
    assert without.count("$") % 2 == 0


def test_a_backslash_is_no_command() -> None:
    told = Sheet(r"C:\new~1^2|3>2 -1", ("a",), ()).latex()
    assert r"C:\textbackslash{}new\textasciitilde{}1\textasciicircum{}2$|$3$>$2 $-$1" in told


def test_a_pair_without_a_difference_has_empty_numbers() -> None:
    nothing = Paired((), None, None, None, 0, 0, 2)
    (row,) = read(Sheet("t", ("d",), ((Difference(nothing),),)).csv())
    assert (row["d mean"], row["d low"], row["d n"], row["d verdict"]) == ("", "", "0", "undecided")
