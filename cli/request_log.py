"""What a server logs of its requests, as JSON lines for programs or as text for people.

Knows the parts that hybrid_k2.server puts on a log record as `request`, not what they mean.
"""

import json
import logging
from typing import Any


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level and message, or in its place a request's parts."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
        }
        if isinstance(request := getattr(record, "request", None), dict):
            line |= request
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_requests(as_json: bool) -> None:
    """Shows a line for each request, whatever else is shown, and all lines as JSON where asked."""
    logging.getLogger("hybrid_k2.server.access_log").setLevel(logging.INFO)
    if as_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
