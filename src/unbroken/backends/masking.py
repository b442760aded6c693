"""Keep passwords out of messages, and everything else in them.

A secret is masked in two ways. In a place for passwords (``password=…``, ``://user:…@``) any value
is masked. Elsewhere only the known secrets are masked, each as a whole word, and only if that word
can mean nothing else. A password that is also the user's name, or a word of every other error,
reveals nothing outside such a place. A mask there would: it would show that the two are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MASK = "***"
#: A secret shorter than this is masked in places for passwords only.
_SHORT = 3
#: One of this length, of letters and other characters, is masked inside of longer words, too.
_LONG = 8
_MOST = 4000

#: ``(using password: YES)`` tells whether one was given, in the languages that have "password".
_WHETHER = re.compile(r"(password: (?:YES|NO|SI|SÌ|JA|NEE|OUI|NON)(?=\)))", re.IGNORECASE)
_USERINFO = re.compile(r"(\w[\w+.-]*://[^\s:/@]*):(?:\S*)@")
#: Parts of the names of places for passwords.
_NAMES = ("passw", "passphrase", "pwd", "secret")
_NAME = r"[\w.-]*(?:password|passwd|passphrase|passwort|pwd|secret)(?!_?file)\w*"
_VALUE = r"""b?'(?:[^'\\]|\\.|'')*' | b?"(?:[^"\\]|\\.)*" | (?:\\.|[^\s,;&)}\]'"])+"""
_PLACE = re.compile(
    rf"""(?ix) (?<![\w.-]) (["']?{_NAME}["']? (?: \s=\s | [=:] | :\s | \s?=> \s? )) (?:{_VALUE})"""
)
#: The text before a quoted word that is the password.
_BEFORE = r"(?:password|passwd|passphrase|pwd|secret)(?:\s+(?:is|was|of|for))?\W{0,3}"

#: Words that errors of connecting contain anyway.
_ORDINARY = frozenset(
    """
    a about accepting access active address administrator after again all allowed already an and
    another answer any application argument arguments as asking assign at attempt auth
    authentication available away bad be because been before being between blocked broken but by
    bytes call called cannot cause certificate chain channel character charset cipher client
    clients closed code command communication compiled connect connection connections could
    crash credentials data database db default defined denied directory does down due during
    empty encoding end ended entry error errors exceeded exist exists expected expired fail
    failed failure false fatal file find for found from full get given gone got granted greeting
    handshake has have hba help host hostname hosts if in initial initialize input instance
    internal invalid is issuer it its key keyword limit line listening load local localhost lock
    login lost mariadb match max maximum memory method mismatch missing more mysql name names
    network no nobody none not null number of off ok old on only open operation option options
    or other out packet parameter passwd password passwords peer permission pgbouncer pipe
    plugin policy pool port position possible postgres postgresql postmaster privileges process
    program protocol proxy psycopg pymysql query read reading ready reason refused rejected
    rejects remaining required reserved reset resolution resolve resource role root route
    running secret secure see self send sent server service session set settings shut shutdown
    shutting signed simple slots socket sorry sql sqlite ssl start starting state statement
    stopped supplied support supported system tcp temporary terminating than that the there this
    through time timed timeout tls to too true try trying type unable unavailable unexpected
    unix unknown unreachable up url use used user username users using valid value values verify
    version was which while with within without word write wrong yes you your
    """.split()
)


#: Punctuation that occurs in such errors in this order.
_SIGNS = """'@'://...()', '", "---***->=>")")')"'[]((:: """


def masked(text: str, secrets: Iterable[str | None] = (), known: Iterable[str | None] = ()) -> str:
    """Return *text* without the *secrets*, and without any value in a place for passwords.

    *known*: texts that messages show on purpose, such as the user, the host and the database. Pure;
    of a very long text only the beginning is returned.
    """
    text = text[:_MOST]
    words = frozenset(each.lower() for each in known if each)
    patterns = [
        _pattern(each, each.lower() in words)
        for each in secrets
        if each and any(form in text for form in _forms(each))
    ]
    parts = _WHETHER.split(text)  # every other part is a separator
    parts[::2] = (_hidden(part, patterns) for part in parts[::2])
    return "".join(parts)


