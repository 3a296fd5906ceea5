"""First on a process' path, it is as if TensorFlow were not installed."""

raise ImportError("processes of tests start without TensorFlow")
