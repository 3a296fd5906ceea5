"""Your own training loop: python examples/own_loop.py [STEPS]"""

import sys

import jax
import jax.numpy as jnp
import optax

import jaxdepth
from jaxdepth.data import dataset, pipeline
from jaxdepth.ops import resize

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
data = dataset.open_data(jaxdepth.Config.of(size="57x76", rooms=64))
model = jaxdepth.create_model("cnn")
variables = model.init(jax.random.key(0), jnp.zeros((1, 60, 80, 3)))
optimizer = optax.adam(1e-3)
state = optimizer.init(variables["params"])


@jax.jit
def train_step(variables, state, rgb, depth):
    def loss(params):
        image = jaxdepth.normalize(rgb, "torchvision")
        inputs = variables | {"params": params}
        pred, stats = model.apply(inputs, image, train=True, mutable=["batch_stats"])
        target, valid = resize.masked_area(depth, depth > 0, pred.shape[1:3])
        return jaxdepth.losses.berhu(pred, target, valid=valid), stats

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    updates, state = optimizer.update(grads, state)
    variables = {"params": optax.apply_updates(variables["params"], updates), **stats}
    return variables, state, value


frames, options = (data.train, data.train_rows), {"depth": data.depth, "seed": 0}
options |= {"batch_size": 8, "start_step": 0, "stop_step": steps}
with pipeline.batches(*frames, **options) as batches:
    for step, batch in enumerate(batches, 1):
        metres = data.train.metres(batch["depth_codes"])  # 0 = missing
        variables, state, value = train_step(variables, state, batch["rgb"], metres)
        print(f"step {step}: loss {value:.4f} m")
