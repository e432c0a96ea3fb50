"""The same no-op job in other job systems, each as its own documentation shows it.

Each has two worker processes.
"""
