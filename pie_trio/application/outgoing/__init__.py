"""HTTP requests that inferlets make: denied unless granted, and only to checked addresses."""

from pie_trio.application.outgoing.client import HttpClient
from pie_trio.application.outgoing.connection import make_ssl_context
from pie_trio.application.outgoing.messages import (
    HttpLimits,
    HttpRequest,
    HttpResponse,
)
from pie_trio.application.outgoing.policy import Grant, HttpPolicy, Lookup, parse_grant

__all__ = [
    "Grant",
    "HttpClient",
    "HttpLimits",
    "HttpPolicy",
    "HttpRequest",
    "HttpResponse",
    "Lookup",
    "make_ssl_context",
    "parse_grant",
]
