"""`python -m augserver` is the command `augserver`."""

from augserver.cli import main

if __name__ == "__main__":
    main()
