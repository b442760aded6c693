"""Options that a client of MongoDB does not have, and the matching names of PyMongo."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pymongo import common
from pymongo.errors import ConfigurationError as TheirConfigurationError

from unbroken.errors import ConfigurationError, for_driver
from unbroken.hints import nearest, ours_for, shown
from unbroken.messages.configuration import NOT_A_URL, UNKNOWN_OPTION
from unbroken.settings import Settings

#: The options of our own.
OURS = ("outage_wait", "election_wait", "max_waiting", "shed_target")
_MS = "milliseconds"
#: PyMongo's names for the settings of our pools, and the unit.
_PYMONGO = {
    "max_size": ("maxPoolSize", "connections to each server"),
    "min_size": ("minPoolSize", "connections to each server"),
    "acquire_timeout": ("waitQueueTimeoutMS", _MS),
    "connect_timeout": ("connectTimeoutMS", _MS),
    "max_idle": ("maxIdleTimeMS", _MS),
    "deadline": ("timeoutMS", f"{_MS}, for each operation"),
    "send_timeout": ("socketTimeoutMS", _MS),
    "target": ("readPreference", "such as primary or secondaryPreferred"),
    "heal": ("retryReads and retryWrites", "true by default"),
    "name": ("appname", ""),
    "ping_after": ("heartbeatFrequencyMS", _MS),
    "outage_wait": ("outage_wait", "seconds"),
    "max_waiting": ("max_waiting", "callers"),
    "shed_target": ("shed_target", "seconds"),
}
#: The keywords of PyMongo's constructor that are no options of a URI.
_ARGUMENTS = ("host", "port", "document_class", "tz_aware", "connect", "type_registry")


def check_host(host: Any) -> None:
    """Raise ConfigurationError for a value that PyMongo cannot use as a URI, a host or a list of
    them.
    """
    several = host if isinstance(host, (list, tuple)) else [host]
    if host is not None and not all(isinstance(each, str) for each in several):
        text = f"host={shown(host)} must be a URI such as mongodb://host:27017/shop, or host names"
        raise ConfigurationError(NOT_A_URL(text))


def check_names(in_uri: Iterable[str], keywords: Iterable[str]) -> None:
    """Raise ConfigurationError, which is PyMongo's too, for a name among the *keywords* that
    PyMongo does not know. Raise it also for a name *in_uri* that is meant for this library; PyMongo
    warns of others there.
    """
    known = _known()
    for name in keywords:
        if not _is_known(name, known):
            raise _refused(f"MongoClient has no option {shown(name)}; {_hint(name, known)}")
    for name in in_uri:
        if _is_known(name, known):
            continue
        if nearest(name, OURS) is not None:  # its name might be a part of a password: not shown
            how = "MongoClient(uri, outage_wait=5.0, election_wait=20.0)"
            raise _refused(f"{_all_of_ours()} cannot be set in a URI; write {how}")
        said = _word(name)
        if said is not None:
            raise _refused(f"a MongoDB URI has no option {shown(name)}; {said}")


def _all_of_ours() -> str:
    return f"{', '.join(OURS[:-1])} and {OURS[-1]}"


def _known() -> set[str]:
    """Return PyMongo's options, in lower case."""
    tables = ("VALIDATORS", "INTERNAL_URI_OPTION_NAME_MAP", "URI_OPTIONS_DEPRECATION_MAP")
    written = {*_ARGUMENTS, *(name for each in tables for name in getattr(common, each, ()))}
    for aliases in common.URI_OPTIONS_ALIAS_MAP.values():
        written.update(aliases)
    return {each.lower() for each in written}


def _is_known(name: str, known: Iterable[str]) -> bool:
    return name.lower() in known or name.startswith("_")


def _hint(name: str, known: set[str]) -> str:
    said = _word(name)
    if said is not None:
        return said
    near = nearest(name, [*OURS, *_CAMEL, *known])
    return f"did you mean {near!r}?" if near else "docs/mongodb.md lists its options"


def _word(name: str) -> str | None:
    """Return PyMongo's name for a setting of ours, or for another pool's name for one."""
    ours = name if name in Settings.__dataclass_fields__ else ours_for(name)
    if ours is None:
        return None
    found = _PYMONGO.get(ours)
    if found is None:
        return "MongoDB clients have no such setting; docs/mongodb.md lists their options"
    theirs, unit = found
    return f"that is {theirs} with MongoDB{f' ({unit})' if unit else ''}"


def _refused(text: str) -> ConfigurationError:
    error: ConfigurationError = for_driver(
        ConfigurationError, TheirConfigurationError, UNKNOWN_OPTION(text)
    )
    error.__dict__.update(TheirConfigurationError(str(error)).__dict__)
    return error


#: The options that are misspelled most often, in their correct form.
_CAMEL = (
    "maxPoolSize", "minPoolSize", "maxIdleTimeMS", "waitQueueTimeoutMS", "connectTimeoutMS",
    "socketTimeoutMS", "serverSelectionTimeoutMS", "heartbeatFrequencyMS", "replicaSet",
    "readPreference", "readConcernLevel", "retryReads", "retryWrites", "authSource",
    "authMechanism", "directConnection", "timeoutMS", "wTimeoutMS", "maxConnecting", "appname",
    "tlsCAFile", "tlsCertificateKeyFile", "uuidRepresentation", "compressors", "loadBalanced",
)  # fmt: skip
