"""A program that uses a body while its interpreter ends: ``python -m bodies.exiting BODY URL MOMENT
WHEN``.

WHEN is "first", where nothing was used before; "later"; or "frozen", where the program says "ready"
and waits for a line before it ends. Each use prints how long it took and what it was told, as JSON.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Use = Callable[[], None]

#: What a callback that was registered before unbroken was imported calls.
early: list[Use] = []
atexit.register(lambda: [use() for use in early])

from .bodies import OnLoop  # noqa: E402 - after the callback above
from .every import BODIES  # noqa: E402

#: Seconds that a caller waits for a connection, and that main may need to end.
PATIENCE, SOON = 8.0, 0.3


def main(name: str, url: str, moment: str, when: str) -> None:
    """Use the body called *name* at *moment*."""
    kind = BODIES[name]
    body: Any = kind.__new__(kind)
    if moment == "by_name_on_a_thread":
        url = url.replace("@127.0.0.1:", "@localhost:")
    body.open(url, 2, PATIENCE, {})
    ask = functools.partial(_ask_on_a_loop, body) if issubclass(kind, OnLoop) else body.ask
    use = functools.partial(_told, ask, os.write, time.monotonic, json.dumps)
    if when == "later":
        use()
    MOMENTS[moment](use, body)
    if when == "frozen":  # the server will be, once this is read
        os.write(1, b"ready\n")
        sys.stdin.readline()


def _told(ask: Callable[[], Any], write: Any, clock: Any, text_of: Any) -> None:
    """Use the body, and print what came of it. The modules' names may be gone by then."""
    began = clock()
    try:
        ask()
        told = "served"
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
    write(1, (text_of([clock() - began, told]) + "\n").encode())


def _ask_on_a_loop(body: Any, make: Any = asyncio.new_event_loop) -> int:
    """As ``asyncio.run``, which makes the coroutine first."""
    loop = make()
    try:
        return int(loop.run_until_complete(body._ask(0.0)))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class Last:
    """Calls *use* in its finalizer."""

    def __init__(self, use: Use) -> None:
        self.use = use

    def __del__(self) -> None:
        self.use()


def in_a_finalizer(use: Use, _body: Any) -> None:
    """Of a global of this module."""
    globals()["last"] = Last(use)


def in_a_cycle(use: Use, _body: Any) -> None:
    """In the finalizer of what only the last collection finds."""
    gc.disable()
    last: Any = Last(use)
    last.itself = last


def in_an_early_callback(use: Use, _body: Any) -> None:
    """Of atexit, which was registered before the library's own."""
    early.append(use)


def in_a_late_callback(use: Use, _body: Any) -> None:
    """Of atexit, which was registered after the library's own."""
    atexit.register(use)


def in_weakref_finalize(use: Use, body: Any) -> None:
    """As ``weakref.finalize`` runs it at exit."""
    weakref.finalize(body, use)
    globals()["body"] = body


def on_a_thread(use: Use, _body: Any) -> None:
    """That goes on after the main thread has ended."""

    def go_on() -> None:
        threading.main_thread().join()
        time.sleep(SOON)
        use()

    threading.Thread(target=go_on).start()


def by_name_on_a_thread(use: Use, body: Any) -> None:
    """As :func:`on_a_thread`, to a host with a name: asyncio looks it up in an executor, which
    takes nothing new by then.
    """
    on_a_thread(use, body)


def in_an_executor(use: Use, _body: Any) -> None:
    """Whose threads Python waits for."""

    def go_on() -> None:
        time.sleep(SOON)
        use()

    ThreadPoolExecutor(1).submit(go_on)


def beside_daemons(use: Use, body: Any) -> None:
    """In a finalizer, after daemon threads were stopped wherever they were."""

    imported = threading.Event()  # Python's import locks are not ours

    def hammer() -> None:
        while True:
            with contextlib.suppress(Exception):
                body.ask()
            imported.set()

    for _ in range(6):
        threading.Thread(target=hammer, daemon=True).start()
    imported.wait(PATIENCE)
    time.sleep(SOON)
    in_a_cycle(use, body)


def with_one_held(_use: Use, body: Any) -> None:
    """Nothing is used; the program ends with a connection that is lent."""
    globals()["held"] = held = body.connection()
    globals()["conn"] = conn = held.__enter__()
    body.execute(conn, "SELECT 1")


def in_a_generator(_use: Use, body: Any) -> None:
    """That has a connection, and is never ended."""

    def rows() -> Any:
        with body.connection() as conn:
            yield body.execute(conn, "SELECT 1")

    globals()["rows"] = going = rows()
    next(going)


def by_sys_exit(_use: Use, body: Any) -> None:
    """Inside a use."""
    with body.connection() as conn:
        body.execute(conn, "SELECT 1")
        sys.exit(3)


def by_os_exit(_use: Use, body: Any) -> None:
    """Inside a use."""
    with body.connection() as conn:
        body.execute(conn, "SELECT 1")
        os._exit(4)


def by_an_error(_use: Use, body: Any) -> None:
    """Inside a use."""
    with body.connection() as conn:
        body.execute(conn, "SELECT 1")
        raise ValueError("the application's own")


def by_an_interrupt(_use: Use, body: Any) -> None:
    """Inside a use."""
    with body.connection() as conn:
        body.execute(conn, "SELECT 1")
        signal.raise_signal(signal.SIGINT)


def with_tasks_under_way(_use: Use, body: Any) -> None:
    """``asyncio.run`` ends, cancels them, and they have connections."""

    async def hold(going: asyncio.Event) -> None:
        async with body.connection() as conn:
            await body.execute(conn, "SELECT 1")
            going.set()
            await asyncio.sleep(PATIENCE)

    async def begin() -> None:
        going = asyncio.Event()
        globals()["task"] = asyncio.create_task(hold(going))
        await going.wait()

    asyncio.run(begin())


def after_its_loop(use: Use, body: Any) -> None:
    """A loop is closed with a connection that is lent, then the body is used again."""
    loop = asyncio.new_event_loop()

    async def hold() -> None:
        globals()["held"] = held = body.connection()
        globals()["conn"] = await held.__aenter__()

    loop.run_until_complete(hold())
    loop.close()
    use()


def in_a_child(use: Use, _body: Any) -> None:
    """Of multiprocessing: it uses the body, and ends with what it has."""
    import multiprocessing

    child = multiprocessing.get_context("fork").Process(target=use)
    child.start()
    child.join()
    sys.exit(child.exitcode)


MOMENTS: dict[str, Callable[[Use, Any], None]] = {
    each.__name__: each
    for each in (
        in_a_finalizer, in_a_cycle, in_an_early_callback, in_a_late_callback, in_weakref_finalize,
        on_a_thread, by_name_on_a_thread, in_an_executor, beside_daemons, with_one_held,
        in_a_generator, by_sys_exit, by_os_exit, by_an_error, by_an_interrupt,
        with_tasks_under_way, after_its_loop,
        in_a_child,
    )
}  # fmt: skip

if __name__ == "__main__":
    main(*sys.argv[1:])
