"""The command: one seed, many seeds, or the measurement of what grows."""

import argparse
import sys

from tests.stress import flat, many, run

parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
wanted = parser.add_mutually_exclusive_group(required=True)
wanted.add_argument("seed", nargs="?", type=int, help="repeat the run of this seed")
wanted.add_argument("--seeds", type=int, help="try so many seeds, each in a process of its own")
wanted.add_argument("--flat", type=int, help="measure what grows over so many calls of each kind")
parser.add_argument("--first", type=int, default=0, help="the first of --seeds")
arguments = parser.parse_args()
if arguments.flat is not None:
    sys.exit(flat.main(arguments.flat))
if arguments.seeds is not None:
    sys.exit(many.try_seeds(range(arguments.first, arguments.first + arguments.seeds)))
sys.exit(run.main(arguments.seed))
