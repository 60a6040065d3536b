"""Rule files that come with hybrid-k2: YAML only; hybrid_k2.rules.files reads them by name."""
