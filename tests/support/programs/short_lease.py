"""A node with a short lease, so that tests need not wait: `short_lease.py URL NAME`."""

import sys

from farpool.worker.config import NodeConfig
from farpool.worker.node import Node

if __name__ == "__main__":
    node = Node(NodeConfig(sys.argv[1], name=sys.argv[2], processes=2, lease=1.0))
    node.install_signal_handlers()
    node.run()
