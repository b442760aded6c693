"""The site of django_app.py under Tornado's WSGIContainer, in two processes behind one port.

    DATABASE_URL=mysql://app:secret@127.0.0.1/shop python django_tornado.py 8000

The site is loaded before the processes part, as Tornado's manual does it, and so is the pool: each
child starts with connections of its own.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import django_app
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.process import fork_processes
from tornado.wsgi import WSGIContainer


async def serve(sockets: list) -> None:
    """Until it is ended."""
    # Django refuses to query on a loop's own thread
    server = HTTPServer(WSGIContainer(django_app.app, ThreadPoolExecutor(8)))
    server.add_sockets(sockets)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sockets = bind_sockets(int(sys.argv[1]), "127.0.0.1")
    fork_processes(2)
    asyncio.run(serve(sockets))
