"""A fault proxy: between an application and its server, it breaks connections as networks and
servers do.

    from unbroken_drill import FaultProxy

    with FaultProxy(("127.0.0.1", 3306)) as proxy:
        pool = unbroken.Pool(proxy.url("mysql+pymysql://app:secret@127.0.0.1/shop"))
        proxy.rst()  # every existing connection, idle or not

It uses only the standard library. ``docs/testing.md`` describes each verb.
"""

from unbroken_drill.proxy.cuts import Cut
from unbroken_drill.proxy.errors import ProxyError
from unbroken_drill.proxy.faultproxy import FaultProxy
from unbroken_drill.proxy.records import ConnectionInfo, Event

__all__ = ["ConnectionInfo", "Cut", "Event", "FaultProxy", "ProxyError"]
