"""Access to MLflow's server: by password, and not for requests that a page of another site makes.

`.credentials/mlflow.ini` names `authenticate`. MLflow alone trusts every page of a loopback address, whatever its port:
also one that another user of this machine serves, to which the browser would add the password that it has stored.
"""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from werkzeug.datastructures import Authorization
    from werkzeug.wrappers import Response


def authenticate() -> "Authorization | Response":
    """The user and password of the current request, or the response that refuses it: 401 or 403."""
    from flask import make_response, request
    from mlflow.server.auth import authenticate_request_basic_auth

    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
        return make_response("A page of another site may not use this server", 403)
    return authenticate_request_basic_auth()
