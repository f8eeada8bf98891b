"""The beginner's serial square: one call after the other, each on a process of the pool.

python examples/serial_square.py                             # on a process of this machine
FARPOOL_URL=redis://host-a python examples/serial_square.py  # on the nodes of that server
"""

from farpool import Pool


def square(n: int) -> int:
    return n * n


if __name__ == "__main__":
    arr = [1, 2, 3, 4, 5]
    result = []
    with Pool(1) as pool:
        for num in arr:
            result.append(pool.apply(square, (num,)))
    print(result)
