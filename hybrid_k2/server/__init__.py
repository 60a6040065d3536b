"""HTTP in front of an engine: OpenAI's API and Anthropic's, on a machine that a browser may reach.

Knows nothing of model files, rules or terminals.
"""
