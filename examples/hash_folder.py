"""SHA-256 of every file below a folder, in the format of `sha256sum --check`.

    python examples/hash_folder.py ~/Pictures > sums.txt
    python examples/hash_folder.py /mnt/shared --url redis://host-a:6379/0

With a url, the nodes read the files, so they need the folder at the same path.
"""

import argparse
import hashlib
import io
import socket
import sys
from pathlib import Path

from tqdm import tqdm

from farpool import FarpoolError, Pool


def digest(path: str) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OSError(f"{path}: {error.strerror} (on {socket.gethostname()})") from None


def line_of(digest: str, path: str) -> str:
    """Return a line as sha256sum writes it; it begins with a backslash if the name is escaped."""
    name = path.replace("\\", r"\\").replace("\n", r"\n").replace("\r", r"\r")
    mark = "" if name == path else "\\"
    return f"{mark}{digest}  {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description="SHA-256 of every file below a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", help="run on the nodes of this server (default: FARPOOL_URL)")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    # File names may hold any bytes; print them unchanged.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    paths = sorted(str(path) for path in folder.rglob("*") if path.is_file())

    failed = 0
    with Pool(url=arguments.url) as pool, tqdm(total=len(paths), unit="file") as bar:

        def one_more(_: object) -> None:
            bar.update()

        results = [
            pool.apply_async(digest, (path,), callback=one_more, error_callback=one_more)
            for path in paths
        ]
        for path, result in zip(paths, results, strict=True):
            try:
                line = line_of(result.get(), path)
            except OSError as error:
                failed += 1
                tqdm.write(str(error), file=sys.stderr)
            else:
                tqdm.write(line)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FarpoolError as error:
        sys.exit(f"Error: {error}")
