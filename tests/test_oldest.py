"""What the gate pins are the lower bounds that `pyproject.toml` promises."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_oldest_packages_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # The site is built with the newest packages alone.
    extras = [lines for name, lines in extras.items() if name != "docs"]
    promised = {}
    for line in [*project["dependencies"], *(line for e in extras for line in e)]:
        if not line.startswith(project["name"]):
            name, bound = re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", line).groups()
            promised[name] = bound
    pins = (ROOT / ".ci/oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in pins if not line.startswith("#"))
    assert pins == promised
