"""Figures on the pages are those that the committed result lines give again."""

import functools
import itertools
import pathlib
import re

import pytest

from benchmarks.common import record
from benchmarks.drop_muon import cost as drop_cost
from benchmarks.drop_muon import recipe_costs, recipe_report
from benchmarks.drop_muon import report as drop_report
from benchmarks.ef21_muon import losses_report as ef21_losses_report
from benchmarks.ef21_muon import report as ef21_report
from benchmarks.ef21_muon import workers as ef21_workers
from benchmarks.language import growth_report
from benchmarks.language import sweep_report as lm_sweep_report
from benchmarks.oracle import __main__ as oracle
from benchmarks.smoothness import __main__ as smoothness
from benchmarks.trust import report as trust_report
from tests.drift import report as drift_report
from tests.fuzz import report as fuzz_report
from tests.mutants import report as mutants_report

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FRONT = "benchmarks/README.md"
# How many of each page's figures have a spread, at least, and how many of its tables
# are printed ones, at least.
PAGES = {
    "README.md": (3, 0),
    "docs/drop_muon.md": (11, 0),
    "docs/ef21_muon.md": (0, 0),
    "docs/language.md": (8, 0),
    FRONT: (11, 0),
    "benchmarks/cnn/README.md": (8, 0),
    "benchmarks/drop_muon/README.md": (148, 11),
    "benchmarks/ef21_muon/README.md": (23, 6),
    "benchmarks/language/README.md": (8, 5),
    "benchmarks/smoothness/README.md": (0, 4),
    "benchmarks/oracle/README.md": (16, 1),
    "benchmarks/trust/README.md": (0, 4),
    "benchmarks/accelerator/README.md": (0, 0),
}

# What prints the tables of a file of result lines.
PRINTERS = {
    "drop_cost": lambda entries: map(drop_cost.table, entries),
    "drop_muon_cnn_others": lambda entries: [drop_report.tables(entries)],
    "drop_muon_recipe": lambda entries: [recipe_report.tables(entries)],
    "drop_muon_step_costs": lambda entries: map(recipe_costs.table, entries),
    "drop_muon_cnn": lambda entries: [drop_report.tables(entries)],
    "ef21_workers": lambda entries: [ef21_workers.table(entries)],
    "nanogpt": lambda entries: itertools.chain.from_iterable(
        (lm_sweep_report.rates_table(group), lm_sweep_report.table(group))
        for group in by_task(entries)
    ),
    "language_grown": lambda entries: [
        growth_report.tables(entries),
        growth_report.compared(
            entries,
            record.read(RESULTS / "nanogpt.jsonl"),
            record.read(RESULTS / "language_times.jsonl"),
        ),
    ],
    "language_times": lambda entries: [growth_report.times_table(entries)],
    "smoothness": lambda entries: itertools.chain.from_iterable(
        (smoothness.matrices_table(entry), smoothness.losses_table(entry))
        for entry in entries
    ),
    "ef21_muon_bytes": ef21_report.tables_of_bytes,
    "ef21_muon_cost": ef21_report.tables_of_cost,
    "ef21_muon_losses": ef21_losses_report.tables,
    "oracle": oracle.tables,
    "trust": lambda entries: [trust_report.table(entries)],
    "trust_drift": lambda entries: [drift_report.table(entries)],
    "trust_mutants": lambda entries: [mutants_report.table(entries)],
    "trust_fuzz": lambda entries: [fuzz_report.table(entries)],
}
MEASURED = re.compile(
    r"-?\d[\d,.]*(?: \w{1,2}| %)? \(-?\d[\d,.]*(?: \w{1,2}| %)? … "
    r"-?\d[\d,.]*(?: \w{1,2}| %)?\)"
)
RANGE = re.compile(r"(?<![\d.])\d+\.\d+ … \d+\.\d+(?! ?%)")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
FIGURE = re.compile(r"(?<![\d.`])(?:\d+\.\d{2,}(?![\d.`])|\d+(?= m?s\b))")


