"""Where the learner's ranks find one another."""

import subprocess
import sys

RANK = """
import os, psutil
from deploy.backend.rank_group import Group, join, listen

address, port = listen("127.0.0.1")
join(Group(address, port, 1, "gloo", 60), 0)
found = psutil.Process().net_connections("inet")
print({c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN})
print(port in {c.laddr.port for c in found})
"""


def test_nobody_listens_on_other_addresses_than_the_nodes():
    done = subprocess.run([sys.executable, "-c", RANK], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["{'127.0.0.1'}", "True"]
