"""``unbroken proxy`` on the command line: a fault proxy in front of a server, controlled by HTTP,
with a live log.
"""

from __future__ import annotations

import contextlib
import signal
import threading

import click
from rich.console import Console
from rich.text import Text

from unbroken_drill.proxy import Event, FaultProxy
from unbroken_drill.proxy.control import VERBS, Control

_POLL = 0.1  #: seconds after which a silent log checks whether it must end
#: the default without any fault
_QUIET = ("listening", "accepted", "connected", "closed", "fin passed on")
_GOOD, _WARNING = ("healed",), ("unreadable", "connect failed", "accept failed", "failed")


@click.command()
@click.argument("upstream")
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="ADDRESS",
    help="The address for clients. Port 0: a free port.",
)
@click.option(
    "--control",
    default="127.0.0.1:0",
    show_default=True,
    metavar="ADDRESS",
    help="The address of the HTTP control port; - for none.",
)
@click.option(
    "--control-anywhere",
    is_flag=True,
    help="Allow --control on an address that others reach. They can then break connections.",
)
@click.option(
    "--protocol",
    type=click.Choice(["mysql", "postgresql"]),
    help="The protocol, which cut_at needs. A URL as UPSTREAM already names it.",
)
@click.option("--seed", type=int, help="Decides the jitter. Default: random, shown at the start.")
def proxy(
    *,
    upstream: str,
    listen: str,
    control: str,
    control_anywhere: bool,
    protocol: str | None,
    seed: int | None,
) -> None:
    """Run a proxy in front of a server, and break connections to it on demand.

    UPSTREAM is HOST:PORT, the path of a unix socket, or a database URL. Connect the application to
    the address that the proxy prints. Then send commands to the control port:

    \b
      curl -d '' http://127.0.0.1:PORT/rst
      curl -d '{"mode": "hold"}' http://127.0.0.1:PORT/blackhole
      curl -d '' http://127.0.0.1:PORT/heal

    The verbs: fin, rst, half_close, cut_after, blackhole, stall, idle_limit, latency, throttle,
    slice, quiet_after, refuse, hang_connect, fail_next, cut_at, heal. GET / lists their arguments.
    Ctrl-C ends the proxy.
    """
    console = Console(highlight=False)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(FaultProxy(upstream, listen, protocol=protocol, seed=seed))
        port = (
            stack.enter_context(Control(made, control, anywhere=control_anywhere))
            if control != "-"
            else None
        )
        if port is not None:
            console.print(
                Text(
                    f"control: http://{port.address}/ (POST {VERBS[0]}, {VERBS[1]} …; GET /"
                    " lists all)",
                    "bold",
                ),
                soft_wrap=True,
            )
        follow(made, console, _told_to_end(stack))
        console.print(Text(summary(made), "bold"), soft_wrap=True)


def _told_to_end(stack: contextlib.ExitStack) -> threading.Event:
    """Return an event that Ctrl-C and SIGTERM set.

    An exception from the handler could strike in the middle of a line that is being printed.
    """
    over = threading.Event()
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda *_: over.set())
            stack.callback(signal.signal, number, before)
    return over


def follow(made: FaultProxy, console: Console, over: threading.Event) -> None:
    """Print events as they come, until *over* is set."""
    last = 0
    while not over.is_set():
        for event in made.events_after(last, _POLL):
            if event.serial > last + 1:
                console.print(
                    Text(f"{event.serial - last - 1} events are not shown: too many at once", "dim")
                )
            last = event.serial
            console.print(Text(str(event), style(event)), soft_wrap=True)


def style(event: Event) -> str:
    """Return the colour of *event*'s line."""
    if event.name in _GOOD:
        return "green"
    if event.name in _WARNING:
        return "yellow"
    return "dim" if event.name in _QUIET else "red"


def summary(made: FaultProxy) -> str:
    """Return the traffic of the proxy in one line."""
    found = made.connections
    total, dropped = found[-1].n if found else 0, sum(info.dropped for info in found)
    up, down = sum(info.to_server for info in found), sum(info.to_client for info in found)
    return (
        f"connections: {total}; bytes to the server: {up}, to clients: {down}, dropped: {dropped}"
    )
