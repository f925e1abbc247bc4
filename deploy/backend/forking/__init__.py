"""Ray's workers, forked from a process that has imported what they need.

A distillation on Ray starts a dozen processes, each of which spends one to five CPU seconds on
imports. Where a command starts Ray for itself, on Linux, its raylet's interpreter is `client.py`:
it hands a worker's command line to `server.py`, which has imported everything but Ray and forks.
Whatever cannot be handed over so is started as Ray does it: another kind of process, a worker
with variables that are read while an interpreter starts or a library loads, any worker when the
server is gone. The server ends with the command.
"""
