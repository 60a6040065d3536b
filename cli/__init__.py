"""The `hybrid-k2` command: `main` is the group, each command is a module beside it."""
