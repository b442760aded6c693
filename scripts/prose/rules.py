"""The rules. Each has a name, a pattern and the advice that its finding prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

#: No sentence and no table cell is longer, in words.
LONGEST = 35
#: Half of a page's sentences are no longer, in words.
MEDIAN = 18
#: Lines of text on a page, in characters. Tables and code may be wider.
WIDEST = 100


@dataclass(frozen=True)
class Rule:
    """Text that matches *pattern* is a finding, and *advice* says what to write instead."""

    name: str
    pattern: re.Pattern[str]
    advice: str


def rule(name: str, advice: str, *patterns: str, case: bool = False) -> Rule:
    """A rule of several *patterns*, which ignore case unless *case* is true."""
    flags = 0 if case else re.IGNORECASE
    return Rule(name, re.compile("|".join(f"(?:{each})" for each in patterns), flags), advice)


_THING = r"(?:sockets?|servers?|kernels?|networks?|proxy|proxies|poolers?|cables?|NATs?|balancers?)"
_MACHINE = rf"(?:{_THING}|databases?|drivers?|connections?|libraries|library|interpreters?)"

RULES = (
    rule(
        "headless-who",
        "name the actor: 'a caller that …', 'callers that …'",
        r"(?:^|[.;:] )(?:[Ww]ho|[Ww]hose|[Ww]hom)\b(?![^.]*\?)",
        r"\bwho(?:m)?ever\b",
        r"\b(?:for|to|of|by|from|with|than|but|as|since|because|where|unless) who(?:se|m)?\b",
        r"\b(?:and|or|but) who (?:had|has|was|is)\b",
    ),
    rule(
        "headless-what",
        "name the thing: 'work that was lost', 'the caller's own errors'",
        r"(?:^|[.;:] )What\b(?! to\b)(?![^.]*\?)(?=.*[.:;])",
        r"[;:] what\b(?![^.]*\?)",
        r"\bwhat(?:so)?ever\b",
        r"\b(?:but|than|where|since|because|unless|while) what\b",
        r"\b(?:for|with|from|to|but|and|at|beside|behind) what "
        r"(?:is|are|was|were|has|had|it|they|came|comes|arrives|arrived|begins|began)\b",
        r"\ball (?:that|what) (?:was|were|has|is)\b",
        case=True,
    ),
    rule(
        "headless-adjective",
        "give the adjective its noun: 'dead connections', 'refused units'",
        r"\b(?:[Tt]he|[Aa]ll|[Nn]o) (?:dead|refused|living|lost|forgotten|lent|unseen|unknown)"
        r" (?:are|is|were|was|have|has|had|changed|stays?|gets?|goes|go|and)\b",
        r"\b[Nn]one (?:goes|went|stays?|stayed|gets?|got|waits?|comes?|came|has|had)\b",
        case=True,
    ),
    rule("see-to-it", "'ensure that', or name what happens", r"\b(?:see|sees|saw|seen) to it\b"),
    rule(
        "is-to-be",
        "'must', 'can', 'will', or the active voice",
        r"\b(?:is|are|was|were|nothing|anything|something) to be\b",
        r"\bhad better\b",
        r"\bmay not\b",
    ),
    rule(
        "translated",
        "say it in the field's words",
        r"\bas it were\b",
        r"\bso to speak\b",
        r"\bonce too often\b",
        r"\bfor certain\b",
        r"\bin haste\b",
        r"\bwithout a word\b",
        r"\bin vain\b",
        r"\bof its own accord\b",
        r"\bat the latest\b",
        r"\bat once\b(?= told)|\btold at once\b",
        r"\bby (?:their|its|his) own hands?\b",
        r"\bchanged? (?:their|its) (?:own )?minds?\b",
        r"\bwhat became of\b",
        r"\b(?:is|are|was|were) told (?:for|by|apart|with|in words)\b",
        r"\bsaid plainly\b",
        r"\bmade anew\b",
        r"\bstands? (?:below|above|beside|there)\b",
        r"\bsays? in words\b",
        r"\b(?:is|are) the question\b",
        r"\b(?:per|two) cents?\b",
        r"^With \w+ (?:is|are|was|were) (?:only )?(?:the|a)\b",
    ),
    rule("doubled", "one word too many", r"\bthat that\b(?! (?:is|was|one)\b)", r"\bthe the\b"),
    rule(
        "away",
        "a server is down, unreachable or restarting",
        r"\b(?:is|was|are|were|be|been|stays?|being) away\b",
        r"\b(?:goes|went|going) away\b",
    ),
    rule(
        "personified",
        "a socket does not speak: 'the server reports', 'the kernel reports'",
        rf"\b{_THING} (?:says?|said|hears?|heard|speaks?|thinks?|feels?|believes?)\b",
        rf"\b{_MACHINE} (?:forgets?|forgot|remembers?|hopes?|likes|minds?|sleeps?|wakes? up)\b",
        r"\b(?:sockets?|connections?) (?:knows?|tells?|notices?)\b",
    ),
    rule(
        "metaphor",
        "acquire, release, close, discard, evict, retry, replay, time out, wait, raise, log",
        r"\bl[ei]nt out\b|\b(?:is|are|was|be|were) lent\b|\b(?:to )?lend(?:s|ing)?\b",
        r"\bbur(?:y|ies|ied|ying)\b",
        r"\bsever(?:s|ed|ing)?\b(?! )|\bsever(?:s|ed|ing)? (?!al)",
        r"\bfarewells?\b",
        r"\b(?:rings?|rang) (?:a|the|its|for)\b|\bthe bell\b",
        r"\battend(?:s|ed)? (?:to|them|it)\b",
        r"\bmend(?:s|ed|ing)?\b",
        r"\bheal(?:s|ed|ing)?\b",
        r"\bsays? no\b",
        r"\bbe at it\b",
        r"\bstands? in (?:a |the )?line\b",
        r"\b(?:has|have|had) patience\b",
        r"\b(?:is|are|was|were) settled\b|\bsettles?\b",
        r"\bstor(?:y|ies)\b",
        r"\bburn(?:s|t)\b",
        r"\bnowhere\b.*\bnothing at all\b|\bis nothing at all\b",
        r"\bunder a hammer\b|\bhammers?\b",
        r"\bone word makes?\b",
    ),
    rule(
        "empty",
        "say what it does; give the numbers their nouns",
        r"^(?:See|As|Likewise)(?! below)(?: [`\w.:]+){1,4}\.$",
        r"^Raises what\b",
        r"^Connections at most\b",
        r"\b(?:found|has) (?:two|three|\d+) errors so far\b",
        r"\bwould not be a promise\b",
        r"\bgoodbye and no\b",
    ),
)

NAMES = [*(each.name for each in RULES), "long-sentence", "long-cell", "long-line", "median"]

_WORD = re.compile(r"\S*\w\S*")
_END = re.compile(r"(?<=[.!?])[\"'”)*_]*\s+(?=[\"'“(*_`\[]*[A-Z0-9`\ufffc…]|[*\"]\w)")
_SHORT = re.compile(r"\b(?:e\.g|i\.e|vs|etc|cf|approx|no|ca)\.$", re.IGNORECASE)


def words(text: str) -> int:
    """The number of words in *text*. A code name counts as one."""
    return len(_WORD.findall(text))


def sentences(text: str) -> Iterator[str]:
    """The sentences of one paragraph."""
    start = 0
    text = text.strip()
    for match in _END.finditer(text):
        sentence = text[start : match.start()]
        if not _SHORT.search(sentence):
            yield sentence
            start = match.end()
    if text[start:]:
        yield text[start:]


def findings(text: str, *, cell: bool = False, heading: bool = False) -> Iterator[tuple[str, str]]:
    """(name of a rule, excerpt and advice) for a paragraph, a table's *cell* or a *heading*."""
    if cell and words(text) > LONGEST:
        yield "long-cell", f"{words(text)} words in a cell: {text[:60]}…"
    for sentence in sentences(text):
        if not cell and words(sentence) > LONGEST:
            yield "long-sentence", f"{words(sentence)} words: {sentence[:60]}…"
        for each in () if heading else RULES:
            for match in each.pattern.finditer(sentence):
                around = sentence[max(0, match.start() - 25) : match.end() + 25]
                yield each.name, f"…{around}… ({each.advice})"


def middle(paragraphs: list[str]) -> float:
    """The median length of all sentences of more than two words, in words; 0 without any."""
    lengths = [words(one) for text in paragraphs for one in sentences(text)]
    return median([length for length in lengths if length > 2] or [0])
