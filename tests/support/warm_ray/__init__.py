"""A real local Ray cluster for tests whose worker processes are forked with their imports done.

A distillation on Ray starts a dozen processes, each of which spends one to five CPU seconds on
imports, which no test of actors is about. Here the raylet's interpreter is `client.py`: it hands a
worker's command line to `server.py`, which has imported everything and forks. Nothing of Ray or of
ours is replaced. How processes start from nothing is shown by the tests that run whole commands.
"""
