"""Frames of a profile, and their times."""

from __future__ import annotations

from pie_trio.application.run.profile_tracks import Tracks


class Clock:
    """Time that goes on when it is told to, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_frames_lie_inside_of_each_other_in_microseconds() -> None:
    clock = Clock()
    tracks = Tracks(clock)
    loop, device = tracks.add("event loop"), tracks.add("device")
    tracks.open(loop, "task a")
    clock.now += 1.0
    tracks.open(loop, "guest b")
    tracks.open(device, "engine c")
    clock.now += 2.0
    tracks.close(device)
    tracks.close(loop)
    clock.now += 4.0
    tracks.close(loop)
    tracks.end()
    made = tracks.speedscope("a run")
    assert made["shared"] == {
        "frames": [{"name": "task a"}, {"name": "guest b"}, {"name": "engine c"}]
    }
    assert [profile["name"] for profile in made["profiles"]] == ["event loop", "device"]
    for profile in made["profiles"]:
        assert (profile["type"], profile["unit"]) == ("evented", "microseconds")
        assert (profile["startValue"], profile["endValue"]) == (0, 7e6)
    assert made["profiles"][0]["events"] == [
        {"type": "O", "frame": 0, "at": 0.0},
        {"type": "O", "frame": 1, "at": 1e6},
        {"type": "C", "frame": 1, "at": 3e6},
        {"type": "C", "frame": 0, "at": 7e6},
    ]
    assert tracks.own_seconds(loop) == {"task a": 5.0, "guest b": 2.0}
    assert tracks.own_seconds(device) == {"engine c": 2.0}
    assert tracks.seconds == 7.0


def test_time_between_frames_belongs_to_none() -> None:
    clock = Clock()
    tracks = Tracks(clock)
    loop = tracks.add("event loop")
    for _ in range(2):
        clock.now += 10.0
        tracks.open(loop, "task a")
        clock.now += 1.0
        tracks.close(loop)
    tracks.end()
    assert tracks.own_seconds(loop) == {"task a": 2.0}


def test_what_is_open_at_the_end_ends_there() -> None:
    clock = Clock()
    tracks = Tracks(clock)
    loop = tracks.add("event loop")
    tracks.open(loop, "task a")
    tracks.open(loop, "guest b")
    clock.now += 1.0
    tracks.end()
    (profile,) = tracks.speedscope("a run")["profiles"]
    assert [event["type"] for event in profile["events"]] == ["O", "O", "C", "C"]
    assert tracks.own_seconds(loop) == {"task a": 0.0, "guest b": 1.0}


def test_a_full_profile_opens_nothing_and_closes_all() -> None:
    tracks = Tracks(Clock(), max_events=4)
    loop = tracks.add("event loop")
    found = [
        (tracks.open(loop, frame), tracks.is_cut) for frame in ("task", "guest", "call")
    ]
    assert found == [(True, False), (True, False), (False, True)]
    tracks.close(loop)
    tracks.close(loop)
    assert not tracks.open(loop, "task a")
    tracks.end()
    (profile,) = tracks.speedscope("a run")["profiles"]
    assert len(profile["events"]) == 4
