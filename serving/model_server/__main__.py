"""`python -m serving.model_server` takes the command line of `tensorflow_model_server` and serves until terminated."""

from __future__ import annotations

import logging
import os
import sys

from serving.model_server import memory
from serving.model_server.options import Options, parse
from transform.contract import ContractError


def main(arguments: list[str] | None = None) -> int:
    """Runs the server; returns the exit code."""
    try:
        serve(parse(arguments, "python -m serving.model_server"))
    except ContractError as error:
        logging.getLogger(__name__).error("%s", error)
        return 2
    return 0


def serve(options: Options) -> None:
    """Makes this process the server, until SIGTERM or SIGINT; TensorFlow must not have been imported yet.

    Raises:
        ContractError: The options cannot be served.
    """
    # TensorFlow warns of every request that an op refuses, and quotes the request, be it 100 MB.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    memory.keep_little()
    from serving.model_server import server

    server.run(options)


if __name__ == "__main__":
    sys.exit(main())
