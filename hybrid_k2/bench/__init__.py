"""Measurements of this machine with synthetic weights, for `hybrid-k2 bench`. Knows no terminal."""
