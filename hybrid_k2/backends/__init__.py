"""Modules that compute, found by registered name: one file per backend, imported when needed.

`registry.py` lists them with what they serve and accept; `footprint.py` says what each costs
before a byte is loaded. Nothing here knows of rule files, model files or token text.
"""
