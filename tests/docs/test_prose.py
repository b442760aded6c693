"""The linter of the project's English finds what it should, and lets plain sentences pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from prose import __main__ as command
from prose import readers, rules

#: For each rule: sentences that it finds, and how the same is said plainly.
PAIRS = {
    "headless-who": [
        ("Who had time enough was told so.", "A caller that had enough time got an error."),
        ("The place is kept for whoever waits.", "The pool keeps the place for the next waiter."),
    ],
    "headless-what": [
        ("What is silent is closed.", "The pool closes silent connections."),
        (
            "The idle limit: what was learned stays.",
            "The pool keeps what it learned.",
        ),
    ],
    "headless-adjective": [
        ("The dead are replaced.", "The pool replaces dead connections."),
        ("Of the bytes none goes over the wire.", "No byte goes over the wire."),
    ],
    "see-to-it": [("The pool sees to it that all are closed.", "The pool closes all of them.")],
    "is-to-be": [
        ("The name is to be given.", "You must give the name."),
        ("Its calls had better wait.", "Its calls should wait."),
    ],
    "translated": [
        ("It is, as it were, a pool.", "It is a pool."),
        ("Clients in haste give up.", "Clients with a short deadline give up."),
    ],
    "doubled": [("We know that that connection died.", "We know that the connection died.")],
    "away": [("While it is away, callers wait.", "While it is down, callers wait.")],
    "personified": [
        ("The socket tells of the loss.", "The kernel reports the loss."),
        ("A server says why it ends.", "A server sends the reason before it closes."),
    ],
    "metaphor": [
        ("The connection is lent.", "The connection is checked out."),
        ("The pool buries it.", "The pool discards it."),
    ],
    "empty": [("Raises what says no.", "Raises the exception that refused the request.")],
    "long-sentence": [("word " * 36 + ".", "word " * 35 + ".")],
}

#: From the guide of style: before, after.
GUIDE = [
    (
        "Whose calls had better wait says so, below.",
        "To make calls wait instead, set `outage_wait`; see below.",
    ),
    (
        "The dead are replaced unseen, and only they.",
        "The pool replaces dead connections before the caller notices. Healthy connections stay.",
    ),
    (
        "- who had time enough and was to be replayed was told success or unknown, nothing else",
        'A replayable unit that had enough time ended in success or in "unknown".',
    ),
    (
        "A server is away; it was taken for one that rejects its clients, who were told so at once",
        "The pool now treats this error as an outage. Before, it reported a permanent rejection.",
    ),
    (
        "Where two per cent are the question, best slices cannot tell",
        "The best-slice method cannot resolve differences as small as 2 %.",
    ),
    (
        "Connections at most, those being opened included.",
        "Maximum number of connections, including those being opened.",
    ),
    ("once too often does no harm", "Calling it more than once is harmless."),
    (
        "False if it opened none for certain",
        "Return False only if the connection certainly has no open transaction.",
    ),
    (
        "The refused changed their own minds, were in haste, or a plain transaction.",
        "Refused units fall into three groups: 10 % abort on purpose, some have a short deadline.",
    ),
    (
        'A line with "sometimes" in it would not be a promise, so the limits stand below each.',
        "Each promise is unconditional within its stated limits.",
    ),
    ("Raises what says no.", "Raises the exception that refused the request."),
    (
        "Mended so, the pools' tests were run once more",
        "After this fix we reran the pool tests, except those that start their own processes.",
    ),
    ("It has found two errors so far.", "The history check has found two bugs so far."),
    (
        "none goes over a connection of the parent's, no goodbye and no `close_notify`",
        "No child sends a byte on its parent's connections, not even a goodbye packet.",
    ),
]


def found(text: str) -> set[str]:
    return {name for each in readers.page(text) for name, _ in rules.findings(each.text)}


def test_every_rule_on_text_has_a_pair() -> None:
    assert set(rules.NAMES) - {"long-cell", "long-line", "median"} == set(PAIRS)


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [(rule, *pair) for rule, pairs in PAIRS.items() for pair in pairs],
)
def test_a_rule_finds_its_sentence_and_not_the_plain_one(
    rule: str, before: str, after: str
) -> None:
    assert rule in found(before)
    assert found(after) == set()


@pytest.mark.parametrize(("before", "after"), GUIDE)
def test_the_guides_pairs_are_told_apart(before: str, after: str) -> None:
    assert found(before)
    assert found(after) == set()


def test_a_cell_is_short_and_code_in_it_is_one_word() -> None:
    long = "word " * 34 + "`a b c d`"
    assert [name for name, _ in rules.findings(long + " word", cell=True)] == ["long-cell"]
    table = f"| a |\n|---|\n| {long} |\n"
    cells = [each for each in readers.page(table) if each.kind == "cell"]
    assert list(rules.findings(cells[-1].text, cell=True)) == []


def test_wide_lines_are_found_but_not_in_tables_code_or_links() -> None:
    wide = "word " * 30
    text = f"{wide}\n| {wide} |\n```\n{wide}\n```\n[word]({'x' * 120}) and more\n"
    assert [number for number, _ in readers.wide_lines(text, 100)] == [1]


def test_a_page_of_long_sentences_has_a_high_median() -> None:
    assert rules.middle(["Word " * 21 + "end. " + "Word " * 19 + "end. Yes."]) == 21


def test_docstrings_comments_and_messages_are_read_and_sql_is_not() -> None:
    text = '''"""The module's docstring."""

