"""A job ledger on Celery: jobs enqueued in the transaction that causes them, and not lost.

Celery brings transport, pool, routing and remote control. The ledger is a table: what was asked
for, and what became of it.

Public names, which change only with a release of deprecation:

    nightshift                  database
    nightshift.component        Answer, Component, Composition, Duty, Gauge, Probe, Status
    nightshift.celery.app       App
    nightshift.celery.task      job, run_here, working_here
    nightshift.cli.boundary     DAY, FilePath, LIMIT, ROW_NUMBER
    nightshift.cli.output       as_json_option, change_each, end_with, pass_app, pass_runtime,
                                print_json, print_rows, refusals
    nightshift.cli.shell        open_shell
    nightshift.database         Base, Session, UtcDateTime, choice, insert_or,
                                make_borrowing_engine, make_engine, utc_now
    nightshift.desk             Cached, Desk, Form, Number, Part, Tile
    nightshift.errors           Conflict, InvalidInput, NotFound, PermanentError, ServiceError,
                                TransientError
    nightshift.jobs             Backoff, Cancel, Discard, JobArgs, JobStatus, Outcome, Rate, Run,
                                Snooze, cancel, enqueue, enqueue_many, read_status
    nightshift.jobs.batches     read_children
    nightshift.jobs.models      ENDED, Job, JobState
    nightshift.jobs.schedule    Entry
    nightshift.ledger           ledger
    nightshift.migrations       run_migrations
    nightshift.observe.masks    mask_links
    nightshift.runtime          Runtime
    nightshift.settings         ComponentSettings, Count, DatabaseUrl, Days, DeskBind, Duration,
                                FlowerPort, ProjectName, PublicUrl, Settings, WebBind
    nightshift.testing          assert_enqueued, job_app, job_environment, job_worker, project_app,
                                run_due
    nightshift.web.server       make_app, serve

Everything else may change with any release.
"""
