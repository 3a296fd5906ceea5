from jaxdepth.runtime.trees import flatten


def test_flatten_joins_nested_keys_by_slashes():
    tree = {"params": {"head": {"bias": 1}, "scale": 2}, "step": 3}
    assert flatten(tree) == {"params/head/bias": 1, "params/scale": 2, "step": 3}