# A comment that goes
# over two lines.
LIMIT = 5  # a comment beside


def work(name: str) -> None:
    """What is done.

    Its second paragraph with ``code in it``.
    """
    log.warning("A message with five words %s", f"and {name} is one more here")
    execute("SELECT a, b, c FROM d WHERE e = f")
'''
    read = [(each.kind, each.text) for each in readers.source(text)]
    assert sorted(read) == [
        ("comment", "A comment that goes over two lines."),
        ("comment", "a comment beside"),
        ("docstring", f"Its second paragraph with {readers.CODE}."),
        ("docstring", "The module's docstring."),
        ("docstring", "What is done."),
        ("message", f"A message with five words {readers.CODE}"),
        ("message", f"and {readers.CODE} is one more here"),
    ]


def read(source: str) -> list[str]:
    return [each.text for each in readers.source(source)]


def test_lists_of_names_and_programs_are_no_sentences() -> None:
    for names in ("max_size pool_size size host port user a an", "ABS ACOS LIKE IS NOT LOCATE LOG"):
        assert read(f'_WORDS = "{names} {names.upper()}"') == []
    assert read('_PROGRAM = """\nimport os, sys\nfor each in os.listdir(): print(each)\n"""') == []
    assert read('_SQL = "a <> 0 OR EXISTS (SELECT FROM b WHERE c = d)"') == []
    sentence = "the pool closes a connection of the parent and opens a new one in the child"
    assert read(f'_TEXT = "{sentence}"') == [sentence]


def test_names_in_a_list_within_a_sentence_are_code() -> None:
    listed = "# The verbs are fin, half_close, latency and heal.\n"
    assert read(listed.replace(" and", ",")) == [f"The verbs are {', '.join(readers.CODE * 4)}."]
    plain = "# Reset, close, cut and heal."
    assert read(plain) == ["Reset, close, cut and heal."]


def test_preformatted_paragraphs_for_click_are_not_read() -> None:
    assert read('"""Break them.\n\n\b\n    curl -d x http://h/heal\n\nEnd it.\n"""') == [
        "Break them.",
        "End it.",
    ]


def test_the_baseline_only_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "BASELINE", tmp_path / "baseline.json")
    command.shrink({"old.py": 5, "clean.py": 0})
    assert command.baseline() == {"old.py": 5}
    command.shrink({"old.py": 7, "new.py": 2})
    assert command.baseline() == {"old.py": 5}
    command.shrink({"old.py": 3, "new.py": 2})
    assert command.baseline() == {"old.py": 3}


def test_a_file_with_more_findings_than_the_baseline_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("The server is away.\n")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(command, "files", lambda: [page])
    monkeypatch.setattr(sys, "argv", ["prose"])
    assert command.main() == 1
    assert "page.md:1: away: " in capsys.readouterr().out
    command.shrink({"page.md": 1})
    assert command.main() == 0
