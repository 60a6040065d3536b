"""Real servers on loopback for the tests of this folder and of hostile/."""

from server.running_server import serve

__all__ = ["serve"]
