"""`python -m farpool` is the `farpool` command."""

from farpool.commands.cli import main

if __name__ == "__main__":
    main()
