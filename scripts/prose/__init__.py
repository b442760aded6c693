"""A linter for the English of pages, docstrings, comments and messages.

Why not an existing linter: Vale's package on PyPI downloads its binary from GitHub at the first
run, so `make check` would fail without that host. proselint has no rules of a project's own, does
not read docstrings, and finds neither translated idioms nor long sentences. What remains are rules
that are regular expressions (`rules.py`), on top of two parsers that are kept by others:
markdown-it-py for pages, Python's `ast` and `tokenize` for sources (`readers.py`).

`python scripts/prose` checks everything against `baseline.json`, which holds the number of findings
per file. A number may not rise; `--shrink` lowers it to what is found now.
"""
