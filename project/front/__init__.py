"""The web server's first page, in development: what the components show there."""
