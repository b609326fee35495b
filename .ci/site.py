"""Hooks of MkDocs: the benchmarks' pages and pictures, and the repository's address.

Links are written as they hold in the repository, where pages are read too. Those to
what is on the site are turned there, those to other files to the repository's page of
the file, or to nothing where no repository is named.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Names the repository, if `[project.urls]` does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    config.repo_url = project["urls"].get("Repository")
    config.nav = [filled(entry) for entry in config.nav or []]
    return config


def filled(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the navigation; one that names a folder gets all its pages."""
    ((title, place),) = entry.items()
    if not isinstance(place, str) or not place.endswith("/"):
        return entry
    if place == "benchmarks/":
        pages = sorted((ROOT / place).glob("*/README.md"))
        named = {path.relative_to(ROOT).as_posix(): path for path in pages}
        return {
            title: [f"{place}README.md", *({heading(p): n} for n, p in named.items())]
        }
    pages = sorted((ROOT / "docs" / place).glob("*.md"), key=lambda page: page.stem)
    pages.sort(key=lambda page: page.stem != "index")  # which comes first
    return {title: [f"{place}{page.name}" for page in pages]}


def heading(path: Path) -> str:
    """The heading of a page, as far as its colon."""
    return path.read_text().splitlines()[0].removeprefix("# ").partition(":")[0]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is not in docs/: pages and pictures of the benchmarks."""
    folder = ROOT / "benchmarks"
    for path in [*folder.rglob("README.md"), *folder.glob("results/*.png")]:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Turns links to where their files are on the site."""
    source = Path(page.file.abs_src_path or "")

    def turned(found: re.Match[str]) -> str:
        picture, text, link, anchor = found.groups(default="")
        path = (source.parent / link).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            return found[0]  # MkDocs warns of it
        name = path.relative_to(ROOT).as_posix()
        place = name.removeprefix("docs/")
        if files.get_file_from_path(place):
            here = os.path.relpath(place, Path(page.file.src_uri).parent)
            return f"{picture}[{text}]({here}{anchor})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{name}{anchor})"
        return f"{text} (`{name}`)"

    return LINK.sub(turned, markdown)
