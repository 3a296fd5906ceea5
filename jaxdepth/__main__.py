"""`python -m jaxdepth COMMAND ...`: see `jaxdepth.commands.main`."""

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main()
