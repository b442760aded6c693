"""A fault proxy: between an application and its server, it does to connections what networks and servers do.

    from unbroken.testing import FaultProxy

    with FaultProxy(("127.0.0.1", 3306)) as proxy:
        pool = unbroken.Pool(proxy.url("mysql+pymysql://app:secret@127.0.0.1/shop"))
        proxy.rst()  # every connection that there is, idle or not

Pure standard library. ``docs/testing.md`` tells what each verb does.
"""

from unbroken.testing.proxy.cuts import Cut
from unbroken.testing.proxy.errors import ProxyError
from unbroken.testing.proxy.faultproxy import FaultProxy
from unbroken.testing.proxy.records import ConnectionInfo, Event

__all__ = ["ConnectionInfo", "Cut", "Event", "FaultProxy", "ProxyError"]
