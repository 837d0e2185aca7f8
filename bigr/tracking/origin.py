"""Who may use MLflow's server: whoever has the password, unless a page of another site makes the request.

`.credentials/mlflow.ini` names `authenticate` as MLflow's `authorization_function`. MLflow by itself trusts every page
that comes from a loopback address, whichever its port: also one that another user of this machine serves. The browser
would add the password that it remembers.
"""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from werkzeug.datastructures import Authorization
    from werkzeug.wrappers import Response


def authenticate() -> "Authorization | Response":
    """The user and password of the request in hand; else the answer that refuses it, 401 or 403."""
    from flask import make_response, request
    from mlflow.server.auth import authenticate_request_basic_auth

    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
        return make_response("A page of another site may not use this server", 403)
    return authenticate_request_basic_auth()
