"""How numba compiles the CPU kernels, and how its threads start without taking torch's away.

Where both use one OpenMP runtime, which depends on how numba was built, numba sets the number of threads for everybody
when it starts its own: it would undo `torch.set_num_threads`, and every small torch operation would wait for a second
thread. Imported where numba is used.
"""

from typing import Any

import numba
import torch

_torch_threads = torch.get_num_threads()
numba.get_num_threads()  # starts the threads
torch.set_num_threads(_torch_threads)

KERNEL: dict[str, Any] = {"cache": True, "nogil": True, "no_cfunc_wrapper": True}
"""For what Python calls."""
CALLED: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""For what only kernels call: without an entrance for Python, which takes time to compile. Python that
calls it nonetheless crashes."""
NUMPY = CALLED | {"error_model": "numpy"}
"""The error model of NumPy, because a check for division by zero keeps a loop from vectorising."""
FAST = NUMPY | {"fastmath": {"contract", "nsz", "arcp", "afn"}}
"""fastmath without nnan and ninf: a number that diverged has to stay visible."""
