"""The beginner's Pool: squares in parallel, and which process computed which.

python examples/pool_square.py                            # on processes of this machine
FARPOOL_URL=redis://host-a python examples/pool_square.py      # on the nodes of that server
"""

import os

from farpool import Pool  # the one line changed; it said: from multiprocessing import Pool


def square(n: int) -> int:
    print(f"Worker process id for {n}: {os.getpid()}")
    return n * n


if __name__ == "__main__":
    arr = [1, 2, 3, 4, 5]
    with Pool() as p:
        result = p.map(square, arr)
    print("Square of each elements : ")
    print(result)
