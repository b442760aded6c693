"""Decides from a query's tokens whether it is free of effects.

It is if it has no word of change, and calls only functions of the server that are known to change
nothing. A ``(`` after a name is a call unless no server would accept the word as a function's name
there.
"""

from __future__ import annotations

from itertools import pairwise

from unbroken.ledger.tokens import NUMBER, QUOTED, STRING, words

_CHANGES = frozenset(
    {"INSERT", "DELETE", "MERGE", "REPLACE", "INTO", "CALL", "EXECUTE", "NEXTVAL", "PROCEDURE"}
)
_CALLS = frozenset(f"{word}(" for word in ("INSERT", "UPDATE", "DELETE", "MERGE", "NEXTVAL"))

# Reserved in MySQL, MariaDB and PostgreSQL alike (or, in PostgreSQL, not allowed as a function's
# name).
RESERVED = words(
    "SELECT FROM WHERE AND OR NOT IN ON USING HAVING AS UNION ALL DISTINCT CASE WHEN THEN ELSE"
    " BETWEEN EXISTS LIMIT VALUES INTERVAL"
)
# Reserved in some of them only; but no call is possible where these words follow those.
_AFTER: dict[str, frozenset[str]] = {
    "BY": frozenset({"ORDER", "GROUP", "PARTITION"}),
    "OVER": frozenset({")"}),
    "FILTER": frozenset({")"}),
    "GROUP": frozenset({"WITHIN"}),
    "ANY": frozenset({"=", "<", ">"}),
    "SOME": frozenset({"=", "<", ">"}),
    "INDEX": frozenset({"USE", "FORCE", "IGNORE"}),
    "KEY": frozenset({"USE", "FORCE", "IGNORE"}),
    "JOIN": frozenset({"INNER", "LEFT", "RIGHT", "OUTER", "CROSS", "FULL"}),
    "LATERAL": frozenset({"JOIN"}),
    "MATERIALIZED": frozenset({"AS", "NOT"}),
}
_NAMES_A_TABLE = frozenset({"AS", "WITH", "RECURSIVE"})  # … name (columns), or AS type(length)
_BEFORE_PLAIN = frozenset("()=<>+-*/%|&^~!@#?:,")

