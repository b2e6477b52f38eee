"""The bridge against asgiref: one table of scenarios, run with each library, compared.

- library.py: a library as scenarios see it, and what tables of scenarios are made of.
- chains.py: call chains that cross between sync and async; experiments.py and cancelled_chains.py: what is tried
  on every one of them, in every mode.
- calls.py, threads.py, contexts.py, locals.py, cancellations.py, lifetimes.py, wrappers.py: scenarios written one
  by one; work.py helps them.
- scenarios.py: the table of them all.
- runner.py: runs the table with one library in child processes; a hang is an outcome.
- differences.py: where the outcomes differ on purpose, and why.
- test_differential.py: compares.
"""
