"""What is read: the prose of a page of Markdown or of a Python source, paragraph by paragraph."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

#: Stands for a code name, which counts as one word and matches no rule.
CODE = "\ufffc"


@dataclass(frozen=True)
class Paragraph:
    """Some text, the line that it starts on, and its kind: text, cell, heading, docstring, comment
    or message.
    """

    text: str
    line: int
    kind: str


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def page(source: str, first: int = 1) -> Iterator[Paragraph]:
    """The paragraphs of a page of Markdown whose first line is number *first*."""
    kind, line = "text", first
    for token in _parser().parse(source):
        if token.map:
            line = token.map[0] + first
        if token.type == "heading_open":
            kind = "heading"
        elif token.type in {"th_open", "td_open"}:
            kind = "cell"
        elif token.type in {"paragraph_open", "table_close"}:
            kind = "text"
        elif token.type == "inline":
            text = _plain(token.children or []).strip()
            if text and not token.content.startswith("<sub>"):  # what a benchmark ran on
                yield Paragraph(text, line, kind)


def _plain(tokens: list[Token]) -> str:
    parts = []
    for token in tokens:
        if token.type == "text":
            parts.append(token.content)
        elif token.type == "code_inline":
            parts.append(CODE if re.search(r"\w", token.content) else token.content)
        elif token.type in {"softbreak", "hardbreak"}:
            parts.append(" ")
    return "".join(parts)


def wide_lines(source: str, widest: int) -> Iterator[tuple[int, int]]:
    """(number, length) of each line of text that is wider than *widest*. Code, tables, headings
    and lines between ``<!--`` and ``<!-- end``, which a script wrote, do not count.
    """
    fenced = generated = False
    for number, line in enumerate(source.splitlines(), 1):
        if line.startswith("<!--"):
            generated = not line.startswith("<!-- end")
        elif generated:
            continue
        elif line.lstrip().startswith("```"):
            fenced = not fenced
        elif (
            not fenced
            and len(_unlinked(line)) > widest
            and not line.startswith(("|", "#", "[", "!"))
        ):
            yield number, len(line)


def _unlinked(line: str) -> str:
    """Without the links' addresses and without long code, which cannot be broken over lines."""
    return re.sub(r"\]\([^)]*\)|`[^`]{70,}`", "]", line)


_ROLE = re.compile(r"(?::[\w:]+:)?``?[^`]+``?")
#: Names of options, verbs or columns within a sentence. At least one of them has an underscore.
_LISTED = re.compile(r"\b(?=[\w, ]*_)(?:[A-Za-z]\w*, ){3,}[A-Za-z]\w*")
#: A text that is only names: it has no punctuation, and few of the commonest words of English.
_NAMES = re.compile(r"[\w-]+(?:\s+[\w-]+){11,}")
_COMMON = frozenset(
    "a an and are as at be by for in is it its no not of on or that the to was".split()
)
_FEW = 0.15
#: A program in a text.
_PROGRAM = re.compile(r"^(?:import|from \S+ import|#include|def) ", re.MULTILINE)
_DIRECTIVE = re.compile(r"#\s*(?:noqa|type:|pragma|fmt:|mypy:|ruff:|!|-\*-|pyright:|cython:)")


def source(text: str) -> Iterator[Paragraph]:
    """Docstrings, comments and messages of a Python source. A message is each other text with four
    spaces or more that is no SQL.
    """
    tree = ast.parse(text)
    known: set[ast.AST] = set()  # what stands in a docstring or an f-string
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                known.add(first.value)
                if isinstance(first.value.value, str):
                    yield from _docstring(first.value.value, first.lineno)
        elif isinstance(node, ast.JoinedStr):
            known.update(node.values)
            yield from _message("".join(map(_part, node.values)), node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in known:
            yield from _message(node.value, node.lineno)
    yield from _comments(text)


def _part(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else CODE


def _docstring(text: str, line: int) -> Iterator[Paragraph]:
    for block in re.split(r"\n\s*\n", text):
        if not re.match(r"\s*(?:\.\. |>>> |::|\x08)", block):  # \x08: preformatted, for click
            joined = _prose(block)
            if joined:
                yield Paragraph(joined, line, "docstring")
        line += block.count("\n") + 2


_SQL = re.compile(
    r"\s*(?:SELECT|INSERT|UPDATE|DELETE|SET|SHOW|WITH|CREATE|DROP|KILL|BEGIN)\b|.*\(SELECT\b"
)


def _message(text: str, line: int) -> Iterator[Paragraph]:
    if text.count(" ") < 4 or _SQL.match(text) or "://" in text[:12] or "\\b" in text:
        return
    if _PROGRAM.search(text) or _is_names(text):
        return
    for block in re.split(r"\n\s*\n", re.sub(r"\{[^{}]*\}|%[sdr.]", CODE, text)):
        joined = _prose(block)
        if joined and not joined.startswith("```"):
            yield Paragraph(joined, line, "message")


def _comments(text: str) -> Iterator[Paragraph]:
    lines: list[str] = []
    start = last = -9
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
            continue
        whole = token.line.lstrip().startswith("#")
        if not (whole and token.start[0] == last + 1) and lines:
            yield _comment(lines, start)
            lines = []
        if not lines:
            start = token.start[0]
        lines.append(token.string.lstrip("#: ").rstrip())
        last = token.start[0] if whole else -9
    if lines:
        yield _comment(lines, start)


def _comment(lines: list[str], start: int) -> Paragraph:
    return Paragraph(_prose(" ".join(lines)), start, "comment")


def _prose(text: str) -> str:
    """Return *text* in one line, with :data:`CODE` for each code name."""
    plain = _LISTED.sub(lambda found: re.sub(r"\w+", CODE, found[0]), _ROLE.sub(CODE, text))
    return " ".join(plain.split())


def _is_names(text: str) -> bool:
    """Return whether *text* is a list of names, and no sentence."""
    words = text.split()
    common = sum(word in _COMMON for word in words)
    return _NAMES.fullmatch(text.strip()) is not None and common < _FEW * len(words)
