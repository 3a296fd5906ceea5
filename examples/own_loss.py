"""Your own loss, as a plugin or as a script.

jaxdepth run --plugin=examples/own_loss.py --loss=relative --arch=cnn
python examples/own_loss.py --arch=cnn
"""

import jax.numpy as jnp

import jaxdepth


@jaxdepth.register_loss("relative")
def relative(pred, target, valid, options):
    """Mean relative error of each image: (b, h, w) metres to (b,)."""
    error = jnp.where(valid, jnp.abs(pred - target) / target, 0.0)
    count = jnp.maximum(jnp.sum(valid, axis=(1, 2)), 1)
    return jnp.sum(error, axis=(1, 2)) / count


if __name__ == "__main__":
    from jaxdepth.commands import cli, run

    cli.main(lambda flags: run.command(["--loss=relative", *flags]))
