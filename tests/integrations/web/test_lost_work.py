"""What a client is told when a request lost a connection and is not run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from ...bodies.spending import spend
from .fates import COUNT, Awaiting, Django, Fastapi, Flask, Place, Wsgi, told

#: Its answer is an error of the application's.
FAULTY = "SELECT 1 / (COUNT(*) - COUNT(*)) FROM fate"

#: What a view of a POST that is not marked does, and what its client must be told: status, fate,
#: rows stored.
STORIES = {
    "inside a transaction": (["lose"], 503, "nothing stored", 0),
    "after a transaction that was stored": (["store", "lose"], 500, "stored", 1),
}  # fmt: skip


def then_fail(body: Any, work: str) -> None:
    """The view does *work* and handles its error, if there is one; then it meets a fault of its
    own.
    """
    step: Callable[[], Any] = getattr(body, work)

    def blocking() -> None:
        try:
            step()
        except Exception:
            body.was_lost = True
        raise ValueError("the app's own fault")

    async def awaiting() -> None:
        try:
            await step()
        except Exception:
            body.was_lost = True
        raise ValueError("the app's own fault")

    body.steps = ["fail"]
    body.fail = awaiting if isinstance(body, Awaiting) else blocking


def is_its_own(body: Any) -> bool:
    """Whether the client of a POST gets the error page of the app, or of its server."""
    try:
        status, headers, data = body.ask("POST")
    except ValueError:
        return True
    return status == 500 and "retry-after" not in headers and b'"fate"' not in data


@pytest.mark.parametrize("story", list(STORIES))
def test_the_client_is_told_by_the_ledger_whether_to_repeat_the_request(
    story: str, body: Any
) -> None:
    body.steps, status, fate, rows = STORIES[story]
    reply = body.ask("POST")
    assert told(reply) == (status, fate)
    if status == 503:
        assert "The connection to the database was lost" in json.loads(reply[2])["detail"]
    assert body.place.rows() == rows


@pytest.mark.parametrize("arrives", [True, False])
def test_a_write_in_autocommit_without_an_answer_is_unknown(arrives: bool, body: Any) -> None:
    body.steps = ["alone"]
    body.place.proxy.cut_at("INSERT INTO fate", before=not arrives)
    assert told(body.ask("POST")) == (500, "unknown")
    assert body.place.rows() == arrives


def test_a_request_that_the_retry_budget_refuses_is_told_to_come_again(body: Any) -> None:
    body.steps = ["read"]
    assert body.ask("GET")[0] == 200  # the pools are known
    first = ["lose"]

    def lose() -> Any:
        spend()
        return lost() if first and first.pop() else body.read()

    lost, body.lose = body.lose, lose
    body.steps = ["lose"]
    assert told(body.ask("GET")) == (503, "nothing stored")
    assert body.place.rows() == 0


def test_a_loss_that_the_app_has_handled_does_not_hide_its_own_fault(body: Any) -> None:
    then_fail(body, "lose")
    assert is_its_own(body)
    assert body.was_lost


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
@pytest.mark.parametrize("body", ["flask", "fastapi", "django", "django under asgi"], indirect=True)
def test_a_fault_of_a_statement_that_was_repeated_is_the_apps_own(body: Any) -> None:
    """The loss is behind it in the chain of exceptions, and was cured."""
    if isinstance(body, Fastapi):

        async def fail() -> None:
            async with body.engine.connect() as conn:
                await body.reset()
                await conn.execute(sa.text(FAULTY))

        body.fail = fail
    elif isinstance(body, Django):

        def fail_in_django() -> None:
            body.read()
            body.reset()
            body.sql(FAULTY)

        body.fail = fail_in_django
    else:

        def fail_in_flask() -> None:
            body.db.session.execute(sa.text(COUNT))
            body.db.session.commit()
            body.reset()
            body.db.session.execute(sa.text(FAULTY))

        body.fail = fail_in_flask
    body.steps = ["fail"]
    status, headers, data = body.ask("POST")
    assert status == 500
    assert "retry-after" not in headers
    assert b'"fate"' not in data


def test_a_statement_that_was_repeated_does_not_hide_a_fault_of_the_app(
    place: Place, settings: Any
) -> None:
    body = Django(place, settings)
    body.was_lost = False  # type: ignore[attr-defined]

    def heal() -> None:
        body.read()
        body.reset()
        body.read()

    body.heal = heal  # type: ignore[attr-defined]
    then_fail(body, "heal")
    assert is_its_own(body)
    assert not body.was_lost  # type: ignore[attr-defined]
    body.close()


def test_the_app_may_still_answer_a_loss_by_itself(place: Place) -> None:
    body = Wsgi(place)

    def lose() -> None:
        with pytest.raises(Exception, match=r"."):
            Wsgi.lose(body)

    body.lose = lose  # type: ignore[method-assign]
    body.steps = ["lose"]
    assert body.ask("POST")[0] == 200
    body.close()


def test_a_page_that_an_error_handler_makes_of_a_loss_is_its_own(place: Place) -> None:
    body = Flask(place)

    @body.app.errorhandler(sa.exc.DBAPIError)
    def sorry(_error: Exception) -> Any:
        return "sorry", 500

    body.steps = ["lose"]
    answer = body.ask("POST")
    assert (answer[0], answer[2]) == (500, b"sorry")
    body.close()
