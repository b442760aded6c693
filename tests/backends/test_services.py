"""The words of managed services: each row is found by its words and codes, and by nothing else."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from unbroken.abc import Cause, FaultKind
from unbroken.backends import services_mysql, services_postgresql
from unbroken.backends.commits import proves_nothing_stored
from unbroken.backends.fault import cause_of_words, refuses_login
from unbroken.backends.mysql import mysql_fault
from unbroken.backends.postgresql import postgres_fault
from unbroken.backends.services import Word

from .samples import MYSQL, POSTGRESQL, Sample

SCRIPT = Path(__file__).parents[2] / "scripts" / "services-page"


@pytest.mark.parametrize("name", MYSQL)
def test_what_a_service_says_in_mysqls_protocol(name: str) -> None:
    code, text, connecting, in_use, cause = MYSQL[name]
    assert isinstance(code, int)
    _check(mysql_fault, code, text, connecting, in_use, cause)
    if cause is not None and in_use is FaultKind.LOST:
        assert cause_of_words(code, text, "mysql") is cause


@pytest.mark.parametrize("name", POSTGRESQL)
def test_what_a_service_says_in_postgresqls_protocol(name: str) -> None:
    code, text, connecting, in_use, cause = POSTGRESQL[name]
    _check(postgres_fault, code, text, connecting, in_use, cause)
    if cause is not None and in_use is FaultKind.LOST:
        assert cause_of_words(code, text, "postgresql") is cause
    if connecting is not None:  # as libpq tells it, without a code
        line = f'connection failed: connection to server at "127.0.0.1", port 6543\nfailed: FATAL:  {text}'  # noqa: E501
        assert postgres_fault(None, line, connecting=True).kind is connecting


def _check(
    read: Any,
    code: int | str,
    text: str,
    connecting: FaultKind | None,
    in_use: FaultKind | None,
    cause: Cause | None,
) -> None:
    if connecting is not None:
        assert read(code, text, connecting=True).kind is connecting
        assert read(code, text, connecting=True).code == code
    if in_use is not None:
        fault = read(code, text)
        assert (fault.kind, fault.cause, fault.code) == (in_use, cause, code)


@pytest.mark.parametrize(
    ("row", "samples"),
    [
        *((row, MYSQL) for row in services_mysql.ROWS),
        *((row, POSTGRESQL) for row in services_postgresql.ROWS),
    ],
    ids=lambda value: value.meaning[:30] if isinstance(value, Word) else "",
)
def test_every_row_has_a_source_and_words_that_are_specific(
    row: Word, samples: dict[str, Sample]
) -> None:
    assert row.source
    assert row.connecting or row.in_use
    assert row.codes or samples is POSTGRESQL
    for words in row.words:
        for each in (words,) if isinstance(words, str) else words:
            assert each == each.lower()
            assert len(each) >= 4


@pytest.mark.parametrize("name", MYSQL)
def test_no_words_of_a_service_prove_anything_of_a_commit_but_tidbs(name: str) -> None:
    code, text = MYSQL[name][:2]
    proof = name.startswith("tidb") and code in (8022, 8028, 9007)
    assert proves_nothing_stored("mysql", code, text) is (proof or code == 1290)


def test_a_login_that_a_service_refuses_may_be_cured_by_another_password() -> None:
    said = {
        name: refuses_login(postgres_fault(None, sample[1], connecting=True), "postgresql")
        for name, sample in POSTGRESQL.items()
        if sample[2] is FaultKind.REJECTED
    }
    assert {name for name, may in said.items() if may} == {
        "supavisor-unknown", "supavisor-not-found", "rds-proxy-unknown", "rds-proxy-password",
        "pgcat-unknown", "odyssey-route",
    }  # fmt: skip


def test_the_page_is_what_the_tables_say() -> None:
    generator = runpy.run_path(str(SCRIPT))
    text = generator["PAGE"].read_text()
    assert text == generator["page"](text), "run scripts/services-page"
