"""Figures of this project beside those of its peers; ``python -m benchmarks`` says which there are.

Nothing here is part of the package or of its tests. `measure` is how a figure is taken, `peers` what is compared,
`bridge` the figures of the library, `child` the process they are taken in, `processes` who starts it,
`results` what comes back, `report` and `chart` how it is shown.

`handler` and `serve` are the figures of the handler, without and with a server: `pages` is what they ask for, `site` the project that
answers, `project` its databases and environment, `servers` and `load` the two ends of a connection, `rates` what
comes back, `rates_report` how it is shown.
"""

__all__ = ()
