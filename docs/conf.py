"""Sphinx builds the site from these pages: ``make docs``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
for folder in ("src", "drill/src"):
    sys.path.insert(0, str(ROOT / folder))

import unbroken  # noqa: E402 - the line above says where it is

project = "unbroken"
author = "The unbroken authors"
project_copyright = "2026, The unbroken authors"
version = release = unbroken.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "unbroken"
html_theme_options = {
    "source_repository": "https://github.com/unbroken-db/unbroken/",
    "source_branch": "main",
    "source_directory": "docs/",
}
# A prompt and what a command prints are not copied.
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

# The build is offline, so names of other projects lead nowhere. Neither do private names of ours:
# a signature may mention them. Every public name of ours must be found.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!unbroken).*"),
    (r"py:.*", r"unbroken\.\w+\.[A-Z]$"),  # type variables
    (r"py:.*", r"unbroken\.(abc|backends|brain|drivers|ledger|messages|net)(\..*)?"),
    (r"py:.*", r"unbroken\.(integrations|pool|units)(\..*)?"),
    (r"py:.*", r"unbroken_drill\..*"),
]

#: ``make links`` asks every page of other sites that ours link to.
linkcheck_anchors = False
linkcheck_timeout = 10
linkcheck_ignore = [r"http://127\.0\.0\.1.*", r"https://github\.com/unbroken-db/.*"]

BLOB = "https://github.com/unbroken-db/unbroken/blob/main/"
_LINK = re.compile(r"\]\(((?![a-z]+:)[^)#\s]+)((?:#[^)\s]*)?)\)")
#: Pages of the site that are files of the repository's top folder.
TOP = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}


def _lead_somewhere(app: Any, docname: str, source: list[str]) -> None:
    """Links out of ``docs`` lead to the repository, and those of files at the top into the site."""
    page = ROOT / TOP[docname] if docname in TOP else Path(app.srcdir) / f"{docname}.md"
    if docname in TOP:
        source[0] = page.read_text()

    def link(found: re.Match[str]) -> str:
        file = (page.parent / found[1]).resolve()
        if not file.exists():  # an example in code, or Sphinx says so
            return found[0]
        if not file.is_relative_to(HERE):
            return f"]({BLOB}{file.relative_to(ROOT).as_posix()}{found[2]})"
        return f"]({file.relative_to(HERE)}{found[2]})" if docname in TOP else found[0]

    source[0] = _LINK.sub(link, source[0])


def setup(app: Any) -> None:
    """Register the hook above."""
    app.connect("source-read", _lead_somewhere)