PURE = words("""
    ABS ACOS ASIN ATAN ATAN2 CBRT CEIL CEILING CONV COS COT CRC32 DEGREES DIV EXP FLOOR GCD GREATEST
    LCM LEAST LN LOG LOG10 LOG2 MOD
    PI POW POWER RADIANS RAND RANDOM ROUND SIGN SIN SQRT TAN TRUNC TRUNCATE WIDTH_BUCKET
    ASCII BIN BIT_COUNT BIT_LENGTH BTRIM CHAR CHARACTER_LENGTH CHAR_LENGTH CHR CONCAT CONCAT_WS ELT
    FIELD FIND_IN_SET FORMAT
    FROM_BASE64 HEX INITCAP INSTR LCASE LEFT LENGTH LOCATE LOWER LPAD LTRIM MD5 MID OCTET_LENGTH ORD
    OVERLAY POSITION
    QUOTE QUOTE_IDENT QUOTE_LITERAL QUOTE_NULLABLE REGEXP_COUNT REGEXP_INSTR REGEXP_LIKE
    REGEXP_MATCH REGEXP_MATCHES REGEXP_REPLACE
    REGEXP_SPLIT_TO_ARRAY REGEXP_SPLIT_TO_TABLE REGEXP_SUBSTR REPEAT REPLACE REVERSE RIGHT RPAD
    RTRIM SHA SHA1 SHA2 SHA256 SHA512
    SOUNDEX SPACE SPLIT_PART STARTS_WITH STRCMP STRPOS SUBSTR SUBSTRING SUBSTRING_INDEX TO_ASCII
    TO_BASE64 TO_HEX TRANSLATE TRIM
    UCASE UNHEX UPPER DECODE ENCODE
    ADDDATE ADDTIME AGE CLOCK_TIMESTAMP CONVERT_TZ CURDATE CURRENT_DATE CURRENT_TIME
    CURRENT_TIMESTAMP CURTIME DATE DATEDIFF
    DATE_ADD DATE_BIN DATE_FORMAT DATE_PART DATE_SUB DATE_TRUNC DAY DAYNAME DAYOFMONTH DAYOFWEEK
    DAYOFYEAR EXTRACT FROM_DAYS
    FROM_UNIXTIME HOUR ISFINITE JULIANDAY LAST_DAY LOCALTIME LOCALTIMESTAMP MAKEDATE MAKETIME
    MAKE_DATE MAKE_INTERVAL MAKE_TIMESTAMP
    MAKE_TIMESTAMPTZ MICROSECOND MINUTE MONTH MONTHNAME NOW PERIOD_ADD PERIOD_DIFF QUARTER SECOND
    SEC_TO_TIME STATEMENT_TIMESTAMP
    STRFTIME STR_TO_DATE SUBDATE SUBTIME SYSDATE TIME TIMEDIFF TIMEOFDAY TIMESTAMP TIMESTAMPADD
    TIMESTAMPDIFF TIME_FORMAT
    TIME_TO_SEC TO_CHAR TO_DATE TO_DAYS TO_NUMBER TO_SECONDS TO_TIMESTAMP TRANSACTION_TIMESTAMP
    UNIX_TIMESTAMP UTC_DATE UTC_TIME
    UTC_TIMESTAMP WEEK WEEKDAY WEEKOFYEAR YEAR YEARWEEK
    CAST COALESCE CONVERT DEFAULT IF IFNULL ISNULL NULLIF NUM_NONNULLS NUM_NULLS
    ANY_VALUE ARRAY_AGG AVG BIT_AND BIT_OR BIT_XOR BOOL_AND BOOL_OR CORR COUNT COVAR_POP COVAR_SAMP
    CUME_DIST DENSE_RANK EVERY
    FIRST_VALUE GROUPING GROUP_CONCAT JSONB_AGG JSONB_OBJECT_AGG JSON_AGG JSON_ARRAYAGG
    JSON_OBJECTAGG JSON_OBJECT_AGG LAG
    LAST_VALUE LEAD MAX MEDIAN MIN MODE NTH_VALUE NTILE PERCENTILE_CONT PERCENTILE_DISC PERCENT_RANK
    RANK ROW_NUMBER STD STDDEV
    STDDEV_POP STDDEV_SAMP STRING_AGG SUM TOTAL VARIANCE VAR_POP VAR_SAMP
    JSONB_ARRAY_ELEMENTS JSONB_ARRAY_ELEMENTS_TEXT JSONB_ARRAY_LENGTH JSONB_BUILD_ARRAY
    JSONB_BUILD_OBJECT JSONB_EACH
    JSONB_EACH_TEXT JSONB_EXTRACT_PATH JSONB_EXTRACT_PATH_TEXT JSONB_OBJECT_KEYS JSONB_PATH_EXISTS
    JSONB_PATH_QUERY JSONB_SET
    JSONB_STRIP_NULLS JSONB_TYPEOF JSON_ARRAY JSON_ARRAY_ELEMENTS JSON_ARRAY_ELEMENTS_TEXT
    JSON_ARRAY_LENGTH JSON_BUILD_ARRAY
    JSON_BUILD_OBJECT JSON_CONTAINS JSON_CONTAINS_PATH JSON_DEPTH JSON_EACH JSON_EXISTS JSON_EXTRACT
    JSON_KEYS JSON_LENGTH
    JSON_MERGE_PATCH JSON_MERGE_PRESERVE JSON_OBJECT JSON_OBJECT_KEYS JSON_OVERLAPS JSON_QUERY
    JSON_QUOTE JSON_REMOVE JSON_SEARCH
    JSON_SET JSON_TYPE JSON_TYPEOF JSON_UNQUOTE JSON_VALID JSON_VALUE ROW_TO_JSON TO_JSON TO_JSONB
    ARRAY_APPEND ARRAY_CAT ARRAY_DIMS ARRAY_LENGTH ARRAY_LOWER ARRAY_POSITION ARRAY_POSITIONS
    ARRAY_PREPEND ARRAY_REMOVE
    ARRAY_REPLACE ARRAY_TO_JSON ARRAY_TO_STRING ARRAY_UPPER CARDINALITY GENERATE_SERIES
    GENERATE_SUBSCRIPTS STRING_TO_ARRAY UNNEST
    AGAINST MATCH PHRASETO_TSQUERY PLAINTO_TSQUERY TO_TSQUERY TO_TSVECTOR TS_HEADLINE TS_RANK
    TS_RANK_CD WEBSEARCH_TO_TSQUERY
    CHARSET COERCIBILITY COLLATION CONNECTION_ID CURRENT_CATALOG CURRENT_DATABASE CURRENT_ROLE
    CURRENT_SCHEMA CURRENT_SCHEMAS
    CURRENT_SETTING CURRENT_USER DATABASE FORMAT_TYPE FOUND_ROWS GEN_RANDOM_UUID
    HAS_DATABASE_PRIVILEGE HAS_SCHEMA_PRIVILEGE
    HAS_TABLE_PRIVILEGE INET6_ATON INET6_NTOA INET_ATON INET_CLIENT_ADDR INET_CLIENT_PORT INET_NTOA
    INET_SERVER_ADDR
    INET_SERVER_PORT OBJ_DESCRIPTION COL_DESCRIPTION PG_BACKEND_PID PG_CONF_LOAD_TIME
    PG_DATABASE_SIZE PG_ENCODING_TO_CHAR
    PG_GET_CONSTRAINTDEF PG_GET_EXPR PG_GET_INDEXDEF PG_GET_SERIAL_SEQUENCE PG_GET_VIEWDEF
    PG_INDEXES_SIZE PG_IS_IN_RECOVERY
    PG_MY_TEMP_SCHEMA PG_POSTMASTER_START_TIME PG_RELATION_SIZE PG_SIZE_PRETTY PG_SLEEP
    PG_TABLE_IS_VISIBLE PG_TYPE_IS_VISIBLE PG_FUNCTION_IS_VISIBLE PG_TABLE_SIZE
    PG_TOTAL_RELATION_SIZE PG_TYPEOF ROW_COUNT SCHEMA SESSION_USER SLEEP SYSTEM_USER TO_REGCLASS
    TO_REGTYPE USER UUID UUID_SHORT
    UUID_TO_BIN BIN_TO_UUID VERSION CHANGES LAST_INSERT_ROWID LAST_INSERT_ID SQLITE_VERSION
    TOTAL_CHANGES TYPEOF
    """)


