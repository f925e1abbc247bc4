"""Starts a private Ray cluster whose workers another interpreter runs, and says its address.

`head.py INTERPRETER FOLDER`; ends it when its standard input does.
"""

import sys
from pathlib import Path
from typing import Any

import ray
from ray._private import worker

if __name__ == "__main__":
    sys.executable = sys.argv[1]  # what Ray makes of it is the command of its workers
    found: Any = ray.init(
        address="local",
        num_cpus=16,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=40,
        object_store_memory=256 * 2**20,
        _temp_dir=sys.argv[2],
    )
    node: Any = worker._global_node
    node.kill_log_monitor()  # it reads, all the time, for nobody
    Path(sys.argv[2], "address").write_text(found.address_info["gcs_address"])
    sys.stdout.write("up\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()
