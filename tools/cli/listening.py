"""Where a command listens for others."""

from __future__ import annotations

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises ValueError where that cannot be."""
    if not 1 <= port < 2**16:
        raise ValueError(f"--port must be in [1, 65535], got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = str(error.strerror or error).split(" (while")[0]
        raise ValueError(f"cannot listen on {host}:{port} ({why}); name another --port or --host") from error


def address(host: str, port: int) -> str:
    """The URL of what listens there."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
