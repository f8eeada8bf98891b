"""Jobs by id: enqueue them, let this program end, and fetch their results later from anywhere.

export FARPOOL_URL=redis://host-a:6379/0
python examples/enqueue_jobs.py           # enqueues jobs and prints their ids
python examples/enqueue_jobs.py ID ...    # prints their results
"""

import math
import os
import sys

from rq.exceptions import NoSuchJobError

from farpool import FarpoolError, Job, Queue


def main(job_ids: list[str]) -> None:
    queue = Queue()
    for job_id in job_ids:
        print(Job.fetch(job_id, connection=queue.connection).get(timeout=30))
    if not job_ids:
        for job in queue.enqueue_map(math.factorial, [5, 10, 20], result_ttl=3600):
            print(job.id)


if __name__ == "__main__":
    if "FARPOOL_URL" not in os.environ:
        sys.exit("set FARPOOL_URL to the url of a server, and start a node with 'farpool worker'")
    try:
        main(sys.argv[1:])
    except (FarpoolError, NoSuchJobError) as error:
        sys.exit(f"Error: {error}")
