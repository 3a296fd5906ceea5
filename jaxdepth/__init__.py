"""Depth from one image, in JAX and Flax."""
