from __future__ import annotations

import pytest

from pie_trio.application.web.problems import RefusedError
from pie_trio.application.web.shell import ShellConfig
from pie_trio.application.web.shell.admission import Admission, peer_group


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, None),
    ],
)
def test_addresses_of_one_customer_count_as_one(
    host: str | None, group: str | None
) -> None:
    assert peer_group(host) == group


def test_one_address_cannot_take_all_connections() -> None:
    admission = Admission(ShellConfig(max_connections=3, max_connections_per_address=2))
    admission.enter("a")
    admission.enter("a")
    with pytest.raises(RefusedError) as caught:
        admission.enter("a")
    assert caught.value.status == 429
    admission.enter("b")
    with pytest.raises(RefusedError) as caught:
        admission.enter("c")
    assert caught.value.status == 503
    admission.leave("a")
    admission.enter("a")
    assert admission.num_open == 3


def test_unix_sockets_count_only_in_all() -> None:
    admission = Admission(ShellConfig(max_connections=2, max_connections_per_address=1))
    admission.enter(None)
    admission.enter(None)
    with pytest.raises(RefusedError):
        admission.enter(None)
    admission.leave(None)
    assert admission.num_open == 1
