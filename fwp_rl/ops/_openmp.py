"""Starts numba's threads without taking torch's away.

Where both use one OpenMP runtime, which depends on how numba was built, numba sets the number of threads for everybody
when it starts its own: it would undo `torch.set_num_threads`, and every small torch operation would wait for a second
thread. Imported where numba is used.
"""

import numba
import torch

_torch_threads = torch.get_num_threads()
numba.get_num_threads()  # starts the threads
torch.set_num_threads(_torch_threads)
