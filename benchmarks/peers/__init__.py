"""The same jobs in other job systems, each as its own documentation shows it.

A module has the job, and says:

- `enqueue(number, job)`: enqueue so many;
- `WORKER`: the command of a worker, and `PROCESSES`: how often it is started. All have two
  processes that run jobs, and log warnings only;
- `LEFT`: how many jobs have not ended. A statement for Postgres, or commands for Redis whose
  answers are added up.
"""
