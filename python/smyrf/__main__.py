"""`python -m smyrf` is the program `smyrf`."""

from smyrf.cli import main

if __name__ == "__main__":
    main()
