"""`python -m hybrid_k2` is the `hybrid-k2` command."""

from hybrid_k2.cli.main import main

if __name__ == "__main__":
    main()
