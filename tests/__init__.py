"""The project's tests.

A library brings a package of this name, too; because of this file, ours is found first.
"""
