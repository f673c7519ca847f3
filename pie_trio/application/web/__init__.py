"""The web: the serving shell, and what the application's handlers share."""

from __future__ import annotations

from pie_trio.application.web.app import WebApp, make_app
from pie_trio.application.web.feeds import Feed, FeedBody
from pie_trio.application.web.streaming import (
    get_draining,
    make_event_stream,
    make_feed_stream,
    one_write,
    until_draining,
)

__all__ = [
    "Feed",
    "FeedBody",
    "WebApp",
    "get_draining",
    "make_app",
    "make_event_stream",
    "make_feed_stream",
    "one_write",
    "until_draining",
]
