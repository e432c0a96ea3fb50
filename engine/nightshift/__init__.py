"""A job ledger on Celery: jobs enqueued in the transaction that causes them, and not lost.

Celery brings transport, pool, routing and remote control. The ledger is a table: what was asked
for, and what became of it.

Public names, which change only with a release of deprecation:

    nightshift.component    Component, Composition, Duty, Gauge, Probe, Status
    nightshift.celery.app   App
    nightshift.celery.task  job, run_here, working_here
    nightshift.cli.output   pass_app, pass_runtime, refusals, end_with, change_each, print_rows,
                            print_json, as_json_option
    nightshift.cli.shell    open_shell
    nightshift.database     Base, Session, UtcDateTime, choice, insert_or, make_borrowing_engine,
                            make_engine, utc_now
    nightshift.errors       the errors that a service raises
    nightshift.jobs         JobArgs, Backoff, Rate, enqueue, enqueue_many, Run, and the outcomes;
                            JobStatus, read_status, cancel
    nightshift.jobs.schedule    Entry
    nightshift.jobs.models  Job, JobState, ENDED: to read the ledger
    nightshift.ledger       ledger, the engine's own component
    nightshift.migrations   run_migrations
    nightshift.runtime      Runtime
    nightshift.settings     Settings, ComponentSettings
    nightshift.testing      assert_enqueued, run_due, and the fixtures
    nightshift.web.server   make_app, serve

Everything else may change with any release.
"""
