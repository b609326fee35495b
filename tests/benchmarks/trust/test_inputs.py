"""`python -m benchmarks.trust.inputs`: processes end as they are said to end."""

import pathlib

import pytest

from benchmarks.common import record
from benchmarks.trust import damage, inputs, report
from benchmarks.trust.inputs_list import PROGRAMS, Input, Program

LINE = "it: error: `x` must be 1, got 2"


@pytest.mark.parametrize(
    ("status", "lines", "runs", "kind"),
    [
        (2, [LINE], False, inputs.REFUSED),
        (2, [LINE], True, inputs.OTHER),  # what is fine was refused
        (2, ["usage", LINE], False, inputs.OTHER),
        (2, ["it does not say so"], False, inputs.OTHER),
        (1, [LINE], False, inputs.OTHER),
        (-9, [], False, inputs.OTHER),
        (1, ["Traceback (most recent call last):", "x"], False, inputs.TRACEBACK),
        (0, ["Traceback (most recent call last):"], True, inputs.TRACEBACK),
        (0, [], False, inputs.RAN_WRONG),
        (0, ["100 %"], True, inputs.RAN),
        (None, [], False, inputs.HUNG),
        (None, [], True, inputs.HUNG),
    ],
)
def test_kinds_of_ends(status, lines, runs, kind):
    assert inputs.End(status, lines).kind(runs) == kind
    assert (kind in inputs.LOSSES) == (kind not in (inputs.REFUSED, inputs.RAN))


PROGRAM = """
import os, pathlib, sys
from benchmarks.common.options import refusing
*_, folder, what = sys.argv[1:]
if __name__ == "__main__":
    text = pathlib.Path(os.environ["DROPMUON_DATA"], "text", "input.txt")
    with refusing("it"):
        if what == "refuse":
            raise ValueError(f"got {text}, {os.environ['X']}, {text.read_text()[:3]}")
    if what == "fail":
        raise KeyError("x")
    print("a line")
    sys.exit(0 if what == "run" else 1)
"""


def test_a_process_is_run_and_its_end_seen(tmp_path, monkeypatch):
    (tmp_path / "some_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    given = [
        Input("{file} refuse", variables="X='1 2'"),
        Input("{data} fail"),
        Input("x run", runs=True),
        Input("x other"),
    ]
    program = Program("some_program", "--small", given)
    ends = [inputs.tried(program, g, tmp_path / g.arguments) for g in given]
    kinds = [e.kind(g.runs) for e, g in zip(ends, given, strict=True)]
    assert kinds == [inputs.REFUSED, inputs.TRACEBACK, inputs.RAN, inputs.OTHER]
    assert ends[0].lines == ["it: error: got …/data/text/input.txt, 1 2, abc"]
    monkeypatch.setitem(PROGRAMS, "fake", program)
    (tmp_path / "results").mkdir()
    entry = inputs.run("fake", tmp_path / "results")
    assert entry["losses"] == 2
    assert entry["outcomes"][inputs.TRACEBACK] == 1
    assert [line["ended"] for line in entry["inputs"]] == kinds
    assert "| `X='1 2' {file} refuse` |" in inputs.listing([entry])


def test_every_fault_is_used_and_laid(tmp_path):
    used = {given.fault for p in PROGRAMS.values() for given in p.inputs}
    assert used == set(damage.FAULTS)
    for number, (fault, files) in enumerate(damage.FAULTS.items()):
        folder = tmp_path / str(number)
        damage.lay(fault, folder)
        for name, content in files.items():
            path = pathlib.Path(folder, name)
            assert path.is_dir() if content is None else path.read_bytes() == content
    with pytest.raises(FileExistsError):
        damage.lay("", folder)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_page_has_every_input_of_today(name):
    entries = report.newest(record.read(record.COMMITTED / "trust.jsonl"))
    (entry,) = [e for e in entries if e["family"] == f"{inputs.FAMILY}{name}"]
    shown = [given.shown for given in PROGRAMS[name].inputs]
    assert [line["input"] for line in entry["inputs"]] == shown
    page = pathlib.Path(inputs.__file__).with_name("inputs.md").read_text()
    assert page == inputs.listing(entries)
