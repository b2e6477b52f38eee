"""The guest book: accounts, entries, and the same page written for each side of the bridge."""
