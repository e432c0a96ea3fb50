"""Thin entry points: a task is given a transaction and calls one service."""
