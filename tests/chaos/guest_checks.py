"""What must hold on a server: after each event, and when all instances have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pie_trio.engine_api import Batch
    from tests.chaos.world import World


def check_pages(world: World) -> None:
    """Assert that each page has the owners that it should have."""
    model = world.model
    model.pool.check()
    model.embeds.check()
    held = [0] * len(model.pool.physical)
    for tenant in model.batcher.tenants:
        for page in tenant.pages():
            held[page] += 1
    for page in model.exports.pages:
        held[page] += 1
    for page, count in enumerate(held):
        num_owners = model.pool.num_owners(page)
        assert num_owners >= count, (
            f"{count} hold page {page}, which has {num_owners} owners"
        )


def trees_of(batch: Batch, world: World) -> list[object]:
    """Return the totals of the inferlets, each with its children, that write in a batch."""
    pool, page_size = world.model.pool, world.model.info.page_size
    written = {copy.target for copy in batch.copies}
    for forward in batch.forwards:
        first = (forward.kv_len - len(forward.token_ids)) // page_size
        last = (forward.kv_len - 1) // page_size
        written.update(forward.page_ids[first : last + 1].tolist())
    return [
        tenant.totals
        for tenant in world.model.batcher.tenants
        if any(int(pool.physical[page]) in written for page in tenant.pages())
    ]


def check_nothing_left(world: World) -> None:
    """Assert that nothing is held by instances, which have all ended."""
    model, services = world.model, world.services
    assert world.launcher.num_running == 0, "instances that ended still count"
    assert not model.batcher.tenants, [t.name for t in model.batcher.tenants]
    assert model.batcher.num_unfinished == 0, "commands are left"
    assert model.batcher.arrivals.num_expected == 0, "somebody is waited for"
    persistent = len(model.exports.pages)
    assert model.pool.num_virtual <= persistent, "somebody still holds a page"
    model.exports.clear()
    assert model.pool.num_virtual == 0, "somebody still holds a page"
    assert model.pool.num_free == model.pool.num_pages, "a page was lost"
    model.pool.check()
    assert model.embeds.num_free == model.embeds.num_embeds, "an embed was lost"
    assert world.engine.num_processors == 0, "a processor was lost"
    assert len(world.topics) == 0, "a topic still has subscribers"
    assert not world.topics._by_subscriber, "somebody is still subscribed"
    quotas = services.quotas
    assert quotas.server.is_idle, f"something still counts: {quotas.server.used}"
    check_tasks(world)


def check_tasks(world: World) -> None:
    """Assert that no task is left but the store's."""
    background: Any = services_background(world)
    left = [task.name for task in background._nursery.child_tasks]
    assert len(left) <= 1, f"tasks are left: {left}"
    of_registry: Any = world.registry._background
    left = [task.name for task in of_registry._nursery.child_tasks]
    assert not left, f"tasks of instances are left: {left}"


def services_background(world: World) -> object:
    """Return where the tasks of instances run."""
    assert world.services.background is not None, "open_services makes it"
    return world.services.background
