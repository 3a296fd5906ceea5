"""torch.compile within a time limit."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from jaxdepth.commands.benchmark.report import Report


def compiled(
    one: Any, name: str, *, limit: float, report: Report
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The network by torch.compile under a name of its own; nothing where that fails.

    Its first step compiles it. That is interrupted by a signal after `limit` seconds,
    for which this must be the main thread.

    Args:
      one: a `peer_runs.Trainer` or `Predictor`.
    """
    # For inference the launches of small kernels count, which a CUDA graph takes away.
    on_gpu = next(one.model.parameters()).is_cuda
    mode = "reduce-overhead" if on_gpu and not one.model.training else "default"
    run: Any = torch.compile(one.model, mode=mode)
    try:
        with time_limit(limit):
            # To the host: a result that was only started is none yet.
            one.by(run)().cpu()
    except Exception as error:  # whatever the compiler does not like
        torch._dynamo.reset()
        words = " ".join(str(error).split()).partition(" Set TORCHDYNAMO")[0]
        report.say(f"{name}: not compiled ({words[:160] or type(error).__name__})")
        return {}
    return {f"{name}, compiled ({mode})": run}


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread once so much time has passed."""
    if threading.current_thread() is not threading.main_thread():
        raise TimeoutError("not in the main thread, where alone it can be stopped")

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: a library may catch it and go on.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
