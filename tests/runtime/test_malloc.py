import subprocess
import sys

import pytest

# Pages that the system had to find for calls that need 64 MiB each. What is kept
# grows once or twice before a block of that size is always free in it: many calls
# are counted.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
if sys.argv[1] == "keep":
    from jaxdepth.runtime import malloc
    malloc.keep()
f = jax.jit(lambda x: jnp.sort(x + 1)[::-1].sum())
x = jnp.ones((1 << 21, 4))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
f(x).block_until_ready()
before = faults()
for _ in range(24):
    f(x).block_until_ready()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_the_next_step_takes_the_memory_of_the_last():
    def faults(word):
        command = [sys.executable, "-c", PROGRAM, word]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") < 0.2 * faults("leave")
