"""How the demo model was made: data, training, export and evaluation; see README.md here.

Runs in a checkout (`PYTHONPATH=training python -m demo_k2.pipeline`); nothing of it is installed.
"""
