"""Rule files that say where each part of Kimi K2 runs; `hybrid_k2.rules` reads them."""
