"""Many scans at the network's own pace: while it runs, the next scan is prepared and the last one is written."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.case import Case, CaseResult, PreparedCase, finish_case, prepare_case
from pipeline.errors import AR2UNetError, BundleError

if TYPE_CHECKING:
    from pipeline.predictor import Inferred, Predictor

__all__ = ["keep_memory", "overlap", "segment_cases"]

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Computed = TypeVar("Computed")
Result = TypeVar("Result")

# Cases that may wait, each side of the network. More would only even out scans of very different size, and each
# holds its volume in memory.
AHEAD = 1
BEHIND = 1

# What glibc's mallopt sets, and to what: one heap for all threads, arrays up to 32 MiB (the most it takes) on that
# heap, and nothing of the heap handed back. Larger arrays always are.
MALLOC_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_THRESHOLD": (-3, 2**25), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def segment_cases(
    predictor: Predictor, cases: Iterable[Case], *, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[Case, CaseResult | AR2UNetError]]:
    """Segment many cases, in the order given, each as ``segment_case`` does; a bad one never stops the rest.

    The network runs in the calling thread, whenever the next result is asked for; see ``overlap``.

    Args:
        predictor: Segments the scans.
        cases: Read one case ahead only, so they may come from a generator without end.
        on_progress: Called with the slices done of the scan in the network, and their total.

    Yields:
        Each case with its result, or with the error that says why there is none.

    Raises:
        BundleError: If it is not a scan that is bad but the bundle.
    """
    keep_memory()

    def infer(case: PreparedCase) -> Inferred:
        return predictor.infer(case.prepared, on_progress=on_progress)

    yield from overlap(
        cases, prepare=partial(prepare_case, predictor), infer=infer, finish=partial(finish_case, predictor)
    )


def overlap(
    items: Iterable[Item],
    *,
    prepare: Callable[[Item], Prepared],
    infer: Callable[[Prepared], Computed],
    finish: Callable[[Prepared, Computed], Result],
) -> Generator[tuple[Item, Result | AR2UNetError], None, None]:
    """Take each item through three steps, each of which works at another item meanwhile.

    ``infer`` runs in the calling thread, ``prepare`` and ``finish`` in a thread each, so no step ever runs twice at
    once. A step that is slower than the others holds them up: never are more than ``AHEAD`` items prepared, nor
    more than ``BEHIND`` waiting to be finished. What ends the iteration early (an interrupt, an exception in a step,
    ``close()``) lets the steps that run come to their end, starts no other, and joins the threads. After an exception
    of its own, whoever iterates has to close it: else the threads go on as long as the exception's frames are kept.

    Args:
        items: Iterated in the calling thread.
        prepare: Makes an item ready for ``infer``.
        infer: Gets what ``prepare`` returned.
        finish: Gets what both returned.

    Yields:
        Each item, in order, with what ``finish`` returned, or with the ``AR2UNetError`` that one of its steps raised.

    Raises:
        BundleError: If a step raised one.
    """
    rest = iter(items)
    coming: deque[tuple[Item, Future[Prepared]]] = deque()
    leaving: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(1, "prepare") as preparing, ThreadPoolExecutor(1, "finish") as finishing:

        def look_ahead(count: int) -> None:
            coming.extend((item, preparing.submit(prepare, item)) for item in islice(rest, count))

        def pass_on(item: Item, future: Future[Prepared]) -> tuple[Item, Future[Result]]:
            # A function of its own, so that no variable keeps a volume alive while the next is waited for.
            try:
                prepared = future.result()
                return item, finishing.submit(finish, prepared, infer(prepared))
            except AR2UNetError as error:
                failed: Future[Result] = Future()
                failed.set_exception(error)
                return item, failed

        try:
            look_ahead(1)
            while coming:
                look_ahead(AHEAD + 1 - len(coming))
                leaving.append(pass_on(*coming.popleft()))
                while leaving and (leaving[0][1].done() or len(leaving) > BEHIND + 1 or not coming):
                    item, future = leaving.popleft()
                    outcome = _outcome(future)
                    yield item, outcome
        finally:
            unfinished: Iterable[tuple[Item, Future[Any]]] = chain(coming, leaving)
            for _, future in unfinished:
                future.cancel()


def _outcome(future: Future[Result]) -> Result | AR2UNetError:
    try:
        return future.result()
    except BundleError:  # no fault of the item: all that come after it would fail alike
        raise
    except AR2UNetError as error:
        # Who keeps the error shall not keep the volumes in the frames that it came through.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


def keep_memory() -> bool:
    """Let the process keep the memory of one scan for the next; return whether the C library is one that can.

    Otherwise each thread gets a heap of its own, and arrays are handed back and asked for anew. Measured over scans of
    many sizes: memory wanders between 250 and 420 MB, and with this it rises to 370 MB and stays there. Threads that
    run already keep their heaps, so it is best called before an engine is loaded.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in MALLOC_SETTINGS.values())
