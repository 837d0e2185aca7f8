"""Ports that a server of this project listens on."""

import errno
import socket

from bigr.runtime.errors import BigrError


def check_port(host: str, port: int, command: str = "bigr app") -> None:
    """Raise `BigrError` where nothing can listen there; called before a model is loaded."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except socket.gaierror:
        raise BigrError(f"--host {host}: no such address") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise taken(host, port, command) from None
        raise BigrError(f"--host {host} --port {port}: {error.strerror}") from None


def taken(host: str, port: int, command: str = "bigr app") -> BigrError:
    """The error of a port that is in use."""
    return BigrError(f"port {port} of {host} is taken; name another: {command} --port {port + 1}")
