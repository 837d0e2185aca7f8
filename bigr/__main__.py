"""`python -m bigr`: the same as `bigr`."""

from bigr.cli import main

if __name__ == "__main__":
    main()
