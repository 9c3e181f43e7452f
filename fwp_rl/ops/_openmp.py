"""Starts numba's threads without taking torch's away.

Both use one OpenMP runtime, and numba, when it starts its threads, sets the number for everybody: `torch.set_num_threads`
would be undone, and every small torch operation would wait for a second thread. Imported by whatever uses numba.
"""

import numba
import torch

_torch_threads = torch.get_num_threads()
numba.get_num_threads()  # starts the threads
torch.set_num_threads(_torch_threads)
