"""Commands beside Celery's own: `celery -A project school …`; pyproject.toml names them as entry points."""
