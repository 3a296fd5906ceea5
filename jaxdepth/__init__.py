"""Depth in metres from one image: networks of NYU Depth V2 in JAX and Flax.

    import jaxdepth

    depth = jaxdepth.load("runs/upproj-si-001").predict("photo.jpg")  # (H, W), metres
    model = jaxdepth.create_model("upproj")
    loss = jaxdepth.losses.berhu(pred, target, valid=valid)

The names are imported when they are first used.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from jaxdepth import losses
    from jaxdepth.evaluation import metrics
    from jaxdepth.models import create_model
    from jaxdepth.predictor import Predictor, load

__all__ = ["Predictor", "create_model", "load", "losses", "metrics"]

_HOME = {
    "Predictor": "jaxdepth.predictor",
    "create_model": "jaxdepth.models",
    "load": "jaxdepth.predictor",
}


def __getattr__(name: str) -> typing.Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:
        home = "jaxdepth.evaluation" if name == "metrics" else "jaxdepth"
        return importlib.import_module(f"{home}.{name}")
    raise AttributeError(f"module 'jaxdepth' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
