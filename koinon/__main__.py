"""`python -m koinon` is `koinon`."""

from koinon.cli import main

if __name__ == "__main__":
    main()