def by_task(entries):
    """The runs of language models that were compared with one another."""
    groups = {}
    for entry in entries:
        groups.setdefault((entry["data"], entry["preset"]), []).append(entry)
    return groups.values()


def rows(text):
    """Of all tables in a text: the cells, without the space that aligns them."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [
        tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines
    ]


@functools.cache
def printed():
    """Every table that the result lines give."""
    texts = []
    for name, printer in PRINTERS.items():
        path = RESULTS / f"{name}.jsonl"
        if path.exists():
            texts.extend(printer(record.read(path)))
    return "\n".join(texts)


@pytest.mark.parametrize("page", PAGES)
def test_medians_with_a_spread_are_printed_from_result_lines(page):
    quoted = [
        figure
        for row in rows((ROOT / page).read_text())
        for cell in row
        for figure in MEASURED.findall(cell)
    ]
    assert len(quoted) >= PAGES[page][0]
    known = set(MEASURED.findall(printed())) | step_times()
    assert [figure for figure in quoted if figure not in known] == []
    ranges = set(RANGE.findall(printed())) | {RANGE.search(x)[0] for x in step_times()}
    tables = "\n".join("|".join(row) for row in rows((ROOT / page).read_text()))
    assert set(RANGE.findall(tables)) - ranges == set()


FIRST = [("README.md", 5), (FRONT, 30), ("docs/drop_muon.md", 15)]
FIRST += [("docs/ef21_muon.md", 10), ("docs/language.md", 30)]


@pytest.mark.parametrize(("page", "least"), FIRST)
def test_figures_of_first_pages_are_printed_ones_or_their_roundings(page, least):
    """Those of two digits and more behind the point, and times."""
    quoted = {
        figure
        for row in rows((ROOT / page).read_text())
        for cell in row
        for figure in FIGURE.findall(cell)
    }
    assert len(quoted) >= least
    known = [float(figure) for figure in NUMBER.findall(printed().replace(",", ""))]
    missing = []
    for figure in quoted:
        digits = len(figure.partition(".")[2])
        if float(figure) not in {round(x, digits) for x in known}:
            missing.append(figure)
    assert missing == []


def step_times():
    """`step_time`'s page is put together from the ratios of several runs."""
    found = set()
    for entry in record.read(RESULTS / "step_time.jsonl"):
        for measured in entry["optimizers"].values():
            ratio = measured["step_time_ratio"]
            median, first, third = (ratio[k] for k in ("median", "first", "third"))
            found.add(f"{median:.2f} ({first:.2f} … {third:.2f})")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_whole_and_as_printed(page):
    known = rows(printed())
    headers = {row for row, rule in itertools.pairwise(known) if is_rule(rule)}
    own = rows((ROOT / page).read_text())
    checked, inside = 0, False
    for row, rule in zip(own, [*own[1:], ()], strict=True):
        if rule and is_rule(rule):
            inside = row in headers
            checked += inside
        elif inside and not is_rule(row):
            assert row in known
    assert checked >= PAGES[page][1]


def is_rule(row):
    return all(re.fullmatch(r":?-+:?", cell) for cell in row)


def test_every_folder_with_a_page_is_a_claim_of_the_front_page():
    linked = {cell for row in rows((ROOT / FRONT).read_text()) for cell in row}
    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("*/README.md")}
    ours = {page for page in PAGES if page.startswith("benchmarks/")}
    assert {f"benchmarks/{name}/README.md" for name in folders} == ours - {FRONT}
    assert {f"[{name}]({name}/README.md)" for name in folders} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_results_are_there(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    links += re.findall(r"`([\w./]*results/[\w./]+)`", text)
    assert links
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_pages_that_notebooks_name_are_there():
    texts = [path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb")]
    named = [
        name for text in texts for name in re.findall(r"`(benchmarks/[\w./]+)`", text)
    ]
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name
