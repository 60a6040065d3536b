"""The small trained Kimi K2 that ships with the package, so that everything runs before a download.

Owns where the file lies and what must be said about it. `training/` in a checkout makes the file,
with `build_vocabulary.py`, which nothing imports at run time.
"""

from pathlib import Path

NOTICE = (
    "This is hybrid-k2's built-in demo model: Kimi K2's architecture in 35 MB, trained for a few "
    "minutes. It chats in simple English, calls tools and knows hybrid-k2, but is often wrong. For "
    "real answers give a Kimi K2 GGUF: hybrid-k2 chat MODEL"
)


def path() -> Path:
    """The demo model's GGUF file."""
    return Path(__file__).with_name("demo.gguf")
