"""`python -m serving.model_server --models DIR` serves until interrupted; flags are named as in TensorFlow Serving."""

from __future__ import annotations

import argparse
import logging
import signal
import sys

from serving.model_server.server import start
from transform.contract import ContractError


def main(arguments: list[str] | None = None) -> int:
    """Runs the server; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.model_server", description=__doc__)
    parser.add_argument("--models", required=True, help="folder with <name>/<version>/saved_model.pb")
    parser.add_argument("--port", type=int, default=8500, help="gRPC port; 0 takes a free one")
    parser.add_argument("--rest_api_port", type=int, default=8501, help="REST port; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--file_system_poll_wait_seconds", type=float, default=1.0, help="0: do not look for new versions"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        server = start(
            options.models, options.port, options.rest_api_port, options.host, options.file_system_poll_wait_seconds
        )
    except ContractError as error:
        logging.getLogger(__name__).error("%s", error)
        return 2
    with server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        logging.getLogger(__name__).info("gRPC on %s, REST on %s:%d", server.target, server.host, server.rest_port)
        server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
