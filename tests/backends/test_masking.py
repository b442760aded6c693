"""Passwords are masked, and nothing else is: an error stays legible, and does not tell that the
password is the user's name.
"""

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.backends.masking import masked
from unbroken.backends.system import one_line

KNOWN = ("app", "shop", "db.example", "3306", "mysql+pymysql")
#: As servers, libraries and the system say it.
ERRORS = [
    "Access denied for user 'app'@'db.example' (using password: YES)",
    "Access denied for user 'app'@'localhost' (using password: NO)",
    "Accesso negato per l'utente 'app'@'db' (utilizzata password: SI)",
    'connection failed: FATAL:  password authentication failed for user "app"',
    'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "app", database "shop", no encryption',
    "Can't connect to MySQL server on 'db.example' ([Errno 111] Connection refused)",
    "Lost connection to MySQL server at 'handshake: reading initial communication packet'",
    "fe_sendauth: no password supplied",
    "Unknown database 'shop'",
    "a callable for the password raised KeyError (see the cause)",
]
#: Passwords that such an error has in it anyway.
WEAK = [
    "", "o", "a", "app", "shop", "db.example", "3306", "111", "YES", "NO", "password", "user",
    "mysql", "pymysql", "Access", "localhost", "authentication", "'", "@", ".", "'@'", "no", "the",
]  # fmt: skip


@pytest.mark.parametrize("secret", WEAK)
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_stays_as_it_is_whatever_the_password(error: str, secret: str) -> None:
    assert masked(error, [secret], KNOWN) == error


@pytest.mark.parametrize("secret", [*(each for each in WEAK if each), "s3cret!", "p@ss/w:rd"])
def test_a_place_for_passwords_shows_none(secret: str) -> None:
    """Nor does it show that the password is the user's name."""
    url = f"mysql://app:{quote(secret, safe='')}@db.example:3306/shop"
    assert masked(f"cannot open {url} now", [secret], KNOWN) == (
        "cannot open mysql://app:***@db.example:3306/shop now"
    )
    for said, value in (
        ("{'user': 'app', 'password': <>, 'port': 3306}", repr(secret)),
        ("passwd=<> for 'app'", repr(secret)),
        ('{"password": <>, "user": "app"}', json.dumps(secret)),
        ("bad password: <>", repr(secret)),
    ):
        for secrets in ([secret], []):  # be it known or not
            line = masked(said.replace("<>", value), secrets, KNOWN)
            shown = (said.replace("<>", mark) for mark in ("***", "'***'", '"***"'))
            assert line in shown


def test_a_connection_string_shows_none() -> None:
    said = "host=db.example user=app password={} dbname=shop"
    shown = said.format("***")
    for value in ("app", "it\\'s", "'it\\'s one'", "s3cret", "with\\ space"):
        assert masked(said.format(value), [], KNOWN) == shown
    assert masked(said.format("two words"), ["two words"], KNOWN) == shown
    assert masked("dsn 'password = s3cret!'", ["s3cret!"]) == "dsn 'password = ***'"
    assert masked("ssl_key_password='x y' sslpassword=z", []) == (
        "ssl_key_password=*** sslpassword=***"
    )
    assert masked("passfile=/root/.pgpass password_file=/x", []) == (
        "passfile=/root/.pgpass password_file=/x"
    )


@pytest.mark.parametrize(
    "secret",
    ["hunter", "s3cret", "p@ss/w:rd", "a+b c&d", "it's \"one\"", "back\\slash", "pä ss", "пароль",
     ".*+?", "(a|b)", "[x-z]+$", "100%", "two\nlines", "emoji 🙂!"],
)  # fmt: skip
def test_a_password_is_masked_in_each_form_that_it_has(secret: str) -> None:
    forms = {
        secret, quote(secret, safe=""), quote(secret), quote_plus(secret), repr(secret),
        ascii(secret), json.dumps(secret), repr(secret.encode()), secret.replace("'", "\\'"),
    }  # fmt: skip
    for form in forms:
        line = one_line(f"ValueError: cannot log in with {form}, said db.example", secret)
        assert "***" in line, form
        assert line.endswith(", said db.example"), line
        inner = " ".join(form.strip("b'\"").split())
        assert inner not in line, line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("shop-db.example and shop.example", "shop-db.example and shop.example"),
        ("workshop, shopping, shop_1", "workshop, shopping, shop_1"),
        ("bad shop. Or 'shop'? (shop) shop", "bad ***. Or '***'? (***) ***"),
    ],
)
def test_a_short_password_is_masked_as_a_whole_word_only(text: str, shown: str) -> None:
    assert masked(text, ["shop"]) == shown


def test_all_passwords_so_far_are_masked() -> None:
    secrets = [f"t0ken-{number}" for number in range(100)]
    line = masked(" ".join(secrets), secrets)
    assert line == " ".join(["***"] * 100)


def test_the_urls_of_mongodb_show_none() -> None:
    said = "mongodb://u:p%40w@h1:27017,h2/db and mongodb+srv://u:p/w@h/db"
    assert masked(said) == "mongodb://u:***@h1:27017,h2/db and mongodb+srv://u:***@h/db"


@given(st.text(max_size=40), st.text(max_size=200))
def test_any_text_and_any_secret(secret: str, text: str) -> None:
    assert isinstance(masked(text, [secret], [text]), str)
    if masked(text, [secret]) != masked(text):
        assert "***" in masked(text, [secret])
