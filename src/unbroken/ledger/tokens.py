"""SQL text cut into tokens, once for each dialect that it could be written in.

The meaning of a quote, a backslash, a ``#``, a ``$`` or a ``/*`` differs between servers, and
between settings of one server. Nothing here guesses: :func:`readings` returns every reading that
some server could have made of a text. The reading of the server that did execute it is among them,
so code that takes the worst of all is never too optimistic.

A reading is left out only if that server surely refuses the whole text before it executes any of
it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

STRING = "'"  #: stands for any string literal
QUOTED = '"'  #: stands for any quoted name ("x" is a string or a name; code must not rely on which)
NUMBER = "0"  #: stands for any number and any numbered placeholder

_PLAIN_STRING = r"'(?:[^']++|'')*+'"
_ESCAPED_STRING = r"'(?:[^'\\]++|\\.|'')*+'"
_E_STRING = rf"[eE]{_ESCAPED_STRING}"
_PLAIN_NAME = r'"(?:[^"]++|"")*+"'
_ESCAPED_NAME = r'"(?:[^"\\]++|\\.|"")*+"'
_BACKTICKED = r"`(?:[^`]++|``)*+`"
_BRACKETED = r"\[[^\]]*+\]"

_LETTER = r"A-Za-z_\x80-\U0010ffff"
_PART = rf"{_LETTER}0-9$"
_TAG = rf"\$(?:[{_LETTER}][{_LETTER}0-9]*+)?\$"
# Atomic: "1INTO t" is 1 INTO t before PostgreSQL 15, an error after it and a name in MySQL: it must
# not be cut anywhere.
_ENDS = rf"(?![{_PART}'\"])"
_NUMBER = rf"(?>0[xX][0-9A-Fa-f]+|[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?){_ENDS}|\$[0-9]++{_ENDS}"

_COMMENT = r"--[^\n]*+"
_PG_COMMENT = r"--[^\n\r]*+"
_MY_COMMENT = (  # "--" is two minus signs unless a blank follows
    r"\#[^\n]*+|--(?=[\x00-\x20\x7f]|\Z)[^\n]*+"
)
_NEVER = r"(?!)"


def words(text: str) -> frozenset[str]:
    """Return the words of *text*, for the tables of modules that judge tokens."""
    return frozenset(text.split())


class Refusal(Enum):
    """The reason why a text has no tokens in a dialect."""

    REJECTED = "rejected"  #: that server refuses the text and executes nothing of it
    UNCLEAR = "unclear"  #: it is not known how that server reads it


@dataclass(frozen=True, slots=True)
class _Dialect:
    """One way to read SQL."""

    pattern: re.Pattern[str]
    nested: bool = False  # /* comments */ nest
    executable: bool = False  # /*! comments */ are executed
    whole: bool = False  # the text is parsed to its end before any of it is executed


def _pattern(
    *,
    string: str,
    name: str,
    comment: str,
    first: str = _LETTER,
    dollar: str = _NEVER,
    broken: str = r"'\"\\",
) -> re.Pattern[str]:
    return re.compile(
        rf"(?P<gap>[ \t\n\r\f\v]++|{comment})"
        r"|(?P<block>/\*)"
        rf"|(?P<string>{string})"
        rf"|(?P<name>{name})"
        rf"|(?P<dollar>{dollar})"
        rf"|(?P<number>{_NUMBER})"
        rf"|(?P<word>[{first}][{_PART}]*+)"
        # a number that runs into another character, or a control character
        r"|(?P<junk>[0-9\x00-\x1f\x7f])"
        rf"|(?P<broken>[{broken}])"  # a quote that is never closed, a backslash in the open
        r"|(?P<char>.)",
        re.DOTALL,
    )


def _postgresql(string: str) -> _Dialect:
    pattern = _pattern(
        string=f"{_E_STRING}|{string}", name=_PLAIN_NAME, comment=_PG_COMMENT, dollar=_TAG
    )
    return _Dialect(pattern, nested=True, whole=True)


def _mysql(string: str, name: str) -> _Dialect:
    pattern = _pattern(
        string=rf"{string}|\\N",
        name=f"{name}|{_BACKTICKED}",
        comment=_MY_COMMENT,
        first=f"{_LETTER}$",
        broken=r"'\"`\\",
    )
    return _Dialect(pattern, executable=True)


_PG = _postgresql(_PLAIN_STRING)
_PG_OLD = _postgresql(_ESCAPED_STRING)  # standard_conforming_strings = off
_MY = _mysql(_ESCAPED_STRING, _ESCAPED_NAME)
_MY_ANSI = _mysql(_ESCAPED_STRING, _PLAIN_NAME)  # sql_mode ANSI_QUOTES: no escapes in a quoted name
_MY_PLAIN = _mysql(_PLAIN_STRING, _PLAIN_NAME)  # sql_mode NO_BACKSLASH_ESCAPES
_LITE = _Dialect(
    _pattern(
        string=_PLAIN_STRING,
        name=f"{_PLAIN_NAME}|{_BACKTICKED}|{_BRACKETED}",
        comment=_COMMENT,
        broken=r"'\"`\\\[",
    )
)

_SAME_EVERYWHERE = (_PG,)
_NO_BACKSLASH = (_PG, _MY, _LITE)
_ALL = (_PG, _MY, _LITE, _PG_OLD, _MY_ANSI, _MY_PLAIN)
_OF: dict[str, tuple[_Dialect, ...]] = {
    "postgresql": (_PG, _PG_OLD),
    "mysql": (_MY, _MY_ANSI, _MY_PLAIN),
}
# parts that the dialects read differently, apart from the backslash
_ODD = re.compile(r"[#$`\[]|--|/\*")


def readings(text: str, backend: str | None = None) -> list[list[str] | Refusal]:
    """Return every reading of *text*: its tokens, or the reason why there are none in that dialect.
    Never empty, never raises.

    *backend*: "postgresql" or "mysql", if it is known which server reads it; None: any.

    Words are in upper case (ASCII letters only: no other letter may turn into one). A ``(`` that
    follows immediately is at their end: for MySQL ``now()`` is the server's function and ``now ()``
    may be one of the user's. Literals and quoted names are :data:`STRING`, :data:`QUOTED` and
    :data:`NUMBER`. Anything else is returned character by character.
    """
    if backend is not None:
        of = _OF[backend]
        return [_cut(text, dialect) for dialect in (of if "\\" in text else of[:1])]
    if "\\" in text:
        dialects: tuple[_Dialect, ...] = _ALL
    else:
        dialects = _NO_BACKSLASH if _ODD.search(text) else _SAME_EVERYWHERE
    return [_cut(text, dialect) for dialect in dialects]


def _cut(text: str, dialect: _Dialect) -> list[str] | Refusal:
    tokens: list[str] = []
    match, at, depth = dialect.pattern.match, 0, 0
    while found := match(text, at):
        group, at = found.lastgroup, found.end()
        if group == "gap":
            continue
        if group == "word":
            word = found.group()
            if word[0] == "$" and "$" in word[1:]:
                return Refusal.UNCLEAR  # a name until MySQL 9 gave dollar quotes a meaning
            if text.startswith("(", at):
                at, depth, word = at + 1, depth + 1, word + "("
            tokens.append(word.upper() if word.isascii() else word)
        elif group == "char":
            char = found.group()
            depth += (char == "(") - (char == ")")
            if depth < 0 or (depth and char == ";" and not dialect.whole):
                return _rejected(tokens, dialect)
            tokens.append(char)
        elif group in _STANDS_FOR:
            tokens.append(_STANDS_FOR[group])
        elif group == "junk":
            return Refusal.UNCLEAR
        else:
            end = _skip(text, found, dialect) if group in ("block", "dollar") else Refusal.REJECTED
            if isinstance(end, Refusal):
                return _rejected(tokens, dialect) if end is Refusal.REJECTED else end
            if group == "dollar":
                tokens.append(STRING)
            at = end
    return tokens if depth == 0 else _rejected(tokens, dialect)


_STANDS_FOR = {"string": STRING, "name": QUOTED, "number": NUMBER}


def _rejected(tokens: list[str], dialect: _Dialect) -> Refusal:
    """Return the verdict on a syntax error. MySQL and SQLite will have executed the text before a
    semicolon.
    """
    return Refusal.REJECTED if dialect.whole or ";" not in tokens else Refusal.UNCLEAR


def _skip(text: str, found: re.Match[str], dialect: _Dialect) -> int | Refusal:
    """Return the end of the block comment or dollar-quoted string that begins with *found*."""
    at = found.end()
    if found.lastgroup == "dollar":
        end = text.find(found.group(), at)
        return Refusal.REJECTED if end < 0 else end + len(found.group())
    if dialect.nested:
        return _skip_nested(text, at)
    if dialect.executable and text.startswith(("!", "M!"), at):
        return Refusal.UNCLEAR  # which servers execute it depends on their versions
    end = text.find("*/", at)
    return Refusal.UNCLEAR if end < 0 else end + 2


_BLOCK_EDGE = re.compile(r"/\*|\*/")


def _skip_nested(text: str, at: int) -> int | Refusal:
    depth = 1
    while depth:
        edge = _BLOCK_EDGE.search(text, at)
        if edge is None:
            return Refusal.REJECTED
        depth, at = depth + (1 if edge.group() == "/*" else -1), edge.end()
    return at
