"""``python -m unbroken``: the same as the command ``unbroken``."""

from unbroken.cli import main

if __name__ == "__main__":
    main()
