"""The same no-op job in other job systems, each as its own documentation has it, with two worker processes."""
