"""One test or more for each scenario that users of a sync/async bridge suffer from or rely on."""