def is_free_of_effects(tokens: list[str]) -> bool:
    """Return whether the query *tokens* changes nothing that outlives it, and calls nothing that
    might.
    """
    if not _CHANGES.isdisjoint(tokens) or not _CALLS.isdisjoint(tokens):
        return False
    has_distinct_on = any(a == "DISTINCT" and b in ("ON", "ON(") for a, b in pairwise(tokens))
    for at, word in enumerate(tokens):
        if word == "UPDATE" and not _is_lock(tokens, at):
            return False
        if word == "=" and tokens[at - 1] == ":":
            return False  # SELECT @total := @total + 1
        if word == "VALUE" and tokens[at - 1] == "NEXT":
            return False  # NEXT VALUE FOR a_sequence
        if word.endswith("(") and not _is_harmless(tokens, at, has_distinct_on):
            return False
    return True


def _is_lock(tokens: list[str], at: int) -> bool:
    """Return whether the UPDATE here belongs to FOR UPDATE or FOR NO KEY UPDATE."""
    return tokens[at - 1] == "FOR" or tokens[max(0, at - 3) : at] == ["FOR", "NO", "KEY"]


def _is_harmless(tokens: list[str], at: int, has_distinct_on: bool) -> bool:
    """Return whether the parenthesis that opens at *at* only groups, or calls a function that is
    known.
    """
    if tokens[at] != "(":
        name, before, is_adjacent = tokens[at][:-1], at - 1, True
    elif at == 0 or tokens[at - 1] in _BEFORE_PLAIN:
        return True
    else:
        name, before, is_adjacent = tokens[at - 1].rstrip("("), at - 2, False
        if tokens[at - 1].endswith("("):
            return True  # f((1))
    previous = tokens[before] if before >= 0 else ""
    if name in (STRING, NUMBER, "]", "."):
        return False
    if previous in _NAMES_A_TABLE or (previous == ":" and before > 0 and tokens[before - 1] == ":"):
        return True  # AS x(a, b), AS decimal(10, 2), ::varchar(20)
    if previous == ".":
        return is_adjacent and name in PURE and before > 0 and tokens[before - 1] == "PG_CATALOG"
    if name in RESERVED or (is_adjacent and name in PURE):
        return True
    return (
        name != QUOTED
        and previous in _AFTER.get(name, ())
        and not (has_distinct_on and previous == ")")
    )
