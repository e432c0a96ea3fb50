"""What the software does. Knows neither Celery nor the environment: everything a service needs is handed to it."""
