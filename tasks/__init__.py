"""Entry points, thin: a task is handed a transaction and calls one service."""
