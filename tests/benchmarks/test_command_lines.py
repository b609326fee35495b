"""Every wrong value of every option of every program: one line, and exit status 2."""

import argparse
import importlib
import pathlib
import re
import subprocess

import pytest

from benchmarks.common import options as types
from benchmarks.common import record
from benchmarks.drop_muon import report as drop_report
from benchmarks.language import nanogpt

POSITIVE = ["-1", "0", "1.5", "nan", "inf", "", "x", "²", "1_0", "9" * 30]
COUNT = ["-1", "-3", "1.5", "nan", "", "x"]
SEED = ["-1", "1.5", "nan", "", "x", "2147483648"]
RATE = ["-1", "0", "nan", "inf", "-inf", "", "x"]
SHARE = ["-0.1", "1.1", "nan", "", "x"]
NAMED = ["muon=-1", "muon=nan", "muon=0", "muon=inf", "muon=", "muon", "none=1", "="]
CHOICE = ["none", ""]
FOLDER = ["{file}", "{file}/inside", "/proc/inside", "nul\0byte"]
NAME = ["", "a/b", "..", "nul\0byte"]

IMAGES = {
    "--seed": SEED, "--batch-size": POSITIVE, "--dataset": CHOICE, "--model": CHOICE,
    "--optimizers": ["sgd", "muon,sgd", "", ","], "--output": FOLDER,
}  # fmt: skip
LANGUAGE = {
    "--data": CHOICE, "--tokens": CHOICE, "--preset": CHOICE, "--dtype": CHOICE,
    "--steps": POSITIVE, "--batch": POSITIVE, "--length": POSITIVE,
    "--accumulation": POSITIVE, "--warm-down": SHARE, "--radius": RATE,
    "--sign-radius": RATE, "--adam-share": RATE, "--evaluations": POSITIVE,
    "--validation-windows": POSITIVE, "--output": FOLDER, "--budget": RATE,
    "--growth": [], "--keep": SHARE, "--outside-share": RATE,
}  # fmt: skip
PROGRAMS = {
    "language.nanogpt": LANGUAGE | {
        "--optimizer": CHOICE, "--lr": RATE, "--checkpoint": FOLDER,
        "--stop-at": POSITIVE, "--sample": COUNT, "--prompt": [""], "--seed": SEED,
    },
    "language.sweep": LANGUAGE | {
        "--optimizers": CHOICE, "--factors": RATE, "--rates": NAMED,
        "--sweep-steps": POSITIVE, "--seeds": SEED,
    },
    "cnn.__main__": IMAGES | {
        "--epochs": POSITIVE, "--learning-rate": NAMED, "--target-accuracy": SHARE,
        "--evaluations": POSITIVE, "--limit": POSITIVE,
    },
    "cnn.step_time": IMAGES | {"--rounds": POSITIVE},
    "drop_muon.cnn": {
        "--data": CHOICE, "--methods": CHOICE, "--seeds": SEED, "--steps": COUNT,
        "--epochs": POSITIVE, "--budgets": RATE, "--learning-rate": NAMED,
        "--model": CHOICE, "--batch-size": POSITIVE, "--evaluations": POSITIVE,
        "--rounds": POSITIVE, "--limit": POSITIVE, "--output": FOLDER, "--name": NAME,
    },
    "drop_muon.recipe_costs": {
        "--data": CHOICE, "--model": CHOICE, "--rounds": POSITIVE, "--output": FOLDER,
        "--add": [],
    },
    "drop_muon.cost": {
        "--model": CHOICE, "--batch-size": POSITIVE, "--rounds": POSITIVE,
        "--every": POSITIVE, "--seed": SEED, "--output": FOLDER,
    },
    "smoothness.__main__": {
        "--model": CHOICE, "--steps": POSITIVE, "--every": POSITIVE, "--seed": SEED,
        "--output": FOLDER,
    },
    "ef21_muon.workers": {
        "--processes": POSITIVE, "--methods": CHOICE, "--preset": CHOICE,
        "--dataset": CHOICE, "--steps": POSITIVE, "--every": POSITIVE,
        "--batch-size": POSITIVE, "--length": POSITIVE, "--learning-rate": RATE,
        "--momentum": ["-0.1", "1", "nan", ""], "--seed": SEED,
        "--checkpoints": FOLDER, "--deadline": RATE, "--output": FOLDER,
    },
    "accelerator.__main__": {
        "--minutes": RATE, "--parts": CHOICE, "--scale": CHOICE,
        "--output": [*FOLDER[1:], "", ".", ".."],
    },
    "ef21_muon.__main__ bytes": {
        "--trees": CHOICE, "--workers": POSITIVE, "--compressors": CHOICE,
        "--pairs": ["x", "natural/x", ""], "--topologies": CHOICE,
        "--devices": POSITIVE, "--output": FOLDER,
    },
    "ef21_muon.__main__ cost": {
        "--pairs": ["x", "natural/x", ""], "--preset": CHOICE, "--seed": SEED,
        "--batch-size": POSITIVE, "--length": POSITIVE, "--rounds": POSITIVE,
        "--of": CHOICE,
    },
    "ef21_muon.__main__ losses": {
        "--pairs": ["x", "natural/x", ""], "--rates": RATE, "--seeds": SEED,
        "--momenta": ["-0.1", "1", "nan"], "--initial": CHOICE, "--warm-down": SHARE,
        "--sampling": CHOICE, "--minutes": RATE,
        "--blocks": POSITIVE, "--width": POSITIVE, "--heads": POSITIVE,
        "--length": POSITIVE, "--steps": POSITIVE, "--workers": POSITIVE,
        "--batch-size": POSITIVE, "--evaluations": POSITIVE, "--validation": POSITIVE,
    },
}  # fmt: skip


