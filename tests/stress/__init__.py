"""Random trees of sync and async calls through the bridge, and a model that knows what must come of them.

`plan` says what a tree is, `grow` makes one from a seed, `model` knows from the promises (docs/promises.md) what must
be seen where, `walk` and `steps` go through the tree and compare, `forks` does the same in a forked child, `run` is one whole
run with its limits. `flat` looks for what grows with the number of calls. Nothing here looks into the bridge: only its
public names are used.

``python -m tests.stress SEED`` repeats one run, ``python -m tests.stress --seeds 200`` tries many,
``python -m tests.stress --flat 100000`` measures what grows.
"""
