"""Text on one side, token ids on the other: tokenizer, chat template, and the stream of an answer.

Knows nothing of models, devices or HTTP; the CLI and the server import from here.
"""

from hybrid_k2.text.chat_template import ChatTemplate
from hybrid_k2.text.stream import Delta, TextStream
from hybrid_k2.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Delta", "TextStream", "Tokenizer"]