def parser_of(program):
    module, *part = program.split()
    return importlib.import_module(f"benchmarks.{module}").parse, part


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_wrong_value_is_refused(program, tmp_path, capsys, record_property):
    parse, part = parser_of(program)
    num_values = sum(map(len, PROGRAMS[program].values()))
    record_property("refused in one line", num_values)
    file = tmp_path / "file"
    file.write_text("")
    for option, values in PROGRAMS[program].items():
        for value in values:
            given = value.replace("{file}", str(file))
            with pytest.raises(SystemExit) as stopped:
                parse([*part, f"{option}={given}"])
            assert stopped.value.code == 2, (option, value)
            (line,) = capsys.readouterr().err.splitlines()
            assert "error: " in line, (option, value)
            assert option in line, (option, value)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_option_is_left_out(program, capsys):
    parse, part = parser_of(program)
    with pytest.raises(SystemExit):
        parse([*part, "--help"])
    found = set(re.findall(r"^ +(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    flags = {"--scan", "--distributed", "--sweep-only", "--resume", "--compiled"}
    flags |= {"--report"}
    others = {"--output"} if part else set()  # of all parts alike
    assert found - flags - others <= set(PROGRAMS[program])


@pytest.mark.parametrize(
    ("optimizer", "option"),
    [("muon", "--radius"), ("optax_muon", "--sign-radius"), ("adamw", "--adam-share"),
     ("scion", "--adam-share"), ("adamw", "--radius"), ("drop_muon", "--adam-share")],
)  # fmt: skip
def test_what_an_optimizer_does_not_use_is_refused(optimizer, option, capsys):
    parse, _ = parser_of("language.nanogpt")
    with pytest.raises(SystemExit) as stopped:
        parse(["--optimizer", optimizer, option, "1"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option} is not used by {optimizer}, but by " in line
    parse(["--optimizer", "muon", "--adam-share", "1"])
    parse(["--optimizer", "scion", "--radius", "1", "--sign-radius", "2"])


REFUSED = [
    (["--batch", "3", "--accumulation", "2"], "must be a multiple of the 2 parts"),
    (["--length", "2000000"], "`length` must be between 1 and"),
    (["--prompt", "€"], "must have characters of the corpus, got"),
    (["--tokens", "char", "--data", "wiki"], "`tokenizer` of wiki must be"),
    (["--data", "fineweb"], "fineweb_train_*.bin is missing"),
    (["--data", "wiki"], "train.bin is missing"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_does_not_fit_is_refused_before_training(
    arguments, message, use_as_shakespeare, monkeypatch, tmp_path, capsys
):
    use_as_shakespeare("abcdefghij" * 500)
    monkeypatch.setattr(nanogpt, "advance", None)
    arguments = ["--preset", "nano", *arguments, "--output", str(tmp_path)]
    check_refused(arguments, message, capsys)


def check_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        nanogpt.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nanogpt: error: ")
    assert message in line


@pytest.mark.parametrize("damage", ["half", "1000 bytes", "empty", "flipped"])
def test_a_damaged_shakespeare_is_not_trained_on(
    damage, use_as_shakespeare, monkeypatch, tmp_path, capsys
):
    use_as_shakespeare("abcdefghij" * 500)
    path = tmp_path / "data" / "tinyshakespeare" / "input.txt"
    content = path.read_bytes()
    path.write_bytes({
        "half": content[: len(content) // 2],
        "1000 bytes": content[:1000],
        "empty": b"",
        "flipped": b"A" + content[1:],
    }[damage])  # fmt: skip
    arguments = ["--preset", "nano", "--output", str(tmp_path)]
    check_refused(arguments, "must be the official file", capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "0 bytes"), (b"\xff\xfe", "UTF-8"), (b"abc", "`length` must be between")],
)
def test_a_text_of_ones_own_must_be_one(
    content, message, use_as_shakespeare, tmp_path, capsys
):
    use_as_shakespeare("")
    (tmp_path / "data" / "text" / "input.txt").write_bytes(content)
    arguments = ["--preset", "nano", "--data", "text", "--output", str(tmp_path)]
    check_refused(arguments, message, capsys)


@pytest.mark.parametrize("size", [0, 999, 1000])
def test_what_is_left_of_a_token_file_is_not_trained_on(
    size, use_as_shakespeare, tmp_path, capsys
):
    use_as_shakespeare("")
    folder = tmp_path / "data" / "wiki_en_2015"
    folder.mkdir()
    for name in ("train.bin", "val.bin"):
        (folder / name).write_bytes((b"\x50\xc4" + bytes(10_000))[:size])
    arguments = ["--preset", "nano", "--data", "wiki", "--output", str(tmp_path)]
    check_refused(arguments, "tokens, got", capsys)


OTHERS = [
    ("cnn.__main__", ["--batch-size", "100000"], "`batch_size` must be between 1 and"),
    ("cnn.step_time", ["--batch-size", "100000"], "`batch_size` must be between 1"),
    ("cnn.__main__", ["--dataset", "mnist"], "is missing. DROPMUON_DATA is set"),
    ("drop_muon.cnn", ["--data", "mnist"], "is missing. DROPMUON_DATA is set"),
    ("language.sweep", ["--length", "2000000"], "`length` must be between 1 and"),
    ("ef21_muon.workers", ["--length", "9999"], "`length` must be between 1 and"),
    ("ef21_muon.__main__", ["losses", "--length", "9999"], "`length` must be between"),
    ("ef21_muon.__main__", ["losses", "--width", "6"], "multiple of the 4 heads"),
    ("ef21_muon.__main__", ["bytes", "--compiled", "--workers", "99"], "8 devices"),
    ("accelerator.__main__", ["--report", "--output", "none.jsonl"], "must be a file"),
]


@pytest.mark.parametrize(("program", "arguments", "message"), OTHERS)
def test_other_programs_refuse_too(
    program, arguments, message, use_as_shakespeare, tmp_path, capsys
):
    use_as_shakespeare("abcdefghij" * 500)
    main = importlib.import_module(f"benchmarks.{program}").main
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--output", str(tmp_path)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: " in line
    assert message in line


def test_refusing_leaves_other_errors_alone(capsys):
    with pytest.raises(SystemExit) as stopped, types.refusing("it"):
        raise ValueError("two\nlines")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "it: error: two lines\n"
    with pytest.raises(KeyError), types.refusing("it"):
        raise KeyError
    with pytest.raises(subprocess.SubprocessError), types.refusing("it"):
        raise subprocess.SubprocessError


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_what_is_no_file_of_records_is_refused(content, tmp_path, capsys):
    path = tmp_path / "lines.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        drop_report.main([str(path)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("drop_muon.report: error: ")


def options_of(program):
    """Its options, as argparse has them."""
    parse, part = parser_of(program)
    found = {}

    def stop(self, *_):
        found[self.prog] = self
        raise KeyError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(types.Parser, "parse_args", stop)
        with pytest.raises(KeyError):
            parse(part)
    (parser,) = found.values()
    actions = parser._actions
    if part:
        (parts,) = (a for a in actions if isinstance(a, argparse._SubParsersAction))
        parser = parts.choices[part[0]]
    return parser, [action for action in parser._actions if action.option_strings]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_says_what_it_is_and_what_it_is_by_default(program):
    parser, actions = options_of(program)
    text = " ".join(parser.format_help().split())
    for action in actions:
        assert action.help, action.option_strings
        shown = parser.formatter_class("")._get_help_string(action)
        default = action.default
        if default in (None, False, [], argparse.SUPPRESS):
            continue
        for value in default if isinstance(default, list | tuple) else [default]:
            assert str(value) in shown or repr(value) in shown, action.option_strings
    assert "(default: None)" not in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_lists_and_names_of_data_are_taken_both_ways(program):
    parse, part = parser_of(program)
    _, actions = options_of(program)
    for action in actions:
        name = action.option_strings[0]
        if action.nargs in ("+", "*") and action.choices:
            two = [str(choice) for choice in list(action.choices)[:2]]
            apart = parse([*part, name, *two])
            together = parse([*part, name, ",".join(two)])
            assert getattr(apart, action.dest) == getattr(together, action.dest) == two
        if name in types.ALIKE:
            assert set(types.ALIKE) <= set(action.option_strings)
            last = list(action.choices)[-1]
            one, other = (vars(parse([*part, x, last])) for x in types.ALIKE)
            assert one == other


def test_a_list_of_values_keeps_its_commas():
    parse, _ = parser_of("drop_muon.cnn")
    assert parse(["--learning-rate", "muon=0.1,0.2"]).learning_rate["muon"] == [
        0.1,
        0.2,
    ]


@pytest.mark.parametrize("program", PROGRAMS)
def test_results_go_where_git_ignores_them(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse, part = parser_of(program)
    output = parse(part).output  # a folder, or a file
    assert pathlib.Path("results") in (output, output.parent)


def test_git_ignores_that_folder_alone():
    root = record.REPOSITORY
    if record.git("rev-parse", "HEAD") is None:
        pytest.skip("no checkout")
    ignored = ["git", "-C", str(root), "check-ignore", "-q"]
    for name, status in (("results/cnn.jsonl", 0), ("benchmarks/results/cnn.jsonl", 1)):
        assert subprocess.run([*ignored, name], check=False).returncode == status


def test_without_data_and_network_a_gpt_trains_on_the_projects_own_text(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DROPMUON_DATA", str(tmp_path / "empty"))
    sizes = "--preset nano --steps 4 --evaluations 1 --validation-windows 2 --sample 1"
    arguments = [*sizes.split(), "--output", str(tmp_path)]
    assert nanogpt.main(arguments) == 0
    (entry,) = record.read(tmp_path / "nanogpt.jsonl")
    assert (entry["data"], entry["tokens"]) == ("project", "char")
    assert "Shakespeare can't be had" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        nanogpt.main([*arguments, "--data", "shakespeare"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tinyshakespeare/input.txt is missing" in line
