"""`python -m mpf_chains.cli`, where scripts are not on the path."""

from mpf_chains.cli import main

if __name__ == "__main__":
    main()
