"""`python -m embark`: the command line of the interpreter at hand."""

from embark.cli import main

main()
