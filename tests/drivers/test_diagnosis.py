"""The option that is to blame for a failed connect is named, with what is wrong with its file."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from unbroken.abc import Fault, FaultKind, Target
from unbroken.drivers._diagnosis import asks_for_password, diagnosed, options_of
from unbroken_drill.servers import certificates

K = FaultKind
TCP = Target("mysql", "mysql", "db", 3306)
UNIX = Target("mysql", "mysql", None, None, "/run/mysqld.sock")
NO_FILE = Fault(K.REFUSED, None, errno.ENOENT, "[Errno 2] No such file or directory")
TLS = Fault(K.REJECTED, None, 2026, "TLS/SSL error")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("files")
    certificates.make(folder / "one", "localhost")
    certificates.make(folder / "two", "localhost")
    openssl = shutil.which("openssl")
    assert openssl is not None
    key = folder / "one" / "server.key"
    command = [openssl, "pkey", "-aes128", "-passout", "pass:x", "-in", key]
    subprocess.run([*command, "-out", folder / "closed.key"], check=True, capture_output=True)
    (folder / "junk.pem").write_text("no certificate\n")
    return folder


def found(fault: Fault = TLS, target: Target = TCP, **options: Any) -> Fault:
    return diagnosed(fault, target, options_of(options, "in the URL"))


@pytest.mark.parametrize("name", ["ssl_ca", "sslrootcert", "sslcert", "ssl_key", "passfile"])
def test_a_file_that_is_missing_a_folder_or_may_not_be_read(name: str, tmp_path: Path) -> None:
    missing = found(NO_FILE, **{name: str(tmp_path / "none")})
    assert missing.kind is K.MISCONFIGURED
    assert f"{name}={tmp_path}/none in the URL: there is no such file" in missing.text
    folder = found(**{name: str(tmp_path)})
    assert folder.kind is K.MISCONFIGURED
    assert "it is a folder, not a file" in folder.text
    assert "is not a valid file name" in found(**{name: "a\0b"}).text


def test_dictionaries_inside_options_are_looked_into(tmp_path: Path) -> None:
    fault = found(NO_FILE, ssl={"ca": tmp_path / "none"})
    assert "ssl.ca=" in fault.text
    assert "there is no such file" in fault.text


def test_certificates_and_keys_that_will_not_do(files: Path) -> None:
    cert, key = str(files / "one" / "server.pem"), str(files / "one" / "server.key")
    other, junk = str(files / "two" / "server.key"), str(files / "junk.pem")
    assert found(ssl_cert=cert, ssl_key=key, ssl_ca=str(files / "one" / "ca.pem")) == TLS
    assert "does not belong to the certificate" in found(ssl_cert=cert, ssl_key=other).text
    assert f"ssl_ca={junk} in the URL: it contains no certificate" in found(ssl_ca=junk).text
    assert f"ssl_cert={junk} in the URL: it contains no" in found(ssl_cert=junk, ssl_key=key).text
    assert (
        f"ssl_key={junk} in the URL: it contains no key" in found(ssl_cert=cert, ssl_key=junk).text
    )


@pytest.mark.parametrize("name", ["ssl_key", "sslkey"])
def test_an_encrypted_key_is_found_before_openssl_asks_on_the_terminal(
    files: Path, name: str
) -> None:
    closed = str(files / "closed.key")
    fault = asks_for_password(options_of({name: closed}, "in the URL"))
    assert fault is not None
    assert f"{name}={closed} in the URL: the key is encrypted" in fault.text
    with_one = options_of({name: closed, "ssl_key_password": "x"}, "in the URL")
    assert asks_for_password(with_one) is None
    assert asks_for_password(options_of({name: str(files / "no")}, "in the URL")) is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["ssl_ca", "ssl_cert", "ssl_key"])
def test_a_pipe_is_left_to_the_driver_for_it_can_be_read_only_once(
    files: Path, name: str, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cert, key = str(files / "one" / "server.pem"), str(files / "one" / "server.key")
    options = {"ssl_cert": cert, "ssl_key": key, name: str(pipe)}
    assert asks_for_password(options_of(options, "in the URL")) is None
    assert found(**options) == TLS


def test_a_file_is_not_blamed_for_what_the_network_or_the_server_said(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    for fault in (
        Fault(K.REFUSED, None, 111, "[Errno 111] Connection refused"),
        Fault(K.UNREACHABLE, None, 110, "timed out"),
        Fault(K.NOT_READY, None, "57P03", "the database system is starting up"),
        Fault(K.TOO_MANY, None, 1040, "Too many connections"),
    ):
        assert found(fault, ssl_ca=missing) == fault
    no = found(Fault(K.REJECTED, None, 1045, "Access denied"), read_default_file=missing)
    assert (no.kind, no.code) == (K.REJECTED, 1045)  # the server's no stays one
    assert f"Access denied; read_default_file={missing}" in no.text


def test_a_socket_that_is_not_there_is_a_server_that_is_down_and_a_file_is_no_socket(
    tmp_path: Path,
) -> None:
    assert found(NO_FILE, UNIX) == NO_FILE
    path = tmp_path / "plain"
    path.touch()
    at_file = Target("mysql", "mysql", None, None, str(path))
    fault = found(Fault(K.REFUSED, None, 111, "refused"), at_file)
    assert fault.kind is K.MISCONFIGURED
    assert "the file is not a socket" in fault.text
    quoted = Fault(K.REFUSED, None, None, 'on socket "/x/.s" failed: No such file or directory')
    assert found(quoted) == quoted


@pytest.mark.parametrize(
    ("text", "options", "named"),
    [
        ("Unknown collation: 'nosuch'", {"collation": "nosuch"}, "collation"),
        ('unrecognized configuration parameter "nosuch"', {"options": "-c nosuch=1"}, "options"),
        ("No cipher can be selected.", {"ssl_cipher": "X", "charset": "utf8"}, "ssl_cipher"),
        ("near 'SELEKT 1' at line 1", {"init_command": "SELEKT 1"}, "init_command"),
        ("certificate verify failed", {"sslrootcert": "system", "app": "x"}, "sslrootcert"),
    ],
)
def test_the_option_that_words_are_about_is_named(text: str, options: Any, named: str) -> None:
    fault = found(Fault(K.OTHER, None, 1064, text), **options)
    assert fault.kind is K.OTHER
    assert f"(see {named}=" in fault.text
    assert fault.text.count(" in the URL") == 1


def test_a_password_among_the_options_is_not_shown() -> None:
    fault = found(Fault(K.MISCONFIGURED, text="TypeError: no"), ssl_key_password="hush", a="1")
    assert "hush" not in fault.text
    assert "ssl_key_password in the URL" in fault.text


@pytest.mark.parametrize("name", ["ssl_verify_cert", "scram_client_key", "server_public_key"])
def test_an_option_that_only_sounds_like_a_file_is_none(name: str) -> None:
    lost = Fault(K.LOST, None, None, "the server closed the connection")
    assert found(lost, **{name: "c2VjcmV0"}) == lost


def test_a_key_that_is_a_secret_is_never_shown() -> None:
    fault = found(Fault(K.MISCONFIGURED, None, None, "x"), scram_client_key="c2VjcmV0")
    assert "c2VjcmV0" not in fault.text
    fault = found(
        Fault(K.MISCONFIGURED, None, None, "bad scram_server_key"), scram_server_key="x1y"
    )
    assert "x1y" not in fault.text


def test_a_word_of_every_error_blames_no_option() -> None:
    lost = Fault(K.LOST, None, None, "the server closed the connection")
    assert found(lost, server_settings="x", client_flag="1") == lost
