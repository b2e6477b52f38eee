"""The handler against Django's: one site, many stacks of middleware, asked the same under both, compared.

- trace.py: what happens on a request's way, in order; outcomes.py: that and the answer, and how two of them differ.
- asking.py: asks an application, without a server; sites.py: settings, time and chance of a site; sides.py: both handlers.
- errors.py, behaviours.py: what hooks, middleware and views do; hooks.py, wraps.py, specials.py: shapes of middleware;
  shapes.py: the table of them all, and where ``settings.MIDDLEWARE`` finds them.
- answers.py, views.py, urls*.py: the site; questions.py: what is asked of it.
- stacks.py: which stacks, and what is asked of each.
- differences.py: where the two differ on purpose, and why.
- test_handler_differential.py: compares. The other tests show that a difference would be seen.
"""
