"""HTTP in front of an engine: OpenAI's API, guarded for a machine that a browser can reach, too.

Knows nothing of model files, rules or terminals.
"""
