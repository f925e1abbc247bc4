"""The interpreter of a raylet: hands workers to the fork server, runs anything else itself.

`client.py PYTHON SOCKET SCRIPT ARGUMENTS...`; imports next to nothing, for speed. It lives as long
as the worker, since the raylet knows it as the worker until that one registers.

The dashboard's agent, without which a raylet does not start, is this process too, and does nothing:
there is no dashboard. It would import for longer than anything else that the raylet waits for.
"""

import _socket  # socket.py takes longer to import than all of the rest
import marshal
import os
import sys
import time

PORTS = "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port"
"""What a raylet waits to be told by that agent, in files."""
LOOK_SECONDS = 1.0


def main(python: str, path: str, command: list[str]) -> None:
    """Returns when the worker has ended; does not return where this process becomes it."""
    given = {word.partition("=")[0]: word.partition("=")[2] for word in command}
    is_agent = any(word.endswith("/dashboard/agent.py") for word in command)
    if is_agent and {"--session-dir", "--node-id"} <= given.keys():
        return idle(given["--session-dir"], given["--node-id"])
    if any(word.endswith("/default_worker.py") for word in command):  # else an agent
        server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        if _is_forked(server, path, command):
            server.recv(1)  # nothing more comes: the worker has ended
            return
        server.close()
    os.execv(python, [python, *command])


def idle(folder: str, node: str) -> None:
    """Say, as Ray's own agent where its libraries are missing, that it serves at no port; returns
    when the raylet has ended."""
    raylet = os.getppid()
    for name in PORTS:
        path = f"{folder}/{name}_{node}"
        with open(f"{path}.new", "w") as file:
            file.write("-1")
        os.rename(f"{path}.new", path)  # whole from the first moment
    while os.getppid() == raylet:
        time.sleep(LOOK_SECONDS)


def _is_forked(server: _socket.socket, path: str, command: list[str]) -> bool:
    """Whether the server has a worker for this process's command, files and variables."""
    files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    wish = marshal.dumps((command, dict(os.environ), os.getcwd()))
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)]
    try:
        server.connect(path)
        server.sendmsg([len(wish).to_bytes(4, "big")], rights)
        server.sendall(wish)
        return server.recv(1) == b"+"
    except OSError:
        return False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
