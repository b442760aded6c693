"""Other products' names for our settings, and the hint for each name that is no setting here.

Other pools' names are known in hints only: no pool takes them. Only letters and digits are
compared, so ``maxPoolSize``, ``MAX_POOL_SIZE`` and ``Max Pool Size`` are one word.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

_MS = "in seconds here, not milliseconds"
_UNIT = "in seconds here; other pools use other units"
_NEVER = "write math.inf for never, not -1, 0 or None"
_NO_LIMIT = "a number of connections; 0 is not 'unlimited'"
#: The maximum number of characters of a wrong value that a message shows.
_LONGEST = 80
_SEEN = "not needed: the pool detects dead connections at acquire, without a round trip"

#: A setting of ours, a fact about it, and its names elsewhere. An empty setting: there is none, and
#: the text gives the reason.
_POOLS: tuple[tuple[str, str, str], ...] = (
    # -- how many ----------------------------------------------------------------------------------
    (
        "max_size",
        "it counts all connections, including SQLAlchemy's max_overflow",
        "pool_size",
    ),  # also Ecto, mysql-connector
    (
        "",
        "there is no overflow: max_size counts all connections (pool_size + max_overflow)",
        "max_overflow pool_overflow overflow",
    ),
    (
        "max_size",
        _NO_LIMIT,
        "max_connections maxconnections max_conns pool_max_conns maxconn max_conn"
        " maximum_pool_size max_pool_size max_open_conns set_max_open_conns max_open_connections"
        " max_active max_total connection_limit connections_limit max_clients max_client_conn"
        " default_pool_size pool_max_size size poolsize pool_max max max_connection",
    ),  # peewee, Go, DBUtils, django-db-geventpool, psycopg2.pool, aiomysql, HikariCP, DBCP, Prisma
    (
        "min_size",
        "",
        "mincached minconn min_conn min_conns pool_min_conns min_connections"
        " minimum_pool_size min_pool_size pool_min_size minimum_idle min_idle min_idle_conns"
        " initial_size initial_pool_size init_size pool_min min",
    ),
    (
        "",
        "there is no limit on the number of idle connections: above min_size, the pool closes those"
        " that were idle for max_idle seconds",
        "maxcached max_idle_count max_idle_conns set_max_idle_conns max_idle_connections"
        " reuse_conns",
    ),
    (
        "max_waiting",
        "the maximum number of waiting callers; acquire_timeout limits each wait, in seconds",
        "wait_queue_multiple queue_limit queue_size blocking wait_for_connections",
    ),
    # -- how long to wait --------------------------------------------------------------------------
    (
        "acquire_timeout",
        "it limits the wait for a connection; connect_timeout limits one attempt to connect, and"
        " deadline limits the whole use of a connection; each in seconds",
        "timeout",
    ),
    (
        "acquire_timeout",
        "in seconds",
        "pool_timeout checkout_timeout wait_timeout_seconds conn_wait_timeout query_wait_timeout"
        " get_timeout pool_acquire_timeout load_balance_timeout",
    ),
    (
        "acquire_timeout",
        _MS,
        "wait_queue_timeout_ms max_wait max_wait_millis max_wait_time acquire_timeout_millis"
        " acquire_timeout_ms max_acquire_time acquire acquire_millis",
    ),
    (
        "shed_target",
        _MS,
        "queue_target queue_interval",
    ),  # Ecto
    (
        "acquire_timeout",
        "in seconds here, but in milliseconds in HikariCP and node; connect_timeout limits one"
        " attempt to connect",
        "connection_timeout connection_timeout_millis connection_timeout_ms",
    ),
    (
        "connect_timeout",
        _UNIT,
        "connect_timeout_ms server_connect_timeout create_timeout_millis login_timeout"
        " max_create_connection_time socket_connect_timeout conn_timeout",
    ),
    (
        "outage_wait",
        "how long callers wait for a server that is down; in seconds",
        "reconnect_timeout server_selection_timeout_ms retry_deadline retry_timeout"
        " initialization_fail_timeout",
    ),
    (
        "deadline",
        "it limits the whole use of a connection; in seconds",
        "command_timeout query_timeout socket_timeout socket_timeout_ms timeout_ms"
        " statement_timeout_ms operation_timeout execution_timeout max_execution_time",
    ),
    # -- how long to keep --------------------------------------------------------------------------
    ("max_age", f"in seconds; {_NEVER}", "pool_recycle recycle conn_max_age stale_timeout"),
    (
        "max_age",
        _UNIT,
        "max_lifetime max_life_time conn_max_lifetime set_conn_max_lifetime"
        " pool_max_conn_lifetime max_conn_lifetime max_conn_lifetime_millis max_connection_age"
        " max_connection_lifetime connection_lifetime max_lifetime_seconds max_lifetime_ms"
        " server_lifetime lifetime conn_lifetime ttl max_conn_age pool_max_lifetime",
    ),
    (
        "max_idle",
        _UNIT,
        "max_inactive_connection_lifetime idle_timeout idle_timeout_millis idle_timeout_ms"
        " max_idle_time max_idle_time_ms conn_max_idle_time set_conn_max_idle_time"
        " pool_max_conn_idle_time max_conn_idle_time connection_idle_lifetime"
        " min_evictable_idle_time_millis min_evictable_idle_time server_idle_timeout"
        " conn_idle_timeout idle max_connection_idle_time pool_idle_timeout",
    ),
    (
        "",
        "the pool does not count uses: max_age retires a connection by its age, in seconds",
        "max_queries maxusage max_uses max_usage max_use max_requests",
    ),
    (
        "idle_limit",
        "how long the server lets a connection idle, in seconds; the pool asks the server for it",
        "wait_timeout interactive_timeout idle_session_timeout server_idle_limit",
    ),
    # -- whether it is alive -----------------------------------------------------------------------
    (
        "",
        f"{_SEEN}; ping_after sets after how many idle seconds it also pings the server",
        "pool_pre_ping pre_ping ping check test_on_borrow test_before_acquire test_while_idle"
        " test_on_return validation_query connection_test_query test_query conn_health_checks"
        " health_check health_checks validate check_on_borrow is_fatal isfatal failures"
        " retry_on_timeout auto_reconnect automatic_reconnect reconnect",
    ),
    (
        "ping_after",
        _UNIT,
        "keepalive_time idle_interval server_check_delay idle_connection_test_period"
        " health_check_interval ping_interval pool_health_check_period health_check_period"
        " validation_interval check_interval conn_check_interval",
    ),
    ("ping_timeout", _UNIT, "validation_timeout verify_timeout ping_timeout_millis"),
    (
        "keepalive",
        "seconds of silence before the first TCP keepalive probe",
        "keepalives_idle keepalives tcp_keepalive keep_alive_delay tcp_keepalives_idle",
    ),
    ("send_timeout", "in seconds here; TCP_USER_TIMEOUT is in milliseconds", "tcp_user_timeout"),
    # -- leaks -------------------------------------------------------------------------------------
    (
        "leak_after",
        f"the pool logs the line that acquired the connection; reclaim=True also ends it; {_UNIT}",
        "leak_detection_threshold remove_abandoned_timeout unreturned_connection_timeout"
        " suspect_timeout ownership_timeout leak_timeout leak_detection",
    ),
    (
        "reclaim",
        "True or False; leak_after sets after how many seconds",
        "remove_abandoned remove_abandoned_on_borrow remove_abandoned_on_maintenance",
    ),
    (
        "",
        "not needed: leak_after always logs the line that acquired the connection",
        "log_abandoned",
    ),
    # -- sessions ----------------------------------------------------------------------------------
    (
        "reset",
        "'rollback', 'session', None or a callable that takes the connection",
        "pool_reset_on_return reset_on_return rollback_on_return no_reset_on_close reset_query"
        " server_reset_query",
    ),
    (
        "reset",
        "reset='session' undoes the effects of statements on the session",
        "pool_reset_session",
    ),
    (
        "",
        "set up new connections with the driver's own options: init_command in a MySQL URL, options"
        " in a PostgreSQL URL; or give connect= a callable",
        "configure setup init on_connect setsession connection_init_sql connect_query"
        " after_connect after_create session_variables init_sql init_commands",
    ),
    ("name", "", "pool_name pool_logging_name logging_name"),
    # -- retries -----------------------------------------------------------------------------------
    (
        "max_replays",
        "it limits how often one unit of work is run again; the pool retries connects until"
        " acquire_timeout or outage_wait is over",
        "max_retries retries retry connection_retries retry_count retry_attempts max_attempts"
        " max_connect_retries max_restarts",
    ),
    (
        "retry_budget",
        "a fraction of the work that succeeds, such as 0.2",
        "retry_ratio token_ratio percent_can_retry budget_percent retry_percent retries_budget"
        " replay_budget",
    ),
    (
        "",
        "not needed: the pool paces its attempts to connect by itself",
        "max_connecting backoff backoff_min backoff_max backoff_type retry_delay retry_interval"
        " retry_wait reconnect_interval acquire_increment acquire_retry_attempts"
        " acquire_retry_delay",
    ),
    # -- no counterpart ----------------------------------------------------------------------------
    (
        "",
        "not needed: the pool maintains its connections by itself, without a thread for each pool",
        "num_workers reaping_frequency reap_interval_millis connection_pruning_interval"
        " time_between_eviction_runs_millis evict prune_interval housekeeping_period"
        " eviction_interval num_helper_threads",
    ),
    (
        "",
        "not needed: the pool hands out the connection first that was released last",
        "pool_use_lifo use_lifo lifo fifo",
    ),
    (
        "",
        "not needed: each connection's limit is already up to a quarter lower than max_age",
        "pool_max_conn_lifetime_jitter pool_jitter jitter max_lifetime_jitter",
    ),
    (
        "",
        "not a setting: a pool calls its observers= with every event",
        "reconnect_failed on_error listeners event_listeners",
    ),
    ("", "two callers never share a connection", "maxshared max_shared"),
    ("", "a pool opens connections on demand; min_size keeps some open", "open lazy"),
    (
        "",
        "not for a pool: use the logger 'unbroken', which logs each open and close at DEBUG",
        "echo_pool",
    ),
    ("", "the pool is always unbroken's: remove this option", "poolclass pool_class pooling"),
    (
        "",
        "give each setting by its own name here, such as max_size=5",
        "pool pool_options pool_config pool_kwargs pool_settings pool_args",
    ),
    (
        "",
        "plugin=unbroken is for SQLAlchemy engines: remove it here",
        "plugin plugins",
    ),
    ("target", "", "target_role server_type target_server_type read_preference"),
)

#: Names that belong in the URL: the address, and the driver's options.
_PLACE = (
    "host hostname hostaddr server port db dbname database schema dsn conninfo uri"
    " connection_string unix_socket socket user username password passwd"
)
_OPTION = (
    "ssl sslmode ssl_mode ssl_ca ssl_cert ssl_key sslrootcert sslcert sslkey tls charset encoding"
    " autocommit auto_commit init_command options application_name read_timeout write_timeout"
    " isolation_level local_infile client_flag sql_mode statement_timeout lock_timeout"
    " server_settings search_path timezone time_zone statement_cache_size prepare_threshold"
    " connect_args kwargs cursor_factory row_factory cursorclass use_unicode"
)


def _key(name: str) -> str:
    return "".join(each for each in name.lower() if each.isalnum())


_MEANT = {_key(word): (ours, text) for ours, text, words in _POOLS for word in words.split()}
_ELSEWHERE = {
    **{
        _key(word): "it belongs in the URL: mysql+pymysql://user:password@host:3306/database"
        for word in _PLACE.split()
    },
    **{
        _key(
            word
        ): "it is an option of the driver: write it into the URL, as …/database?option=value"
        for word in _OPTION.split()
    },
}


def shown(value: object) -> str:
    """Return *value*, of any type, in the form that a message shows: one line, not long."""
    try:
        text = repr(value)
        text = text if text.isprintable() else " ".join(text.split())
    except Exception:  # a number of thousands of digits, or a foreign object
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def word_of_others(name: str) -> str | None:
    """Return the meaning here of another pool's name *name*: "that is max_size here", or why it is
    not needed.

    None: no known pool uses that name.
    """
    found = _MEANT.get(_key(name))
    if found is None:
        return None
    ours, text = found
    return f"that is {ours} here{f' ({text})' if text else ''}" if ours else text


def ours_for(name: str) -> str | None:
    """Return our setting for another pool's name *name*; "" if it is not needed here.

    None: no known pool uses that name.
    """
    found = _MEANT.get(_key(name))
    return None if found is None else found[0]


def remedy(
    name: object, known: Iterable[str], others: Iterable[str] = (), *, in_url: bool = False
) -> str:
    """Return the hint for *name*, which is not among the *known* names: the meaning of another
    pool's name here, or the nearest of *known* and of *others*, or all of *known*.

    *in_url*: it is in the URL already, so no hint sends it there.
    """
    known = sorted(known)
    if not isinstance(name, str):
        return f"a name must be a text; known: {', '.join(known)}"
    said = word_of_others(name) or (None if in_url else _ELSEWHERE.get(_key(name)))
    near = nearest(name, [*known, *others])
    if said is not None and (near is None or _key(near) != _key(name)):
        return said
    if near is not None:
        return f"did you mean {near!r}?"
    word = nearest(name, _WORDS)
    return (word and word_of_others(word)) or f"known: {', '.join(known)}"


def stray(
    name: object, ours: Iterable[str], takes: Collection[str], others: Collection[str] = ()
) -> str | None:
    """Return the hint for *name* among a driver's options, if it is meant for this library: one of
    *ours*, or another pool's name for one, possibly misspelled.

    *takes*: the driver's options. *others*: other drivers' options, which are no misspellings of
    ours. None: it is the driver's business, like all names that are not surely ours.
    """
    if not isinstance(name, str) or name in takes:
        return None
    ours = list(ours)
    if name in ours:
        return ""
    said = word_of_others(name)
    if said is not None:
        return said
    near = (
        None
        if name in others or _key(name) in _ELSEWHERE
        else nearest(name, [*takes, *ours, *_WORDS])
    )
    if near in ours:
        return f"did you mean {near!r}?"
    return None if near is None or near in takes else word_of_others(near)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of *known* that differs from *name* by a small typo, or only in case and
    punctuation; None: there is none.
    """
    best, least = None, 3
    for each in known:
        if _key(each) == _key(name):
            return each
        steps = _steps(name.lower(), each.lower())
        if steps < least and steps <= (0 if len(each) < 4 else 1 if len(each) < 7 else 2):
            best, least = each, steps
    return best


def _steps(one: str, other: str) -> int:
    """Return how many letters must be added, left out, changed or swapped with the next to make
    *other* of *one*; 3 stands for any more than 2.
    """
    if abs(len(one) - len(other)) > 2:
        return 3
    before: list[int] = []
    last = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        row = [at]
        for to, wanted in enumerate(other, 1):
            row.append(min(last[to] + 1, row[-1] + 1, last[to - 1] + (letter != wanted)))
            if at > 1 and to > 1 and letter == other[to - 2] and one[at - 2] == wanted:
                row[-1] = min(row[-1], before[to - 2] + 1)
        before, last = last, row
    return min(last[-1], 3)


_WORDS = tuple(word for _, _, words in _POOLS for word in words.split() if len(word) > 6)
