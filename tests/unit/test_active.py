"""Who holds a subscription in this process, in whatever order the answers of the writes come."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any, cast

import pytest

from datasette_pubsub.broker.active import ActiveSubscriptions
from datasette_pubsub.broker.batcher import Batcher
from datasette_pubsub.core.events import Superseded
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.live.subscriber import Subscriber
from datasette_pubsub.storage.subscriptions import Claim, Save, Subscription

NAME = "this process"


class Cursors:
    """A batcher that only notes what it is given."""

    def __init__(self) -> None:
        self.saved: list[Save] = []

    def move_cursor(self, number: int, save: Save) -> None:
        self.saved.append(save)

    def newest_cursor(self, number: int, claim: int) -> int:
        return 0

    def forget_cursor(self, number: int) -> None:
        pass


class Stream:
    """A subscriber that can only be stopped."""

    sends = 0
    ahead = False
    delivery = "explicit"

    def __init__(self) -> None:
        self.ends: list[object] = []

    def stop(self, reason: object) -> None:
        self.ends.append(reason)

    def finished(self) -> tuple[int, bool]:
        return 0, True


def claimed(turn: int, **more: Any) -> Subscription:
    """A claim of this process, as its write returns it: the claims of the file count up from 10."""
    found = Subscription(
        1, "", "s", "{}", Selector.of(["a"]), {}, 0, "", "", NAME, 10 + turn, True, 9 + turn, turn=turn
    )
    return replace(found, **more)


class World:
    """The subscriptions of one process, and the streams that have begun."""

    def __init__(self) -> None:
        self.cursors = Cursors()
        self.active = ActiveSubscriptions(cast(Batcher, self.cursors), NAME)
        self.streams: dict[int, Stream] = {}

    def begin(self, subscription: Subscription) -> None:
        stream = self.streams[subscription.turn] = Stream()
        self.active.begin(subscription, cast(Subscriber, stream), automatic=False)

    @property
    def alive(self) -> list[int]:
        return [turn for turn, stream in self.streams.items() if not stream.ends]


@pytest.mark.parametrize("entering", list(permutations([1, 2, 3])))
@pytest.mark.parametrize("beginning", list(permutations([1, 2, 3])))
@pytest.mark.parametrize("new", [False, True])
def test_the_last_to_claim_holds_it(entering: tuple[int, ...], beginning: tuple[int, ...], new: bool) -> None:
    """Also when the first of them has made the row, and when the newest claim is read from the file afterwards."""
    world = World()
    subscriptions = {turn: claimed(turn, new=new and turn == 1) for turn in entering}
    for turn in entering:
        world.active.enter(subscriptions[turn])
    for turn in beginning:
        world.begin(subscriptions[turn])
    assert world.alive == [3]
    world.active.see(13, [Claim(1, 13, NAME)])
    assert world.alive == [3]
    for turn in (1, 2):
        assert all(isinstance(end, Superseded) for end in world.streams[turn].ends)
        world.active.leave(subscriptions[turn], cast(Subscriber, world.streams[turn]))
    world.active.leave(subscriptions[1], None)
    assert world.alive == [3]
    assert world.active.ids == [1]
    world.active.see(14, [Claim(1, 14, "another process")])
    assert world.alive == []


def test_the_newer_of_two_that_could_not_claim_holds_it() -> None:
    """While the file is locked both have the claim that stands in it; theirs is written later, or before they begin."""
    world = World()
    first, second = (claimed(turn, claim=7, holder="another process") for turn in (1, 2))
    world.active.enter(first)
    world.active.enter(second)
    world.active.claimed({1: 7}, {1: 8})
    world.begin(first)
    world.begin(second)
    assert world.alive == [2]
    world.active.resumed(second, 5)
    assert world.cursors.saved[-1] == Save(8, 5)
    world.active.resumed(first, 4)
    assert world.cursors.saved[-1] == Save(8, 5)


def test_one_that_never_began_frees_it_only_if_nobody_came_after() -> None:
    world = World()
    first, second = claimed(1), claimed(2)
    world.active.enter(first)
    world.active.enter(second)
    world.active.leave(first, None)
    world.begin(second)
    assert world.alive == [2]
    world = World()
    world.active.enter(first)
    world.active.leave(first, None)
    assert world.cursors.saved == [Save(11, 0, release=True)]
