"""A first statement that is refused with the words of a service that serves nobody."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from unbroken.ledger.questions import Question
from unbroken.pool.state import PoolState
from unbroken.roles import Role

#: The server quotes what it reads here, until that is a path.
STATEMENT = sa.text("SELECT extractvalue('<a/>', (SELECT s FROM heal_refused))")


@pytest.mark.parametrize("is_so", [True, False], ids=["true words", "the applications own words"])
def test_it_is_sent_again_only_where_the_server_says_so_itself(
    face: Any, stats: Any, monkeypatch: pytest.MonkeyPatch, is_so: bool
) -> None:
    if not face.is_mysql:
        pytest.skip("PostgreSQL says with a severity whether a session ends")
    face.server.admin("CREATE OR REPLACE TABLE heal_refused (s VARCHAR(50)) ENGINE = InnoDB")
    face.server.admin("INSERT INTO heal_refused VALUES ('~primary is not serving')")
    engine = face.engine()
    before = face.ask(engine)
    original, asked = PoolState.read_answer, []

    def answer(self: Any, conn: Any, question: Question, *args: Any, **kwargs: Any) -> Any:
        if question is Question.ROLE:
            asked.append(question)
            if is_so and len(asked) == 1:
                face.server.admin("UPDATE heal_refused SET s = '/a'")
                return Role.UNREADY
        return (yield from original(self, conn, question, *args, **kwargs))

    monkeypatch.setattr(PoolState, "read_answer", answer)
    try:
        with engine.connect() as conn:
            if is_so:
                assert conn.execute(STATEMENT).scalar() == ""
            else:
                with pytest.raises(sa.exc.DBAPIError, match="primary is not serving"):
                    conn.execute(STATEMENT)
    finally:
        face.server.admin("DROP TABLE heal_refused")
    assert asked
    assert stats(engine).healed == is_so
    assert stats(engine).outages == is_so
    assert (face.ask(engine) != before) is is_so
