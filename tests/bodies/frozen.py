"""A process that a test freezes: ``python -m bodies.frozen NAME URL``. It does what it reads, and
prints what came of it.

*URL* is the server's with the driver left as ``DRIVER``.
"""

from __future__ import annotations

import sys

from .every import opened


def main(name: str, url: str) -> None:
    """See the module."""
    with opened(
        name, lambda driver: url.replace("DRIVER", driver), 5, patience=15.0, outage_wait=2.0
    ) as body:
        for line in sys.stdin:
            if line.startswith("ask"):
                (result,) = body.crowd(1, 1)
                print(result if isinstance(result, int) else type(result).__name__, flush=True)
            else:
                results = body.crowd(15, 1)
                print([each for each in results if not isinstance(each, int)] or "all", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
