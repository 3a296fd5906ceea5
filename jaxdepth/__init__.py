"""Depth in metres from one image: networks of NYU Depth V2 in JAX and Flax.

    import jaxdepth

    depth = jaxdepth.load("runs/upproj-si-001").predict("photo.jpg")
    depth.metres  # (H, W) float32
    model = jaxdepth.create_model("upproj")
    loss = jaxdepth.losses.berhu(pred, target, valid=valid)
    scores = jaxdepth.metrics.compute(pred, target, valid)

Names are imported on first use, so that `import jaxdepth` is quick. `jaxdepth --help`
lists the commands.
"""

import importlib
import typing

from jaxdepth.runtime import garbage

if typing.TYPE_CHECKING:
    from jaxdepth import losses
    from jaxdepth.config import Config
    from jaxdepth.data.sources import register_source
    from jaxdepth.depth import Depth
    from jaxdepth.evaluation import metrics, protocols
    from jaxdepth.evaluation.metrics import register_metric
    from jaxdepth.evaluation.protocols import register_protocol
    from jaxdepth.losses import register_loss
    from jaxdepth.models import create_model, normalize, register_arch
    from jaxdepth.predictor import Predictor, load

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Depth",
    "Predictor",
    "create_model",
    "load",
    "losses",
    "metrics",
    "normalize",
    "protocols",
    "register_arch",
    "register_loss",
    "register_metric",
    "register_protocol",
    "register_source",
]

_MODULES = {
    "Config": "jaxdepth.config",
    "Depth": "jaxdepth.depth",
    "Predictor": "jaxdepth.predictor",
    "create_model": "jaxdepth.models",
    "load": "jaxdepth.predictor",
    "losses": "jaxdepth",
    "metrics": "jaxdepth.evaluation",
    "normalize": "jaxdepth.models",
    "protocols": "jaxdepth.evaluation",
    "register_arch": "jaxdepth.models",
    "register_loss": "jaxdepth.losses",
    "register_metric": "jaxdepth.evaluation.metrics",
    "register_protocol": "jaxdepth.evaluation.protocols",
    "register_source": "jaxdepth.data.sources",
}
_SUBMODULES = ("losses", "metrics", "protocols")


def __getattr__(name: str) -> typing.Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxdepth' has no attribute '{name}'")
    with garbage.paused():
        if name in _SUBMODULES:
            return importlib.import_module(f"{_MODULES[name]}.{name}")
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
