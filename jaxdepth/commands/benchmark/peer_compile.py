"""torch.compile with a time limit."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from jaxdepth.commands.benchmark.report import Report
from jaxdepth.runtime.errors import one_line


def compiled(
    runner: Any, name: str, *, limit: float, report: Report
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Label -> the network after torch.compile; empty if compiling fails.

    The first step compiles. A signal interrupts it after `limit` seconds, so this must
    run on the main thread.

    Args:
      runner: a `peer_runs.Trainer` or `Predictor`.
    """
    # CUDA graphs remove the cost of launching small kernels, which counts in inference.
    on_gpu = next(runner.model.parameters()).is_cuda
    mode = "reduce-overhead" if on_gpu and not runner.model.training else "default"
    network: Any = torch.compile(runner.model, mode=mode)
    try:
        with time_limit(limit):
            # Copied to the host, because on a GPU the result may not be ready.
            runner.step(network).cpu()
    except Exception as error:  # compiler backends raise different errors
        torch._dynamo.reset()
        words = one_line(error).partition(" Set TORCHDYNAMO")[0]
        report.note(f"{name}: not compiled ({words[:160] or type(error).__name__})")
        return {}
    return {f"{name}, compiled ({mode})": network}


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after `seconds`."""
    if threading.current_thread() is not threading.main_thread():
        raise TimeoutError("only the main thread can be interrupted")

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    # Repeated every 5 s, because a library may catch the error and continue.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
