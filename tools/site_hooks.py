"""Hooks of mkdocs.yml: files of the repository that lie outside docs/ as pages of the site, and formulas as MathML.

One source for each text: a results page is written where the results are, and shown on the site from there.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Patterns of files outside docs/ that the site shows at the same path.
SHOWN = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/experiments/*.md",
    "bench/experiments/*.png",
    "bench/results/*.md",
    "bench/results/*.png",
    "examples/*.md",
    "examples/*.py",
)
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Links lead from file to file of the repository; on the site docs/ is the root, so they are rewritten."""
    assert page.file.abs_src_path is not None
    here = posixpath.dirname(Path(page.file.abs_src_path).relative_to(ROOT).as_posix())
    there = posixpath.dirname(page.file.src_uri)

    def on_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link[2])).removeprefix("docs/")
        if files.get_file_from_path(target) is None:
            return link[0]  # of another site, or a fault that mkdocs names
        return f"{link[1]}{posixpath.relpath(target, there or '.')}{link[3]}"

    return _LINK.sub(on_the_site, markdown)


def on_page_content(content: str, **_: Any) -> str:
    def mathml(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return f"<{found[1]}>{convert(html.unescape(found[2]), display=display)}</{found[1]}>"

    return _FORMULA.sub(mathml, content)
