"""Coalesce concurrent requests into one call: the micro-batcher of the teacher server."""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import Generic, TypeVar

from common.config.quantities import Batch, Milliseconds, Tokens
from common.config.schema import Config

T = TypeVar("T")
R = TypeVar("R")


class BatchingConfig(Config):
    max_images: Batch = 256
    """Requests are joined until a forward pass has this many images."""
    max_tokens: Tokens = 2**16
    """Requests are joined as long as a forward pass has no more tokens than this, so that long
    sequences take no more memory than short ones; a single request is never split."""
    wait_ms: Milliseconds = 2.0
    """How long the first request waits for company; 0 scores every request by itself."""


class Batcher(Generic[T, R]):
    """One thread serves a queue; `call` blocks its caller until its own result is there.

    An exception of `serve` reaches every caller of that batch. The thread is a daemon: it ends
    with its process.
    """

    def __init__(
        self,
        config: BatchingConfig,
        serve: Callable[[list[T]], list[R]],
        *,
        size: Callable[[T], int],
        tokens: Callable[[T], int] = lambda item: 0,
    ) -> None:
        """`size` and `tokens` of an item are what `config` counts: images, and tokens in all."""
        self._config = config
        self._serve = serve
        self._size = size
        self._tokens = tokens
        self._postponed: tuple[T, Future[R]] | None = None
        self._queue: queue.Queue[tuple[T, Future[R]]] = queue.Queue()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="serve")
        Thread(target=self._loop, daemon=True, name="batcher").start()

    def waiting(self) -> int:
        """Requests that have come since the one being served."""
        return self._queue.qsize() + (self._postponed is not None)

    def call(self, item: T) -> R:
        future: Future[R] = Future()
        self._queue.put((item, future))
        return future.result()

    def _loop(self) -> None:
        while True:
            batch = self._collect()
            outcome = self._pool.submit(self._serve, [item for item, _ in batch])
            error = outcome.exception()
            for position, (_, future) in enumerate(batch):
                if error is not None:
                    future.set_exception(error)  # it belongs to the callers
                else:
                    future.set_result(outcome.result()[position])

    def _collect(self) -> list[tuple[T, "Future[R]"]]:
        batch = [self._postponed or self._queue.get()]
        self._postponed = None
        images, tokens = self._size(batch[0][0]), self._tokens(batch[0][0])
        deadline = time.monotonic() + self._config.wait_ms / 1000
        while images < self._config.max_images and tokens < self._config.max_tokens:
            try:
                entry = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            images, tokens = images + self._size(entry[0]), tokens + self._tokens(entry[0])
            if tokens > self._config.max_tokens:
                self._postponed = entry  # the first of the next pass
                break
            batch.append(entry)
        return batch
