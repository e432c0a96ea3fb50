"""Who sees what, events as bytes, feeds and the store that they are kept in."""
