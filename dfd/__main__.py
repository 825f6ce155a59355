"""`python -m dfd`: the command line of `dfd.cli`."""

from dfd.cli import main

if __name__ == "__main__":
    main()
