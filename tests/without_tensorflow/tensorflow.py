"""With this folder first on PYTHONPATH, `import tensorflow` fails."""

raise ImportError("processes of tests start without TensorFlow")
