"""Ports for servers that tests start."""

import socket


def free_port() -> int:
    """A port on which nothing listens; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
