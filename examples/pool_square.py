"""The beginner's Pool: compute squares in parallel and print which process computed which.

python examples/pool_square.py                             # on processes of this machine
FARPOOL_URL=redis://host-a python examples/pool_square.py  # on the nodes of that server
"""

import os

from farpool import Pool  # the only changed line; was: from multiprocessing import Pool


def square(n: int) -> int:
    print(f"Worker process id for {n}: {os.getpid()}")
    return n * n


if __name__ == "__main__":
    arr = [1, 2, 3, 4, 5]
    with Pool() as p:
        result = p.map(square, arr)
    print("Square of each elements : ")
    print(result)
