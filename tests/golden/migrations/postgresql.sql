-- revision 0001
CREATE TABLE department (
    id SERIAL NOT NULL,
    name VARCHAR(200) NOT NULL,
    letter VARCHAR(10) NOT NULL,
    description TEXT NOT NULL,
    colour VARCHAR(20) NOT NULL,
    locale VARCHAR(20) NOT NULL,
    CONSTRAINT pk_department PRIMARY KEY (id),
    CONSTRAINT uq_department_name UNIQUE (name),
    CONSTRAINT ck_department_locale CHECK (locale IN ('de', 'fr', 'en'))
);
CREATE TABLE feed (
    id SERIAL NOT NULL,
    kind VARCHAR(20) NOT NULL,
    owner_id INTEGER NOT NULL,
    token VARCHAR(64) NOT NULL,
    fingerprint BYTEA,
    etag VARCHAR(64),
    event_count INTEGER NOT NULL,
    size BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL,
    built_at TIMESTAMP WITH TIME ZONE,
    built_by UUID,
    error TEXT,
    CONSTRAINT pk_feed PRIMARY KEY (id),
    CONSTRAINT uq_feed_kind_owner_id UNIQUE (kind, owner_id),
    CONSTRAINT uq_feed_token UNIQUE (token),
    CONSTRAINT ck_feed_feedkind CHECK (kind IN ('user', 'class', 'department'))
);
CREATE TABLE job (
    id UUID NOT NULL,
    kind VARCHAR(100) NOT NULL,
    queue VARCHAR(50) NOT NULL,
    priority INTEGER NOT NULL,
    state VARCHAR(20) NOT NULL,
    args JSON NOT NULL,
    unique_key VARCHAR(200),
    unique_until_started BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_at TIMESTAMP WITH TIME ZONE NOT NULL,
    push_until TIMESTAMP WITH TIME ZONE,
    sent_at TIMESTAMP WITH TIME ZONE,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    attempt INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    time_limit DOUBLE PRECISION NOT NULL,
    claim_id UUID,
    worker_id UUID,
    pid INTEGER,
    result JSON,
    errors JSON,
    progress_done INTEGER,
    progress_total INTEGER,
    trace JSON,
    parent_id UUID,
    counted_at TIMESTAMP WITH TIME ZONE,
    children INTEGER NOT NULL,
    children_open INTEGER NOT NULL,
    children_failed INTEGER NOT NULL,
    follow_up JSON,
    CONSTRAINT pk_job PRIMARY KEY (id),
    CONSTRAINT fk_job_parent_id FOREIGN KEY(parent_id) REFERENCES job (id) ON DELETE CASCADE,
    CONSTRAINT uq_job_unique_key UNIQUE (unique_key),
    CONSTRAINT ck_job_jobstate CHECK (state IN ('scheduled', 'queued', 'running', 'waiting', 'held', 'succeeded', 'failed', 'discarded', 'cancelled'))
);
CREATE INDEX ix_job_children ON job (parent_id, state) WHERE parent_id is not null;
CREATE INDEX ix_job_finished ON job (finished_at) WHERE finished_at is not null;
CREATE INDEX ix_job_kind_started ON job (kind, started_at);
CREATE INDEX ix_job_running ON job (worker_id) WHERE state = 'running';
CREATE INDEX ix_job_scheduled ON job (run_at) WHERE state = 'scheduled';
CREATE INDEX ix_job_sent ON job (queue, sent_at) WHERE state = 'queued' and sent_at is not null;
CREATE INDEX ix_job_unsent ON job (queue, priority, run_at) WHERE state = 'queued' and sent_at is null;
CREATE TABLE paused_queue (
    queue VARCHAR(50) NOT NULL,
    paused_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_paused_queue PRIMARY KEY (queue)
);
CREATE TABLE schedule (
    entry VARCHAR(100) NOT NULL,
    last_fire_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_schedule PRIMARY KEY (entry)
);
CREATE TABLE semester (
    id SERIAL NOT NULL,
    name VARCHAR(50) NOT NULL,
    starts_on DATE NOT NULL,
    ends_on DATE NOT NULL,
    CONSTRAINT pk_semester PRIMARY KEY (id),
    CONSTRAINT uq_semester_name UNIQUE (name)
);
CREATE TABLE sync_run (
    id UUID NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    built INTEGER NOT NULL,
    unchanged INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    removed INTEGER NOT NULL,
    errors JSON NOT NULL,
    inputs BYTEA,
    CONSTRAINT pk_sync_run PRIMARY KEY (id)
);
CREATE INDEX ix_sync_run_started_at ON sync_run (started_at);
CREATE TABLE worker (
    id UUID NOT NULL,
    name VARCHAR(200) NOT NULL,
    queues TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    heartbeat_at TIMESTAMP WITH TIME ZONE NOT NULL,
    stopped_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_worker PRIMARY KEY (id)
);
CREATE TABLE job_log (
    id SERIAL NOT NULL,
    job_id UUID NOT NULL,
    attempt INTEGER NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    line TEXT NOT NULL,
    CONSTRAINT pk_job_log PRIMARY KEY (id),
    CONSTRAINT fk_job_log_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE INDEX ix_job_log_job_id ON job_log (job_id);
CREATE TABLE lesson (
    id SERIAL NOT NULL,
    key VARCHAR(50) NOT NULL,
    semester_id INTEGER NOT NULL,
    weekday INTEGER NOT NULL,
    starts TIME WITHOUT TIME ZONE NOT NULL,
    ends TIME WITHOUT TIME ZONE NOT NULL,
    subject VARCHAR(200) NOT NULL,
    room VARCHAR(100) NOT NULL,
    is_class_teachers BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT pk_lesson PRIMARY KEY (id),
    CONSTRAINT ck_lesson_weekday CHECK (weekday between 1 and 7),
    CONSTRAINT fk_lesson_semester_id FOREIGN KEY(semester_id) REFERENCES semester (id) ON DELETE CASCADE,
    CONSTRAINT uq_lesson_key UNIQUE (key)
);
CREATE INDEX ix_lesson_semester_id ON lesson (semester_id);
CREATE TABLE school_class (
    id SERIAL NOT NULL,
    name VARCHAR(50) NOT NULL,
    display_name VARCHAR(200) NOT NULL,
    graduation_year INTEGER,
    department_id INTEGER,
    CONSTRAINT pk_school_class PRIMARY KEY (id),
    CONSTRAINT fk_school_class_department_id FOREIGN KEY(department_id) REFERENCES department (id) ON DELETE SET NULL,
    CONSTRAINT uq_school_class_name UNIQUE (name)
);
CREATE INDEX ix_school_class_department_id ON school_class (department_id);
CREATE TABLE lesson_class (
    lesson_id INTEGER NOT NULL,
    class_id INTEGER NOT NULL,
    CONSTRAINT pk_lesson_class PRIMARY KEY (lesson_id, class_id),
    CONSTRAINT fk_lesson_class_class_id FOREIGN KEY(class_id) REFERENCES school_class (id) ON DELETE CASCADE,
    CONSTRAINT fk_lesson_class_lesson_id FOREIGN KEY(lesson_id) REFERENCES lesson (id) ON DELETE CASCADE
);
CREATE INDEX ix_lesson_class_class_id ON lesson_class (class_id);
CREATE TABLE user_account (
    id SERIAL NOT NULL,
    email VARCHAR(320) NOT NULL,
    first_name VARCHAR(200) NOT NULL,
    last_name VARCHAR(200) NOT NULL,
    locale VARCHAR(20) NOT NULL,
    role VARCHAR(20) NOT NULL,
    class_id INTEGER,
    untis_id VARCHAR(50),
    mail_events BOOLEAN DEFAULT true NOT NULL,
    mail_reviews BOOLEAN DEFAULT true NOT NULL,
    mail_digest BOOLEAN DEFAULT false NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_user_account PRIMARY KEY (id),
    CONSTRAINT fk_user_account_class_id FOREIGN KEY(class_id) REFERENCES school_class (id) ON DELETE SET NULL,
    CONSTRAINT uq_user_account_email UNIQUE (email),
    CONSTRAINT uq_user_account_untis_id UNIQUE (untis_id),
    CONSTRAINT ck_user_account_locale CHECK (locale IN ('de', 'fr', 'en')),
    CONSTRAINT ck_user_account_role CHECK (role IN ('teacher', 'student', 'admin'))
);
CREATE INDEX ix_user_account_class_id ON user_account (class_id);
CREATE TABLE event (
    id UUID NOT NULL,
    author_id INTEGER,
    state VARCHAR(20) NOT NULL,
    title TEXT NOT NULL,
    description TEXT NOT NULL,
    location TEXT NOT NULL,
    starts_at TIMESTAMP WITH TIME ZONE,
    ends_at TIMESTAMP WITH TIME ZONE,
    starts_on DATE,
    ends_on DATE,
    audience VARCHAR(20) NOT NULL,
    teaching_affected VARCHAR(20) NOT NULL,
    addressed BOOLEAN DEFAULT false NOT NULL,
    version_of_id UUID,
    refusal TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    cancelled_at TIMESTAMP WITH TIME ZONE,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_event PRIMARY KEY (id),
    CONSTRAINT ck_event_instants_or_dates CHECK ((starts_at is not null and ends_at is not null and starts_on is null and ends_on is null) or (starts_at is null and ends_at is null and starts_on is not null and ends_on is not null)),
    CONSTRAINT fk_event_author_id FOREIGN KEY(author_id) REFERENCES user_account (id) ON DELETE SET NULL,
    CONSTRAINT fk_event_version_of_id FOREIGN KEY(version_of_id) REFERENCES event (id) ON DELETE CASCADE,
    CONSTRAINT ck_event_eventstate CHECK (state IN ('draft', 'review', 'published', 'refused')),
    CONSTRAINT ck_event_audience CHECK (audience IN ('teachers', 'class_teachers', 'students', 'all')),
    CONSTRAINT ck_event_teachingaffected CHECK (teaching_affected IN ('yes', 'partial', 'no'))
);
CREATE INDEX ix_event_author_id ON event (author_id);
CREATE INDEX ix_event_current_dates ON event (ends_on) WHERE state = 'published' and version_of_id is null;
CREATE INDEX ix_event_current_instants ON event (ends_at) WHERE state = 'published' and version_of_id is null;
CREATE INDEX ix_event_version_of_id ON event (version_of_id);
CREATE TABLE lesson_teacher (
    lesson_id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    CONSTRAINT pk_lesson_teacher PRIMARY KEY (lesson_id, user_id),
    CONSTRAINT fk_lesson_teacher_lesson_id FOREIGN KEY(lesson_id) REFERENCES lesson (id) ON DELETE CASCADE,
    CONSTRAINT fk_lesson_teacher_user_id FOREIGN KEY(user_id) REFERENCES user_account (id) ON DELETE CASCADE
);
CREATE INDEX ix_lesson_teacher_user_id ON lesson_teacher (user_id);
CREATE TABLE subscription (
    user_id INTEGER NOT NULL,
    follows_me BOOLEAN DEFAULT true NOT NULL,
    CONSTRAINT pk_subscription PRIMARY KEY (user_id),
    CONSTRAINT fk_subscription_user_id FOREIGN KEY(user_id) REFERENCES user_account (id) ON DELETE CASCADE
);
CREATE TABLE event_class (
    event_id UUID NOT NULL,
    class_id INTEGER NOT NULL,
    CONSTRAINT pk_event_class PRIMARY KEY (event_id, class_id),
    CONSTRAINT fk_event_class_class_id FOREIGN KEY(class_id) REFERENCES school_class (id) ON DELETE CASCADE,
    CONSTRAINT fk_event_class_event_id FOREIGN KEY(event_id) REFERENCES event (id) ON DELETE CASCADE
);
CREATE INDEX ix_event_class_class_id ON event_class (class_id);
CREATE TABLE event_class_group (
    event_id UUID NOT NULL,
    class_group VARCHAR(3) NOT NULL,
    CONSTRAINT pk_event_class_group PRIMARY KEY (event_id, class_group),
    CONSTRAINT fk_event_class_group_event_id FOREIGN KEY(event_id) REFERENCES event (id) ON DELETE CASCADE
);
CREATE TABLE event_department (
    event_id UUID NOT NULL,
    department_id INTEGER NOT NULL,
    CONSTRAINT pk_event_department PRIMARY KEY (event_id, department_id),
    CONSTRAINT fk_event_department_department_id FOREIGN KEY(department_id) REFERENCES department (id) ON DELETE CASCADE,
    CONSTRAINT fk_event_department_event_id FOREIGN KEY(event_id) REFERENCES event (id) ON DELETE CASCADE
);
CREATE INDEX ix_event_department_department_id ON event_department (department_id);
CREATE TABLE event_revision (
    event_id UUID NOT NULL,
    sequence INTEGER NOT NULL,
    modified_at TIMESTAMP WITH TIME ZONE NOT NULL,
    source BYTEA NOT NULL,
    digest BYTEA NOT NULL,
    error TEXT,
    CONSTRAINT pk_event_revision PRIMARY KEY (event_id),
    CONSTRAINT fk_event_revision_event_id FOREIGN KEY(event_id) REFERENCES event (id) ON DELETE CASCADE
);
CREATE TABLE event_user (
    event_id UUID NOT NULL,
    user_id INTEGER NOT NULL,
    CONSTRAINT pk_event_user PRIMARY KEY (event_id, user_id),
    CONSTRAINT fk_event_user_event_id FOREIGN KEY(event_id) REFERENCES event (id) ON DELETE CASCADE,
    CONSTRAINT fk_event_user_user_id FOREIGN KEY(user_id) REFERENCES user_account (id) ON DELETE CASCADE
);
CREATE INDEX ix_event_user_user_id ON event_user (user_id);
CREATE TABLE ignored_event (
    user_id INTEGER NOT NULL,
    event_id UUID NOT NULL,
    CONSTRAINT pk_ignored_event PRIMARY KEY (user_id, event_id),
    CONSTRAINT fk_ignored_event_event_id FOREIGN KEY(event_id) REFERENCES event (id) ON DELETE CASCADE,
    CONSTRAINT fk_ignored_event_user_id FOREIGN KEY(user_id) REFERENCES subscription (user_id) ON DELETE CASCADE
);
CREATE INDEX ix_ignored_event_event_id ON ignored_event (event_id);
CREATE TABLE subscribed_class (
    user_id INTEGER NOT NULL,
    class_id INTEGER NOT NULL,
    CONSTRAINT pk_subscribed_class PRIMARY KEY (user_id, class_id),
    CONSTRAINT fk_subscribed_class_class_id FOREIGN KEY(class_id) REFERENCES school_class (id) ON DELETE CASCADE,
    CONSTRAINT fk_subscribed_class_user_id FOREIGN KEY(user_id) REFERENCES subscription (user_id) ON DELETE CASCADE
);
CREATE INDEX ix_subscribed_class_class_id ON subscribed_class (class_id);
CREATE TABLE subscribed_department (
    user_id INTEGER NOT NULL,
    department_id INTEGER NOT NULL,
    CONSTRAINT pk_subscribed_department PRIMARY KEY (user_id, department_id),
    CONSTRAINT fk_subscribed_department_department_id FOREIGN KEY(department_id) REFERENCES department (id) ON DELETE CASCADE,
    CONSTRAINT fk_subscribed_department_user_id FOREIGN KEY(user_id) REFERENCES subscription (user_id) ON DELETE CASCADE
);
CREATE INDEX ix_subscribed_department_department_id ON subscribed_department (department_id);
CREATE TABLE event_rendering (
    event_id UUID NOT NULL,
    locale VARCHAR(20) NOT NULL,
    body BYTEA NOT NULL,
    CONSTRAINT pk_event_rendering PRIMARY KEY (event_id, locale),
    CONSTRAINT fk_event_rendering_event_id FOREIGN KEY(event_id) REFERENCES event_revision (event_id) ON DELETE CASCADE,
    CONSTRAINT ck_event_rendering_locale CHECK (locale IN ('de', 'fr', 'en'))
);
-- revision 0002
CREATE TABLE change_log (
    id SERIAL NOT NULL,
    kind VARCHAR(20) NOT NULL,
    key VARCHAR(50),
    event_id UUID,
    CONSTRAINT pk_change_log PRIMARY KEY (id)
);
UPDATE event SET addressed = true WHERE NOT addressed AND (EXISTS (SELECT 1 FROM event_class WHERE event_id = event.id) OR EXISTS (SELECT 1 FROM event_class_group WHERE event_id = event.id) OR EXISTS (SELECT 1 FROM event_department WHERE event_id = event.id) OR EXISTS (SELECT 1 FROM event_user WHERE event_id = event.id));
CREATE FUNCTION note_event_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT CASE WHEN NEW.addressed THEN 'event' ELSE 'all' END, CAST(NULL AS varchar(50)), NEW.id WHERE NEW.state = 'published' AND NEW.version_of_id IS NULL; RETURN NULL; END $$;
CREATE TRIGGER note_event_insert AFTER insert ON event FOR EACH ROW EXECUTE FUNCTION note_event_insert();
CREATE FUNCTION note_event_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT CASE WHEN OLD.addressed THEN 'event' ELSE 'all' END, CAST(NULL AS varchar(50)), OLD.id WHERE OLD.state = 'published' AND OLD.version_of_id IS NULL UNION SELECT CASE WHEN NEW.addressed THEN 'event' ELSE 'all' END, CAST(NULL AS varchar(50)), NEW.id WHERE NEW.state = 'published' AND NEW.version_of_id IS NULL; RETURN NULL; END $$;
CREATE TRIGGER note_event_update AFTER update ON event FOR EACH ROW WHEN ((OLD.id, OLD.state, OLD.title, OLD.description, OLD.location, OLD.starts_at, OLD.ends_at, OLD.starts_on, OLD.ends_on, OLD.audience, OLD.teaching_affected, OLD.addressed, OLD.version_of_id, OLD.cancelled_at, OLD.deleted_at) IS DISTINCT FROM (NEW.id, NEW.state, NEW.title, NEW.description, NEW.location, NEW.starts_at, NEW.ends_at, NEW.starts_on, NEW.ends_on, NEW.audience, NEW.teaching_affected, NEW.addressed, NEW.version_of_id, NEW.cancelled_at, NEW.deleted_at)) EXECUTE FUNCTION note_event_update();
CREATE FUNCTION note_event_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT CASE WHEN OLD.addressed THEN 'event' ELSE 'all' END, CAST(NULL AS varchar(50)), OLD.id WHERE OLD.state = 'published' AND OLD.version_of_id IS NULL; RETURN NULL; END $$;
CREATE TRIGGER note_event_delete AFTER delete ON event FOR EACH ROW EXECUTE FUNCTION note_event_delete();
CREATE FUNCTION note_event_class_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'class', CAST(NEW.class_id AS varchar(50)), NEW.event_id WHERE true; UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed; RETURN NULL; END $$;
CREATE TRIGGER note_event_class_insert AFTER insert ON event_class FOR EACH ROW EXECUTE FUNCTION note_event_class_insert();
CREATE FUNCTION note_event_class_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'class', CAST(OLD.class_id AS varchar(50)), OLD.event_id WHERE true UNION SELECT 'class', CAST(NEW.class_id AS varchar(50)), NEW.event_id WHERE true; UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed; RETURN NULL; END $$;
CREATE TRIGGER note_event_class_update AFTER update ON event_class FOR EACH ROW WHEN ((OLD.event_id, OLD.class_id) IS DISTINCT FROM (NEW.event_id, NEW.class_id)) EXECUTE FUNCTION note_event_class_update();
CREATE FUNCTION note_event_class_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'class', CAST(OLD.class_id AS varchar(50)), OLD.event_id WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_event_class_delete AFTER delete ON event_class FOR EACH ROW EXECUTE FUNCTION note_event_class_delete();
CREATE FUNCTION note_event_class_group_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'group', CAST(NEW.class_group AS varchar(50)), NEW.event_id WHERE true; UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed; RETURN NULL; END $$;
CREATE TRIGGER note_event_class_group_insert AFTER insert ON event_class_group FOR EACH ROW EXECUTE FUNCTION note_event_class_group_insert();
CREATE FUNCTION note_event_class_group_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'group', CAST(OLD.class_group AS varchar(50)), OLD.event_id WHERE true UNION SELECT 'group', CAST(NEW.class_group AS varchar(50)), NEW.event_id WHERE true; UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed; RETURN NULL; END $$;
CREATE TRIGGER note_event_class_group_update AFTER update ON event_class_group FOR EACH ROW WHEN ((OLD.event_id, OLD.class_group) IS DISTINCT FROM (NEW.event_id, NEW.class_group)) EXECUTE FUNCTION note_event_class_group_update();
CREATE FUNCTION note_event_class_group_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'group', CAST(OLD.class_group AS varchar(50)), OLD.event_id WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_event_class_group_delete AFTER delete ON event_class_group FOR EACH ROW EXECUTE FUNCTION note_event_class_group_delete();
CREATE FUNCTION note_event_department_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'department', CAST(NEW.department_id AS varchar(50)), NEW.event_id WHERE true; UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed; RETURN NULL; END $$;
CREATE TRIGGER note_event_department_insert AFTER insert ON event_department FOR EACH ROW EXECUTE FUNCTION note_event_department_insert();
CREATE FUNCTION note_event_department_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'department', CAST(OLD.department_id AS varchar(50)), OLD.event_id WHERE true UNION SELECT 'department', CAST(NEW.department_id AS varchar(50)), NEW.event_id WHERE true; UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed; RETURN NULL; END $$;
CREATE TRIGGER note_event_department_update AFTER update ON event_department FOR EACH ROW WHEN ((OLD.event_id, OLD.department_id) IS DISTINCT FROM (NEW.event_id, NEW.department_id)) EXECUTE FUNCTION note_event_department_update();
CREATE FUNCTION note_event_department_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'department', CAST(OLD.department_id AS varchar(50)), OLD.event_id WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_event_department_delete AFTER delete ON event_department FOR EACH ROW EXECUTE FUNCTION note_event_department_delete();
CREATE FUNCTION note_event_user_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(NEW.user_id AS varchar(50)), NEW.event_id WHERE true; UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed; RETURN NULL; END $$;
CREATE TRIGGER note_event_user_insert AFTER insert ON event_user FOR EACH ROW EXECUTE FUNCTION note_event_user_insert();
CREATE FUNCTION note_event_user_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), OLD.event_id WHERE true UNION SELECT 'user', CAST(NEW.user_id AS varchar(50)), NEW.event_id WHERE true; UPDATE event SET addressed = true WHERE id = NEW.event_id AND NOT addressed; RETURN NULL; END $$;
CREATE TRIGGER note_event_user_update AFTER update ON event_user FOR EACH ROW WHEN ((OLD.event_id, OLD.user_id) IS DISTINCT FROM (NEW.event_id, NEW.user_id)) EXECUTE FUNCTION note_event_user_update();
CREATE FUNCTION note_event_user_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), OLD.event_id WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_event_user_delete AFTER delete ON event_user FOR EACH ROW EXECUTE FUNCTION note_event_user_delete();
CREATE FUNCTION note_school_class_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'class', CAST(NEW.id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'department_feed', CAST(NEW.department_id AS varchar(50)), CAST(NULL AS uuid) WHERE NEW.department_id IS NOT NULL; RETURN NULL; END $$;
CREATE TRIGGER note_school_class_insert AFTER insert ON school_class FOR EACH ROW EXECUTE FUNCTION note_school_class_insert();
CREATE FUNCTION note_school_class_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'class', CAST(OLD.id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'department_feed', CAST(OLD.department_id AS varchar(50)), CAST(NULL AS uuid) WHERE OLD.department_id IS NOT NULL UNION SELECT 'class', CAST(NEW.id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'department_feed', CAST(NEW.department_id AS varchar(50)), CAST(NULL AS uuid) WHERE NEW.department_id IS NOT NULL; RETURN NULL; END $$;
CREATE TRIGGER note_school_class_update AFTER update ON school_class FOR EACH ROW WHEN ((OLD.id, OLD.name, OLD.display_name, OLD.department_id) IS DISTINCT FROM (NEW.id, NEW.name, NEW.display_name, NEW.department_id)) EXECUTE FUNCTION note_school_class_update();
CREATE FUNCTION note_school_class_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'class', CAST(OLD.id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'department_feed', CAST(OLD.department_id AS varchar(50)), CAST(NULL AS uuid) WHERE OLD.department_id IS NOT NULL; RETURN NULL; END $$;
CREATE TRIGGER note_school_class_delete AFTER delete ON school_class FOR EACH ROW EXECUTE FUNCTION note_school_class_delete();
CREATE FUNCTION note_department_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'department', CAST(NEW.id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_department_insert AFTER insert ON department FOR EACH ROW EXECUTE FUNCTION note_department_insert();
CREATE FUNCTION note_department_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'department', CAST(OLD.id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'department', CAST(NEW.id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_department_update AFTER update ON department FOR EACH ROW WHEN ((OLD.id, OLD.name, OLD.locale) IS DISTINCT FROM (NEW.id, NEW.name, NEW.locale)) EXECUTE FUNCTION note_department_update();
CREATE FUNCTION note_department_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'department', CAST(OLD.id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_department_delete AFTER delete ON department FOR EACH ROW EXECUTE FUNCTION note_department_delete();
CREATE FUNCTION note_user_account_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(NEW.id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_user_account_insert AFTER insert ON user_account FOR EACH ROW EXECUTE FUNCTION note_user_account_insert();
CREATE FUNCTION note_user_account_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'user', CAST(NEW.id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_user_account_update AFTER update ON user_account FOR EACH ROW WHEN ((OLD.id, OLD.first_name, OLD.last_name, OLD.locale, OLD.role, OLD.class_id, OLD.untis_id) IS DISTINCT FROM (NEW.id, NEW.first_name, NEW.last_name, NEW.locale, NEW.role, NEW.class_id, NEW.untis_id)) EXECUTE FUNCTION note_user_account_update();
CREATE FUNCTION note_user_account_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_user_account_delete AFTER delete ON user_account FOR EACH ROW EXECUTE FUNCTION note_user_account_delete();
CREATE FUNCTION note_semester_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'all', CAST(NULL AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_semester_insert AFTER insert ON semester FOR EACH ROW EXECUTE FUNCTION note_semester_insert();
CREATE FUNCTION note_semester_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'all', CAST(NULL AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'all', CAST(NULL AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_semester_update AFTER update ON semester FOR EACH ROW WHEN ((OLD.id, OLD.starts_on, OLD.ends_on) IS DISTINCT FROM (NEW.id, NEW.starts_on, NEW.ends_on)) EXECUTE FUNCTION note_semester_update();
CREATE FUNCTION note_semester_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'all', CAST(NULL AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_semester_delete AFTER delete ON semester FOR EACH ROW EXECUTE FUNCTION note_semester_delete();
CREATE FUNCTION note_lesson_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'lesson', CAST(OLD.id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'lesson', CAST(NEW.id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_lesson_update AFTER update ON lesson FOR EACH ROW WHEN ((OLD.id, OLD.semester_id, OLD.weekday, OLD.starts, OLD.ends, OLD.is_class_teachers) IS DISTINCT FROM (NEW.id, NEW.semester_id, NEW.weekday, NEW.starts, NEW.ends, NEW.is_class_teachers)) EXECUTE FUNCTION note_lesson_update();
CREATE FUNCTION note_lesson_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'lesson', CAST(OLD.id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_lesson_delete AFTER delete ON lesson FOR EACH ROW EXECUTE FUNCTION note_lesson_delete();
CREATE FUNCTION note_lesson_class_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'lesson', CAST(NEW.lesson_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_lesson_class_insert AFTER insert ON lesson_class FOR EACH ROW EXECUTE FUNCTION note_lesson_class_insert();
CREATE FUNCTION note_lesson_class_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'lesson', CAST(OLD.lesson_id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'lesson', CAST(NEW.lesson_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_lesson_class_update AFTER update ON lesson_class FOR EACH ROW WHEN ((OLD.lesson_id, OLD.class_id) IS DISTINCT FROM (NEW.lesson_id, NEW.class_id)) EXECUTE FUNCTION note_lesson_class_update();
CREATE FUNCTION note_lesson_class_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'lesson', CAST(OLD.lesson_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_lesson_class_delete AFTER delete ON lesson_class FOR EACH ROW EXECUTE FUNCTION note_lesson_class_delete();
CREATE FUNCTION note_lesson_teacher_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_lesson_teacher_insert AFTER insert ON lesson_teacher FOR EACH ROW EXECUTE FUNCTION note_lesson_teacher_insert();
CREATE FUNCTION note_lesson_teacher_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_lesson_teacher_update AFTER update ON lesson_teacher FOR EACH ROW WHEN ((OLD.lesson_id, OLD.user_id) IS DISTINCT FROM (NEW.lesson_id, NEW.user_id)) EXECUTE FUNCTION note_lesson_teacher_update();
CREATE FUNCTION note_lesson_teacher_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_lesson_teacher_delete AFTER delete ON lesson_teacher FOR EACH ROW EXECUTE FUNCTION note_lesson_teacher_delete();
CREATE FUNCTION note_subscription_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscription_insert AFTER insert ON subscription FOR EACH ROW EXECUTE FUNCTION note_subscription_insert();
CREATE FUNCTION note_subscription_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscription_update AFTER update ON subscription FOR EACH ROW WHEN ((OLD.user_id, OLD.follows_me) IS DISTINCT FROM (NEW.user_id, NEW.follows_me)) EXECUTE FUNCTION note_subscription_update();
CREATE FUNCTION note_subscription_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscription_delete AFTER delete ON subscription FOR EACH ROW EXECUTE FUNCTION note_subscription_delete();
CREATE FUNCTION note_subscribed_department_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscribed_department_insert AFTER insert ON subscribed_department FOR EACH ROW EXECUTE FUNCTION note_subscribed_department_insert();
CREATE FUNCTION note_subscribed_department_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscribed_department_update AFTER update ON subscribed_department FOR EACH ROW WHEN ((OLD.user_id, OLD.department_id) IS DISTINCT FROM (NEW.user_id, NEW.department_id)) EXECUTE FUNCTION note_subscribed_department_update();
CREATE FUNCTION note_subscribed_department_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscribed_department_delete AFTER delete ON subscribed_department FOR EACH ROW EXECUTE FUNCTION note_subscribed_department_delete();
CREATE FUNCTION note_subscribed_class_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscribed_class_insert AFTER insert ON subscribed_class FOR EACH ROW EXECUTE FUNCTION note_subscribed_class_insert();
CREATE FUNCTION note_subscribed_class_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscribed_class_update AFTER update ON subscribed_class FOR EACH ROW WHEN ((OLD.user_id, OLD.class_id) IS DISTINCT FROM (NEW.user_id, NEW.class_id)) EXECUTE FUNCTION note_subscribed_class_update();
CREATE FUNCTION note_subscribed_class_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_subscribed_class_delete AFTER delete ON subscribed_class FOR EACH ROW EXECUTE FUNCTION note_subscribed_class_delete();
CREATE FUNCTION note_ignored_event_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_ignored_event_insert AFTER insert ON ignored_event FOR EACH ROW EXECUTE FUNCTION note_ignored_event_insert();
CREATE FUNCTION note_ignored_event_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true UNION SELECT 'user', CAST(NEW.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_ignored_event_update AFTER update ON ignored_event FOR EACH ROW WHEN ((OLD.user_id, OLD.event_id) IS DISTINCT FROM (NEW.user_id, NEW.event_id)) EXECUTE FUNCTION note_ignored_event_update();
CREATE FUNCTION note_ignored_event_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'user', CAST(OLD.user_id AS varchar(50)), CAST(NULL AS uuid) WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_ignored_event_delete AFTER delete ON ignored_event FOR EACH ROW EXECUTE FUNCTION note_ignored_event_delete();
CREATE FUNCTION note_event_revision_delete() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind, key, event_id) SELECT 'revision', CAST(NULL AS varchar(50)), OLD.event_id WHERE true; RETURN NULL; END $$;
CREATE TRIGGER note_event_revision_delete AFTER delete ON event_revision FOR EACH ROW EXECUTE FUNCTION note_event_revision_delete();
CREATE FUNCTION note_truncate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = "public", pg_temp AS $$ BEGIN INSERT INTO change_log (kind) VALUES ('all'); RETURN NULL; END $$;
CREATE TRIGGER note_truncate AFTER TRUNCATE ON event EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON event_class EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON event_class_group EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON event_department EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON event_user EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON school_class EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON department EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON user_account EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON semester EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON lesson EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON lesson_class EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON lesson_teacher EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON subscription EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON subscribed_department EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON subscribed_class EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON ignored_event EXECUTE FUNCTION note_truncate();
CREATE TRIGGER note_truncate AFTER TRUNCATE ON event_revision EXECUTE FUNCTION note_truncate();
-- revision 0003
ALTER TABLE feed ADD COLUMN modified_at TIMESTAMP WITH TIME ZONE;
ALTER TABLE feed ADD COLUMN revoked_at TIMESTAMP WITH TIME ZONE;
UPDATE feed SET modified_at = built_at;
CREATE FUNCTION readdress_user_account() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$ BEGIN UPDATE feed SET token = replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '') WHERE kind = 'user' AND owner_id = OLD.id; RETURN NULL; END $$;
CREATE TRIGGER readdress_user_account AFTER DELETE ON user_account FOR EACH ROW EXECUTE FUNCTION readdress_user_account();
CREATE FUNCTION readdress_school_class() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$ BEGIN UPDATE feed SET token = replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '') WHERE kind = 'class' AND owner_id = OLD.id; RETURN NULL; END $$;
CREATE TRIGGER readdress_school_class AFTER DELETE ON school_class FOR EACH ROW EXECUTE FUNCTION readdress_school_class();
CREATE FUNCTION readdress_department() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$ BEGIN UPDATE feed SET token = replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '') WHERE kind = 'department' AND owner_id = OLD.id; RETURN NULL; END $$;
CREATE TRIGGER readdress_department AFTER DELETE ON department FOR EACH ROW EXECUTE FUNCTION readdress_department();
-- revision 0004
CREATE TABLE mail (
    id SERIAL NOT NULL,
    kind VARCHAR(50) NOT NULL,
    dedupe_key VARCHAR(200) NOT NULL,
    message_id VARCHAR(300) NOT NULL,
    recipient VARCHAR(320) NOT NULL,
    subject TEXT NOT NULL,
    body BYTEA,
    sensitive BOOLEAN DEFAULT false NOT NULL,
    resend BOOLEAN DEFAULT true NOT NULL,
    state VARCHAR(20) NOT NULL,
    priority INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    repeats INTEGER NOT NULL,
    claim_id UUID,
    reply TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    claimed_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_mail PRIMARY KEY (id),
    CONSTRAINT uq_mail_dedupe_key UNIQUE (dedupe_key),
    CONSTRAINT ck_mail_mailstate CHECK (state IN ('queued', 'held', 'sending', 'sent', 'failed', 'unknown', 'suppressed', 'cancelled'))
);
CREATE INDEX ix_mail_deadline ON mail (expires_at) WHERE ended_at is null;
CREATE INDEX ix_mail_ended ON mail (ended_at) WHERE ended_at is not null;
CREATE INDEX ix_mail_queued ON mail (priority, due_at) WHERE state = 'queued';
CREATE INDEX ix_mail_sending ON mail (claim_id) WHERE state = 'sending';
CREATE TABLE mail_server (
    name VARCHAR(300) NOT NULL,
    failures INTEGER NOT NULL,
    failing_since TIMESTAMP WITH TIME ZONE,
    paused_until TIMESTAMP WITH TIME ZONE,
    error TEXT,
    rate_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_mail_server PRIMARY KEY (name)
);
CREATE TABLE mail_suppression (
    address VARCHAR(320) NOT NULL,
    refusals INTEGER NOT NULL,
    refused_at TIMESTAMP WITH TIME ZONE,
    suppressed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_mail_suppression PRIMARY KEY (address)
);
-- revision 0005
CREATE TABLE user_key (
    user_id INTEGER NOT NULL,
    purpose VARCHAR(20) NOT NULL,
    hash BYTEA NOT NULL,
    address VARCHAR(320) NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    redeemed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_user_key PRIMARY KEY (user_id, purpose),
    CONSTRAINT fk_user_key_user_id FOREIGN KEY(user_id) REFERENCES user_account (id) ON DELETE CASCADE,
    CONSTRAINT uq_user_key_hash UNIQUE (hash),
    CONSTRAINT ck_user_key_keypurpose CHECK (purpose IN ('verify_address', 'reset_password'))
);
ALTER TABLE user_account ADD COLUMN email_verified_at TIMESTAMP WITH TIME ZONE;
-- revision 0006
CREATE TABLE event_notice (
    event_id UUID NOT NULL,
    version INTEGER NOT NULL,
    content JSON,
    readers JSON NOT NULL,
    invited JSON NOT NULL,
    vevents JSON NOT NULL,
    told_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_event_notice PRIMARY KEY (event_id, version),
    CONSTRAINT fk_event_notice_event_id FOREIGN KEY(event_id) REFERENCES event (id) ON DELETE CASCADE
);
-- revision 0007
ALTER TABLE event ADD CONSTRAINT ck_event_readable_times CHECK (starts_at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00' AND ends_at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00' AND cancelled_at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00' AND deleted_at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00' AND created_at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00' AND starts_on BETWEEN '0001-01-01' AND '9999-12-31' AND ends_on BETWEEN '0001-01-01' AND '9999-12-31') NOT VALID;
ALTER TABLE semester ADD CONSTRAINT ck_semester_readable_times CHECK (starts_on BETWEEN '0001-01-01' AND '9999-12-31' AND ends_on BETWEEN '0001-01-01' AND '9999-12-31') NOT VALID;
ALTER TABLE lesson ADD CONSTRAINT ck_lesson_readable_times CHECK (starts < '24:00' AND ends < '24:00') NOT VALID;
