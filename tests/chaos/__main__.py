"""`python -m tests.chaos --minutes 30 --seed 7`: one run, with what is done to whom as it happens, and its figures as JSON at the end."""

from __future__ import annotations

import argparse
import secrets
import sys
from contextlib import ExitStack

from tests.chaos.run import chaos
from tidegate.kafka_local import LocalKafka


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--kafka", default="local", help="`local` starts a real one; else host:port,…")
    parser.add_argument("--no-presence", action="store_true", help="clients neither enter nor leave")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with ExitStack() as stack:
        brokers = options.kafka
        if brokers == "local":
            broker = LocalKafka()
            brokers = broker.start()
            stack.callback(broker.stop)
        figures = chaos(60 * options.minutes, options.seed, brokers, lambda text: print(text, flush=True), presence=not options.no_presence)
    print(figures)
    return 0 if figures.right else 1


if __name__ == "__main__":
    sys.exit(main())
