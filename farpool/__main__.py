"""`python -m farpool` is the `farpool` command."""

from farpool.cli import main

if __name__ == "__main__":
    main()
