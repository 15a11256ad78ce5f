"""Where blocking work runs: threads of several kinds, each with a number of its own, so that none waits for another.

SQLite's writers wait for each other. If they shared their threads with the readers, an admin's hundred writes would
make every tenant's authentication wait for all of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

READING: Final = 32
WRITING: Final = 4
"""One writes, the others wait for its lock: more threads would only wait as well."""
PUBLISHING: Final = 2
"""Uploads that the gate works on at once."""
RECEIVING: Final = 8
"""Uploads in parts that come in at once: each has a thread, which waits for its client's next bytes."""
COMPUTING: Final = 2

SMALL_BYTES: Final = 64 << 10
"""What is parsed on the spot: a millisecond of the event loop, less than a thread's round trip under load."""

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


class Threads:
    """Built once by `create_app`. A thread that has begun is waited for, also by a request whose client has gone."""

    def __init__(self) -> None:
        self._reading = CapacityLimiter(READING)
        self._writing = CapacityLimiter(WRITING)
        self._publishing = CapacityLimiter(PUBLISHING)
        self._receiving = CapacityLimiter(RECEIVING)
        self._computing = CapacityLimiter(COMPUTING)

    async def read(self, look: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        """What changes nothing in the registry: who calls, what a name means, what there is."""
        return await to_thread.run_sync(partial(look, *args, **kwargs), limiter=self._reading)

    async def write(
        self, change: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Value:
        """What changes the registry's database."""
        return await to_thread.run_sync(partial(change, *args, **kwargs), limiter=self._writing)

    async def publish(
        self, publish: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Value:
        """The gate's work on an upload: seconds, and it waits for the engine."""
        return await to_thread.run_sync(partial(publish, *args, **kwargs), limiter=self._publishing)

    async def receive(
        self, append: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Value:
        """What writes a body to the disk as it comes in: as long as the client takes."""
        return await to_thread.run_sync(partial(append, *args, **kwargs), limiter=self._receiving)

    async def compute(self, work: Callable[[bytes], Value], body: bytes) -> Value:
        """`work(body)`: on the spot for a small body, in a thread for a large one."""
        if len(body) <= SMALL_BYTES:
            return work(body)
        return await to_thread.run_sync(work, body, limiter=self._computing)

    async def write_out(self, page: Callable[[], Value]) -> Value:
        """A page whose length nobody knows, such as that of the metrics."""
        return await to_thread.run_sync(page, limiter=self._computing)
