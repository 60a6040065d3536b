"""The model: Kimi K2's forward pass, its positions and its cache. Knows nothing of files, rules or
text.
"""
