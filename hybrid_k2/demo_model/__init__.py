"""The tiny Kimi K2 that ships with the package, so that everything runs before a download.

Owns where the file lies and what must be said about it. `build_untrained.py` and
`build_vocabulary.py` made the file; nothing imports them at run time.
"""

from pathlib import Path

NAME = "hybrid-k2 demo model"
NOTICE = (
    "This is hybrid-k2's built-in demo model: Kimi K2's architecture in 3 MB, with random, "
    "untrained weights. Its answers are noise and only show that the program works. For real "
    "answers give a Kimi K2 GGUF: hybrid-k2 chat MODEL"
)


def path() -> Path:
    """The demo model's GGUF file."""
    return Path(__file__).with_name("untrained.gguf")
