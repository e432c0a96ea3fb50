"""What the software does: plain functions that know neither Celery nor the environment.

A service is given everything that it needs.
"""
