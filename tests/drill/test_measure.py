"""What the drill sees of sockets, from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import time

from unbroken_drill.drill.measure import close_wait


def test_a_socket_that_processes_share_is_stuck_once_and_only_if_it_leads_to_that_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            peer, _ = listener.accept()
            with subprocess.Popen(["sleep", "1000"], pass_fds=[client.fileno()]) as heir:
                try:
                    both = (os.getpid(), heir.pid)
                    assert close_wait(*both, port=port) == 0
                    peer.close()
                    deadline = time.monotonic() + 5
                    while close_wait(*both, port=port) != 1:
                        assert time.monotonic() < deadline
                        time.sleep(0.01)
                    assert close_wait(heir.pid) == 1
                    assert close_wait(*both, port=port + 1) == 0
                finally:
                    heir.kill()


def test_no_processes_have_no_sockets() -> None:
    assert close_wait() == 0
