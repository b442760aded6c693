"""The options of each library's ``connect``, so that an option that was meant for the pool can be
told from the driver's own.

The lists hold the options of the supported versions, and those that SQLAlchemy's dialects read in a
URL beside them. The options that the installed version reports are added: they count as its own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from unbroken.errors import ConfigurationError
from unbroken.hints import shown, stray
from unbroken.messages.configuration import UNKNOWN_OPTION
from unbroken.settings import Settings

#: libpq 9.2 to 18, its manual, "Parameter Key Words".
_LIBPQ = """
    service servicefile user password passfile channel_binding connect_timeout dbname host hostaddr
    port client_encoding options application_name fallback_application_name keepalives
    keepalives_idle keepalives_interval keepalives_count tcp_user_timeout sslmode sslnegotiation
    sslcompression sslcert sslkey sslcertmode sslpassword sslrootcert sslcrl sslcrldir sslsni
    sslkeylogfile requirepeer require_auth min_protocol_version max_protocol_version
    ssl_min_protocol_version ssl_max_protocol_version gssencmode krbsrvname gsslib gssdelegation
    replication target_session_attrs load_balance_hosts scram_client_key scram_server_key
    oauth_issuer oauth_client_id oauth_client_secret oauth_scope
"""
_MYSQL = """
    user username password passwd host database db port unix_socket charset collation sql_mode
    read_default_file read_default_group conv use_unicode client_flag cursorclass init_command
    connect_timeout read_timeout write_timeout autocommit local_infile ssl ssl_ca ssl_cert ssl_key
    ssl_capath ssl_cipher ssl_check_hostname program_name server_public_key
"""
_PYMYSQL = """
    max_allowed_packet defer_connect auth_plugin_map bind_address binary_prefix ssl_disabled
    ssl_key_password ssl_verify_cert ssl_verify_identity compress named_pipe
"""
_MYSQLCLIENT = """
    compress named_pipe auth_plugin multi_statements executemany_fallback ssl_mode local_infile_dir
    binary_prefix
"""
_CONNECTOR = """
    allow_local_infile allow_local_infile_in_path auth_plugin buffered client_flags compress
    conn_attrs connection_timeout consume_results converter_class converter_str_fallback dns_srv
    dsn failover force_ipv6 get_warnings kerberos_auth_mode krb_service_principal oci_config_file
    oci_config_profile openid_token_file option_files option_groups password1 password2 password3
    pool_name pool_reset_session pool_size raise_on_warnings raw ssl_disabled ssl_verify_cert
    ssl_verify_identity time_zone tls_ciphersuites tls_versions use_pure webauthn_callback
    fido_callback prepared dictionary named_tuple
"""
_MARIADB = """
    reconnect converter connectionclass compress plugin_dir default_file default_group ssl_crl
    ssl_crlpath ssl_verify_cert ssl_enforce tls_version tls_fp tls_fp_list status_callback
    pool_name pool_size pool_reset_connection pool_reset_session pool_validation_interval
    auth_plugin net_buffer_length
"""
_ASYNCPG = """
    dsn host port user password passfile service servicefile database loop timeout
    statement_cache_size max_cached_statement_lifetime max_cacheable_statement_size command_timeout
    ssl direct_tls connection_class record_class server_settings target_session_attrs krbsrvname
    gsslib prepared_statement_cache_size prepared_statement_name_func async_creator_fn sslmode
    sslcert sslkey sslrootcert sslcrl sslpassword ssl_min_protocol_version ssl_max_protocol_version
    application_name options
"""
_PG8000 = """
    user host database port password source_address unix_sock ssl_context timeout tcp_keepalive
    application_name replication startup_params sock
"""
_OPTIONS: Mapping[str, str] = {
    "pymysql": _MYSQL + _PYMYSQL,
    "mysqlclient": _MYSQL + _MYSQLCLIENT,
    "mysqlconnector": _MYSQL + _CONNECTOR,
    "mariadb": _MYSQL + _MARIADB,
    "aiomysql": f"{_MYSQL} echo loop auth_plugin async_creator_fn",
    "asyncmy": f"""{_MYSQL} password_creator sock cursor_cls max_allowed_packet auth_plugin_map
        binary_prefix echo query_callback stmt_cache_size async_creator_fn""",
    "psycopg": f"""{_LIBPQ} conninfo autocommit prepare_threshold context row_factory cursor_factory
        async_creator_fn""",
    "psycopg2": f"{_LIBPQ} dsn connection_factory cursor_factory async async_",
    "pg8000": _PG8000,
    "asyncpg": _ASYNCPG,
}
#: Where the installed version lists its options: a module, and the path to a function or class.
_SAYS = {
    "pymysql": ("pymysql.connections", "Connection"),
    "aiomysql": ("aiomysql.connection", "Connection"),
    "asyncmy": ("asyncmy.connection", "Connection"),
    "psycopg": ("psycopg", "Connection.connect"),
    "pg8000": ("pg8000.dbapi", "connect"),
    "asyncpg": ("asyncpg", "connect"),
}
#: The options that any driver takes.
_ALL = frozenset(" ".join(_OPTIONS.values()).split())
#: Names of each setting of ours.
_OURS = tuple(each.name for each in fields(Settings))


def takes(driver: str) -> frozenset[str] | None:
    """Return the options of *driver* (its file's name). None: it is not known."""
    listed = _OPTIONS.get(driver)
    return None if listed is None else frozenset(listed.split()) | _said(driver)


def _said(driver: str) -> frozenset[str]:
    """Return the options that the installed library's ``connect`` reports; nothing if it is not
    imported.
    """
    module, path = _SAYS.get(driver, ("", ""))
    found: Any = sys.modules.get(module)
    if found is None:
        return frozenset()
    for name in path.split("."):
        found = getattr(found, name, None)
    return _arguments(found)


@cache
def _arguments(function: Any) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # it is written in C, and has no signature
        return frozenset()


def refuse_strays(options: Iterable[object], known: Collection[str], told: str, how: str) -> None:
    """Raise ConfigurationError for the first of *options* that is not among the *known* names and
    is meant for the pool: a setting, a misspelled one, or another pool's name for one.

    *told* is the beginning of the message, such as "pymysql has no option". *how* is a sentence
    that tells where settings belong. Any other unknown option is left to its owner.
    """
    for name in options:
        hint = stray(name, _OURS, known, _ALL)
        if hint is not None:
            hint = hint or "that is a setting of unbroken"
            stop = "" if hint.endswith("?") else "."
            raise ConfigurationError(UNKNOWN_OPTION(f"{told} {shown(name)}: {hint}{stop} {how}"))
