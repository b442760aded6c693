"""The private parts of psycopg that its driver relies on."""

from __future__ import annotations

from unbroken.drivers._seams import Seam

_CONNECTION, _CURSOR, _BASE = (
    "psycopg:Connection",
    "psycopg:Cursor",
    "psycopg._connection_base:BaseConnection",
)


SEAMS = (
    Seam(_CONNECTION, "_start_query", ("self",), ("_autocommit", "_exec_command")),
    Seam(_CONNECTION, "_exec_command", ("self", "command", "result_format")),
    Seam(_CONNECTION, "_commit_gen", ("self",), ("_exec_command",)),
    Seam(_CONNECTION, "_rollback_gen", ("self",), ("_exec_command",)),
    Seam(_CURSOR, "_start_query", ("self", "query"), ("_start_query",)),
    Seam(_CURSOR, "_execute_gen", ("self", "query", "params", ...), ("_start_query",)),
    Seam(
        _CURSOR,
        "_executemany_gen_no_pipeline",
        ("self", "query", "params_seq", "returning"),
        ("_start_query",),
    ),
    Seam(
        _CURSOR,
        "_executemany_gen_pipeline",
        ("self", "query", "params_seq", "returning"),
        ("_start_query",),
    ),
    Seam(_CURSOR, "_stream_send_gen", ("self", "query", "params", ...), ("_start_query",)),
    Seam(_CURSOR, "_start_copy_gen", ("self", "statement", "params"), ("_start_query",)),
    Seam("psycopg:ServerCursor", "_declare_gen", ("self", "query", ...), ("_start_query",)),
    Seam("psycopg:ServerCursor", "_fetch_gen", ("self", "num"), ("_exec_command",)),
    Seam("psycopg:Transaction", "_enter_gen", ("self",), ("_exec_command",)),
    Seam("psycopg:Transaction", "_commit_gen", ("self",), ("_exec_command",)),
    Seam("psycopg:Transaction", "_rollback_gen", ("self", "exc_val"), ("_exec_command",)),
    Seam("psycopg:Connection", "_connect_gen", ("conninfo", ...)),
    Seam(_CONNECTION, "_commit_gen", None, ("_num_transactions", "_tpc", "_pipeline")),
    Seam(_CONNECTION, "_get_tx_start_command", None, ("_begin_statement",)),
    Seam(
        _BASE,
        "__init__",
        None,
        ("pgconn", "_adapters", "_prepared", "_closed", "_notice_handlers", "_notify_handlers"),
    ),
    Seam(_BASE, "__init__", None, ("_isolation_level", "_read_only", "_deferrable", "_autocommit")),
    Seam(_CONNECTION, "_check_intrans_gen", ("self", "attribute")),
    Seam(_CONNECTION, "_set_autocommit_gen", ("self", "value"), ("_check_intrans_gen",)),
    Seam("psycopg.client_cursor:ClientCursorMixin", "_execute_send", None, ("send_query_params",)),
    Seam("psycopg._queries:PostgresClientQuery", "convert", None, ("template",)),
    Seam("psycopg:Connection", "commit", ("self",), ("lock", "_commit_gen")),
    Seam("psycopg:AsyncConnection", "commit", ("self",), ("lock", "_commit_gen")),
    Seam("psycopg:Cursor", "execute", ("self", "query", ...), ("lock", "_execute_gen")),
    Seam("psycopg:AsyncCursor", "execute", ("self", "query", ...), ("lock", "_execute_gen")),
    Seam("psycopg._preparing:PrepareManager", "get", None, ("prepare_threshold",)),
    Seam("psycopg.adapt:AdaptersMap", "register_dumper", ("self", "cls", "dumper")),
    Seam("psycopg.adapt:AdaptersMap", "register_loader", ("self", "oid", "loader")),
    Seam("psycopg._typeinfo:TypesRegistry", "add", ("self", "info")),
    Seam(
        _CURSOR,
        "_maybe_prepare_gen",
        ("self", "pgq", ...),
        (
            "_get_prepared",
            "_execute_send",
            "_send_prepare",
            "_send_query_prepared",
            "maybe_add_to_cache",
            "validate",
            "_check_results",
            "_set_results",
        ),
    ),
    Seam("psycopg._preparing:PrepareManager", "clear", None, ("_names", "_to_flush")),
    *(Seam("psycopg.generators", each) for each in ("execute", "fetch", "fetch_many", "send")),
    Seam("psycopg.waiting", "Ready"),
    Seam("psycopg:Connection", "wait", ("self", "gen", ...)),
    Seam("psycopg:AsyncConnection", "wait", ("self", "gen", ...)),
    Seam("psycopg.transaction:BaseTransaction", "__init__", None, ("_conn", "pgconn")),
)
