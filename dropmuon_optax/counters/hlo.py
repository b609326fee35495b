"""The text of a compiled program (HLO), read as computations of instructions.

Only what `bytes` needs is read: which instruction stands where, what it returns, which
computations it calls and how often, and which devices take part. One instruction is one
line, as the compilers for CPU, GPU and TPU print it:

    %name = f32[8,4]{1,0} opcode(%operand), attribute=value, …
"""

import math
import re
from typing import Any, NamedTuple, TypeAlias


class ArrayType(NamedTuple):
    """An array as an instruction returns it, on one device."""

    dtype: str  # as HLO calls it: f32, bf16, s32, u8, pred
    num_bytes: int


Result: TypeAlias = ArrayType | tuple[Any, ...]  # of results


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    result: str  # its type; `read_result` reads it
    attributes: str  # the operands and what follows them, without metadata


class Program(NamedTuple):
    """A module: its computations by name, and the devices that it is compiled for."""

    computations: dict[str, list[Instruction]]
    entry: str
    num_replicas: int
    num_partitions: int


_COMPUTATION = re.compile(r"(ENTRY\s+)?%?([\w.~\-]+)\s*(\(.*)?\{\s*$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT\s+)?%?([\w.~\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_METADATA = re.compile(r'metadata=\{(?:"(?:[^"\\]|\\.)*"|[^"}])*\}')
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_TRIP_COUNT = re.compile(r'known_trip_count\\?":\s*\{\s*\\?"n\\?":\s*\\?"?(\d+)')
_CALLED = re.compile(
    r"\b(?:calls|to_apply|called_computations)=(?:\{([^}]*)\}|%?([\w.~\-]+))"
)
_BRANCHES = re.compile(
    r"\b(?:branch_computations=\{([^}]*)\}|"
    r"(?:true|false)_computation=%?([\w.~\-]+))"
)


def read(text: str) -> Program:
    """Reads a module.

    Raises:
      ValueError: if the text has no entry computation.

    Examples:
      >>> program = read('''HloModule jit_f, num_partitions=2
      ... ENTRY %main (x: f32[4]) -> f32[8] {
      ...   %x = f32[4]{0} parameter(0)
      ...   ROOT %y = f32[8]{0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}
      ... }''')
      >>> [instruction.opcode for instruction in program.computations["main"]]
      ['parameter', 'all-gather']
      >>> program.num_partitions
      2
    """
    computations: dict[str, list[Instruction]] = {}
    entry = None
    header, body = "", None
    for line in text.splitlines():
        if body is None:
            if line.startswith("HloModule"):
                header = line
            elif start := _COMPUTATION.match(line):
                body = computations[start[2]] = []
                entry = start[2] if start[1] else entry
        elif line.startswith("}"):
            body = None
        elif found := _INSTRUCTION.match(line):
            body.append(_instruction(found[1], line[found.end() :]))
    if entry is None:
        raise ValueError(
            f"the program's text must have an ENTRY computation, got {text[:80]!r}"
        )
    count = lambda name: int((re.search(rf"\b{name}=(\d+)", header) or (0, 1))[1])  # noqa: E731
    return Program(computations, entry, count("replica_count"), count("num_partitions"))


def _instruction(name: str, rest: str) -> Instruction:
    """Splits what follows the name; layouts such as {1,0:T(8,128)} hold parentheses."""
    rest = _COMMENT.sub("", rest)
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        return Instruction(name, "", "", "")
    attributes = _METADATA.sub("", rest[opcode.end() :])
    return Instruction(name, opcode[1], rest[:end], attributes)


def _closing(text: str) -> int:
    """The position after the parenthesis that closes the first one."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position + 1
    return len(text)


def read_result(text: str) -> Result:
    """Reads a type: an array, or a tuple of types.

    Entries narrower than a byte fill one, unless the layout packs them (`E(4)`).

    Examples:
      >>> read_result("(f32[2,3]{1,0:T(8,128)}, (s4[8]{0:E(4)}))")
      (ArrayType(dtype='f32', num_bytes=24), (ArrayType(dtype='s4', num_bytes=4),))
    """
    if text.startswith("("):
        return tuple(read_result(part) for part in _split(text[1:-1]))
    array = _ARRAY.match(text)
    if array is None:
        return ArrayType(text, 0)
    dtype, dimensions, layout = array.groups()
    sizes = [int(size) for size in re.findall(r"\d+", dimensions)]
    bits = re.search(r"\d+", dtype)
    width = 8 if dtype == "pred" else int(bits[0]) if bits else 0  # token, opaque: none
    packed = re.search(r"E\((\d+)\)", layout or "")
    width = int(packed[1]) if packed else -(-width // 8) * 8
    return ArrayType(dtype, -(-math.prod(sizes) * width // 8))


def _split(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def arrays(result: Result) -> list[ArrayType]:
    """All arrays of a type, in order."""
    if isinstance(result, ArrayType):
        return [result]
    return [array for part in result for array in arrays(part)]


def outputs(instruction: Instruction) -> list[ArrayType]:
    """What a collective returns, be it by its `-start`.

    A start returns (operands, outputs, …), except an all-reduce's, which returns its
    outputs alone, unless it has been wrapped as other instructions are: ((…), …).
    """
    result = read_result(instruction.result)
    if instruction.opcode.endswith("-start") and not isinstance(result, ArrayType):
        plain = isinstance(result[0], ArrayType)
        if not (plain and instruction.opcode == "all-reduce-start"):
            return arrays(result[1])
    return arrays(result)


def called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs once, branches and loops apart."""
    return _names(_CALLED.findall(instruction.attributes))


def branches(instruction: Instruction) -> list[str]:
    """The computations of which a conditional runs one."""
    return _names(_BRANCHES.findall(instruction.attributes))


def loop(instruction: Instruction) -> tuple[str, str, int | None]:
    """The body and the condition of a while loop, and how often its body runs."""
    body = re.search(r"\bbody=%?([\w.~\-]+)", instruction.attributes)
    condition = re.search(r"\bcondition=%?([\w.~\-]+)", instruction.attributes)
    trips = _TRIP_COUNT.search(instruction.attributes)
    return (
        body[1] if body else "",
        condition[1] if condition else "",
        int(trips[1]) if trips else None,
    )


def _names(found: list[tuple[str, str]]) -> list[str]:
    return [
        name.strip().lstrip("%")
        for several, one in found
        for name in (several or one).split(",")
    ]


def group_size(instruction: Instruction, program: Program) -> int | None:
    """How many devices a collective joins, itself included; None if it can't be read.

    Of groups of several sizes, the largest. What the numbers in a group mean depends
    on `channel_id` and `use_global_device_ids` (XLA, `GetCollectiveOpGroupMode`):
    replicas without a channel; partitions for a permutation or an exchange with one;
    devices by `use_global_device_ids`; without it, replicas, in all their partitions.
    """
    attributes, opcode = instruction.attributes, instruction.opcode
    if opcode.startswith("collective-permute"):
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
        if pairs is None:
            return None
        apart = any(a != b for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
        return 2 if apart else 1
    has_channel = "channel_id=" in attributes
    exchanges = opcode.startswith(("all-to-all", "collective-broadcast"))
    replicas, partitions = program.num_replicas, program.num_partitions
    everyone = (partitions if exchanges else replicas * partitions, replicas)
    if "replica_groups=" not in attributes or "replica_groups={}" in attributes:
        return everyone[0] if has_channel else everyone[1]
    size = _listed(attributes)
    if size is None:
        return None
    by_replica = has_channel and "use_global_device_ids=true" not in attributes
    return size * partitions if by_replica and not exchanges else size


def _listed(attributes: str) -> int | None:
    """The size of the largest of `replica_groups`, which are written in three ways.

    >>> _listed("replica_groups={{0,1},{2,3}}")  # one by one
    2
    >>> _listed("replica_groups=[2,4]<=[4,2]T(1,0)")  # two groups of four
    4
    >>> _listed("replica_groups=mesh['a'=2,'b'=8] {'a','b':(1)2}")  # by mesh axes
    4
    """
    if lists := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", attributes):
        return max(len(group.split(",")) for group in lists[1].split("},{"))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])  # or part of an axis
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return None
