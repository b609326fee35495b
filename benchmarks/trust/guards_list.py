"""What was once lost in silence, the code that sees to it now, and the test of that."""

from typing import NamedTuple

LINES = "tests/benchmarks/test_command_lines.py"
STATES = "tests/contract/test_states.py"


class Guard(NamedTuple):
    """A point, a way to undo what was done about it, and the test that notices."""

    point: str
    file: str
    old: str  # stands there once
    new: str
    test: str  # as pytest takes it


GUARDS = (
    Guard(
        "a run that can't write its result trains all the same",
        "benchmarks/common/options.py",
        'record.check_folder("path", Path(text))',
        "pass",
        f"{LINES}::test_every_wrong_value_is_refused",
    ),
    Guard(
        "a prompt that the text has no letters for is refused at the end",
        "benchmarks/language/nanogpt.py",
        "        task.corpus.encode(options.prompt)",
        "        pass",
        f"{LINES}::test_what_does_not_fit_is_refused_before_training",
    ),
    Guard(
        "a run whose text can't be sampled leaves no line",
        "benchmarks/language/nanogpt.py",
        "    entry = entry_of(options, run, origin)\n",
        "    sample(options, run)\n    entry = entry_of(options, run, origin)\n",
        "tests/benchmarks/language/test_nanogpt.py"
        "::test_a_record_is_written_before_the_text_is_sampled",
    ),
    Guard(
        "a line that can't be written is gone",
        "benchmarks/common/record.py",
        'print(f"not written',
        'str(f"not written',
        "tests/benchmarks/common/test_record.py"
        "::test_a_disk_that_is_full_in_the_middle_of_a_line",
    ),
    Guard(
        "workers train, and save nothing, in a folder that holds another run",
        "benchmarks/ef21_muon/workers.py",
        "if not options.resume and steps_in(used):",
        "if False:",
        "tests/benchmarks/trust/test_full_disk.py"
        "::test_a_folder_that_holds_a_run_needs_resume",
    ),
    Guard(
        "a server's compressor on a state made without one",
        "dropmuon_optax/wire/server.py",
        "if (state.server.X is None) != (first.server.X is None):",
        "if False:",
        f"{STATES}::test_the_state_of_other_options",
    ),
    Guard(
        "half of Shakespeare is trained on",
        "benchmarks/common/sources.py",
        "if known and (found",
        "if not known and (found",
        f"{LINES}::test_a_damaged_shakespeare_is_not_trained_on",
    ),
    Guard(
        "negative learning rates train",
        "benchmarks/common/options.py",
        "lambda x: 0.0 < x < math.inf)",
        "lambda x: x == x)",
        f"{LINES}::test_every_wrong_value_is_refused",
    ),
    Guard(
        "constrained weights stand outside the ball that is stated",
        "dropmuon_optax/algorithms/scion.py",
        "momentum, constrained=constrained)",
        "momentum, constrained=False)",
        "tests/algorithms/test_scion.py::test_the_ball_is_as_exact_as_the_oracle",
    ),
    Guard(
        "gradients of a broadcastable shape",
        "dropmuon_optax/layers/trees.py",
        "    alike = jnp.shape(g) == jnp.shape(x)\n",
        "    alike = True\n",
        f"{STATES}::test_gradients_that_would_be_broadcast",
    ),
    Guard(
        "one flipped byte of a checkpoint",
        "benchmarks/language/checkpoints.py",
        "if found[name] != expected.get(name):",
        "if False:",
        "tests/benchmarks/language/test_checkpoints.py"
        "::test_a_damaged_file_is_noticed_and_the_one_before_taken",
    ),
    Guard(
        "the state of momentum 0, used with 0.9",
        "dropmuon_optax/wire/server.py",
        "if (state.momentum is None) != (first.momentum is None):",
        "if False:",
        f"{STATES}::test_the_state_of_other_options",
    ),
    Guard(
        "the state of another tree",
        "dropmuon_optax/layers/trees.py",
        "            if paths:\n",
        "            if False:\n",
        f"{STATES}::test_the_state_of_another_tree",
    ),
    Guard(
        "the state of other widths",
        "dropmuon_optax/layers/trees.py",
        "if got != shape and not mine:",
        "if False:",
        f"{STATES}::test_the_state_of_another_width",
    ),
    Guard(
        "no state",
        "dropmuon_optax/layers/trees.py",
        'raise ValueError("`state` must be what `init` returned, got None")',
        "return",
        f"{STATES}::test_no_state",
    ),
    Guard(
        "no gradient",
        "dropmuon_optax/layers/trees.py",
        "        if g is None:\n",
        "        if False:\n",
        f"{STATES}::test_no_gradient",
    ),
    Guard(
        "what is no key",
        "dropmuon_optax/algorithms/scion.py",
        "    _check_key(key)\n",
        "",
        "tests/contract/test_arguments.py::test_a_ball_has_a_radius_not_a_schedule",
    ),
    Guard(
        "leaves with no entries",
        "dropmuon_optax/lmo.py",
        "if leaf.value.size == 0:",
        "if False:",
        "tests/contract/test_unusual_leaves.py"
        "::test_leaves_without_entries_change_nothing_for_the_others",
    ),
)
