"""`python -m bench`: all benchmarks, or those named. Exit code 1 when a target was missed."""

from __future__ import annotations

import argparse
import sys

from bench import connect, fanout, kafka, latency, resume, tail
from bench.common import ROUNDS

BENCHMARKS = {
    "fanout": fanout.main,
    "latency": latency.main,
    "connect": connect.main,
    "resume": resume.main,
    "tail": tail.main,
    "kafka": kafka.main,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)} (all without)")
    parser.add_argument("--kafka", default="local", help="`local` starts a real one, `embedded` the in-process broker; else host:port,…")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of floor and product; the median counts")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    kafka = None if options.kafka == "embedded" else options.kafka
    met = [BENCHMARKS[name](kafka, options.rounds) for name in options.names or BENCHMARKS]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
