"""`python -m crosstie.workers` is the command `crosstie`."""

from crosstie.workers.cli import main

if __name__ == "__main__":
    main()