def _hidden(text: str, patterns: list[re.Pattern[str]]) -> str:
    for pattern in patterns:
        text = pattern.sub(lambda found: (found["before"] or "") + MASK, text)
    if "://" in text:
        text = _USERINFO.sub(rf"\1:{MASK}@", text)
    lower = text.lower()
    if any(each in lower for each in _NAMES):
        text = _PLACE.sub(rf"\1{MASK}", text)
    return text


@lru_cache(maxsize=256)
def _pattern(secret: str, is_known: bool) -> re.Pattern[str]:
    """Return a pattern for the places where *secret* is masked, in each form that it can have."""
    forms = _forms(secret)
    quoted = "|".join(re.escape(each) for each in forms)
    # a libpq string may contain spaces: the place's own pattern ends there
    places = rf"(?P<before>{_BEFORE}['\"]|[\w.-]*(?:password|passwd|pwd)\s*=\s*)(?:{quoted})(?!\w)"
    if is_known or _is_ordinary(secret):
        return re.compile(places, re.IGNORECASE)
    whole = "|".join(_as_word(each, secret) for each in forms)
    return re.compile(rf"{places}|(?:{whole})")


def _is_ordinary(secret: str) -> bool:
    """Return whether *secret* may occur in an error that has nothing to do with it."""
    return (
        len(secret) < _SHORT
        or secret.lower() in _ORDINARY
        or (secret.isdecimal() and len(secret) < 6)
        or secret in _SIGNS
        or re.fullmatch(r"[\d.]+", secret) is not None
    )


def _as_word(form: str, secret: str) -> str:
    """Return a pattern for *form* where it is no part of a longer word, of a name with dots or
    hyphens.
    """
    if len(secret) >= _LONG and not secret.isalpha():
        return re.escape(form)
    before = r"(?<![\w-])(?<!\w\.)" if re.match(r"\w", form) else ""
    after = r"(?![\w-]|\.\w)" if re.search(r"\w$", form) else ""
    return before + re.escape(form) + after


@lru_cache(maxsize=1024)
def _forms(secret: str) -> tuple[str, ...]:
    """Return the forms of *secret* in URLs, connection strings, ``repr`` and JSON, each on one
    line; the longest first.
    """
    found = {
        secret,
        _percent(secret, ""),
        _percent(secret, "/"),
        _percent(secret, " ").replace(" ", "+"),
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        _in_json(secret),
        secret.replace("\\", "\\\\").replace("'", "\\'"),
        secret.replace("'", "''"),
        _encoded(secret).decode("latin-1"),  # as some libraries receive it
    }
    for encoding in ("utf-8", "latin-1"):
        found.add(repr(secret.encode(encoding, "ignore"))[2:-1])
    found |= {" ".join(each.split()) for each in found}
    several = [each for each in found if each.strip()] or [secret]
    return tuple(sorted(several, key=len, reverse=True))


def _percent(secret: str, safe: str) -> str:
    """Encode as in a URL (RFC 3986)."""
    return "".join(
        each
        if (each.isascii() and each.isalnum()) or each in f"_.-~{safe}"
        else "".join(f"%{byte:02X}" for byte in _encoded(each))
        for each in secret
    )


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _in_json(secret: str) -> str:
    """Encode as in JSON of ASCII characters only."""
    text = secret.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    units = text.encode("utf-16-be", "surrogatepass")
    pairs = (units[at : at + 2] for at in range(0, len(units), 2))
    return "".join(
        chr(pair[1]) if not pair[0] and pair[1] < 128 else f"\\u{pair.hex()}" for pair in pairs
    )
