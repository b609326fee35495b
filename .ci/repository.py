"""Writes where the repository is, as `pyproject.toml` says, wherever it stands.

    python .ci/repository.py            writes
    python .ci/repository.py --check    exits with 1 where something is to be written

`Repository` of `[project.urls]` is the one place that names it. Without it there are no
badges, and notebooks install from PyPI or a clone.
"""

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com"
BADGES = re.compile(r"(<!-- badges -->\n).*?(<!-- /badges -->)", re.DOTALL)
OPEN_IN_COLAB = re.compile(r"\A\[!\[Open In Colab\].*\n\n")
OR_FROM = re.compile(r"^( *)# or from (?:a clone|git): .*$", re.MULTILINE)
CODE = re.compile(r"^repository-code: .*\n", re.MULTILINE)


def address(root: Path) -> str | None:
    """The repository's, without a slash at its end, or None.

    Raises:
      ValueError: if it is none of GitHub's, of which the badges are.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    found = project["urls"].get("Repository")
    if found is None:
        return None
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/?", found):
        raise ValueError(
            "`Repository` must be https://github.com/<account>/<name>, got " + found
        )
    return found.rstrip("/")


def readme(text: str, url: str | None) -> str:
    """With the badges of the gate and of the notebooks, or without any."""
    lines = ""
    if url:
        gate = f"{url}/actions/workflows/gate.yml"
        lines = f"[![gate]({gate}/badge.svg)]({gate})\n"
    return BADGES.sub(lambda found: found[1] + lines + found[2], text)


def notebook(text: str, name: str, url: str | None) -> str:
    """With a badge above the title and the repository in the cell that installs."""
    content = json.loads(text)
    title, install = content["cells"][:2]
    source = OPEN_IN_COLAB.sub("", "".join(title["source"]))
    if url:
        place = url.removeprefix("https://github.com/")
        badge = f"[![Open In Colab]({COLAB}/assets/colab-badge.svg)]"
        source = f"{badge}({COLAB}/github/{place}/blob/main/{name})\n\n{source}"
    title["source"] = source.splitlines(keepends=True)
    where, what = "a clone", "path/to/clone[bench]"
    if url:
        where, what = "git", f"dropmuon-optax[bench] @ git+{url}"
    line = f'# or from {where}: %pip install --quiet "{what}"'
    source = OR_FROM.sub(rf"\1{line}", "".join(install["source"]))
    install["source"] = source.splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def citation(text: str, url: str | None) -> str:
    """With `repository-code`, or without."""
    text = CODE.sub("", text)
    line = f'repository-code: "{url}"\n' if url else ""
    return text.replace("authors:\n", f"{line}authors:\n", 1)


def written(root: Path) -> dict[Path, str]:
    """Each file that names the repository, as it should be."""
    url = address(root)
    files = {root / "README.md": readme, root / "CITATION.cff": citation}
    found = {path: write(path.read_text(), url) for path, write in files.items()}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        name = path.relative_to(root).as_posix()
        found[path] = notebook(path.read_text(), name, url)
    return found


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    stale = {p: t for p, t in written(root).items() if p.read_text() != t}
    for path, text in stale.items():
        print(path.relative_to(root))
        if not options.check:
            path.write_text(text)
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
