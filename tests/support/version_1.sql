-- A file of the first version, as its `datasette pubsub install` and `broadcast` made it.
BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'datasette-pubsub','m001_log','2026-11-29 12:17:12.265423+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'datasette-pubsub','m002_subscriptions','2026-11-29 12:17:12.265887+00:00');
CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL);
CREATE TABLE notes (text, made TEXT DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE people (id INTEGER PRIMARY KEY, email TEXT UNIQUE, status TEXT);
CREATE TABLE pubsub_messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
            channel TEXT NOT NULL,
            payload NOT NULL,
            created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
            key TEXT
        );
CREATE TABLE pubsub_released (channel TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE pubsub_subscriptions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            owner TEXT NOT NULL DEFAULT '',
            name TEXT NOT NULL CHECK (name <> ''),
            reads TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(reads)),
            cursor INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
            last_seen_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
            UNIQUE (owner, name)
        );
CREATE TABLE pubsub_trims (
            channel TEXT NOT NULL,
            last_id INTEGER NOT NULL,
            first_id INTEGER NOT NULL,
            messages INTEGER NOT NULL,
            runs BLOB NOT NULL,
            PRIMARY KEY (channel, last_id)
        ) WITHOUT ROWID;
CREATE TABLE stock (item INTEGER, place TEXT, amount INTEGER, PRIMARY KEY (item, place)) WITHOUT ROWID;
CREATE TABLE tags (name TEXT COLLATE NOCASE PRIMARY KEY, colour TEXT);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX pubsub_messages_channel ON pubsub_messages (channel, id);
CREATE UNIQUE INDEX pubsub_messages_key ON pubsub_messages (channel, key) WHERE key IS NOT NULL;
CREATE TRIGGER pubsub_messages_update BEFORE UPDATE ON pubsub_messages
        BEGIN SELECT RAISE(ABORT, 'pubsub_messages is append-only: messages cannot be changed'); END;
CREATE TRIGGER pubsub_messages_delete BEFORE DELETE ON pubsub_messages
        WHEN NOT EXISTS (SELECT 1 FROM pubsub_released WHERE channel = OLD.channel AND id >= OLD.id)
        BEGIN SELECT RAISE(ABORT, 'pubsub_messages is append-only: only retention removes messages'); END;
CREATE VIEW vpubsub AS SELECT channel, payload, key, id, created_at FROM pubsub_messages;
CREATE TRIGGER vpubsub_insert INSTEAD OF INSERT ON vpubsub
        BEGIN INSERT INTO pubsub_messages (channel, payload, key) VALUES (NEW.channel, NEW.payload, NEW.key); END;
CREATE TRIGGER pubsub_subscriptions_forward BEFORE UPDATE OF cursor ON pubsub_subscriptions
        WHEN NEW.cursor IS NOT OLD.cursor
        BEGIN
            SELECT RAISE(ABORT, 'a cursor only moves forward') WHERE NEW.cursor < OLD.cursor;
            SELECT RAISE(ABORT, 'a cursor is a message id of the log, and this one is ahead of its head')
            WHERE typeof(NEW.cursor) <> 'integer'
               OR NEW.cursor > coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'pubsub_messages'), 0);
        END;
CREATE TRIGGER pubsub_messages_guard BEFORE INSERT ON pubsub_messages
        WHEN NEW.key IS NOT NULL OR NEW.id <> -1 OR NEW.payload IS NULL OR length(CAST(NEW.payload AS BLOB)) > 1048576
          OR typeof(NEW.channel) <> 'text' OR length(CAST(NEW.channel AS BLOB)) NOT BETWEEN 1 AND 255
          OR instr(CAST(NEW.channel AS BLOB), x'00')
          OR NEW.created_at NOT GLOB
             '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9].[0-9][0-9][0-9]Z'
        BEGIN
            SELECT RAISE(ABORT, 'message ids are given by the log, not by the publisher') WHERE NEW.id <> -1;
            SELECT RAISE(ABORT, 'channel is NULL') WHERE NEW.channel IS NULL;
            SELECT RAISE(ABORT, 'channel must be text') WHERE typeof(NEW.channel) <> 'text';
            SELECT RAISE(ABORT, 'channel is empty') WHERE length(CAST(NEW.channel AS BLOB)) = 0;
            SELECT RAISE(ABORT, 'channel is over the limit of 255 bytes')
            WHERE length(CAST(NEW.channel AS BLOB)) > 255;
            SELECT RAISE(ABORT, 'channel must not contain NUL') WHERE instr(NEW.channel, char(0));
            SELECT RAISE(ABORT, 'payload is NULL') WHERE NEW.payload IS NULL;
            SELECT RAISE(ABORT, 'payload is over the limit of 1048576 bytes (max_payload_bytes)')
            WHERE length(CAST(NEW.payload AS BLOB)) > 1048576;
            SELECT RAISE(ABORT, 'key must be text of 1 to 255 bytes')
            WHERE NEW.key IS NOT NULL
              AND (typeof(NEW.key) <> 'text' OR length(CAST(NEW.key AS BLOB)) NOT BETWEEN 1 AND 255);
            SELECT RAISE(ABORT, 'created_at must be UTC like 2026-01-31T12:00:00.000Z')
            WHERE NEW.created_at NOT GLOB
             '[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9].[0-9][0-9][0-9]Z';
            SELECT RAISE(IGNORE)
            WHERE EXISTS (SELECT 1 FROM pubsub_messages WHERE channel = NEW.channel AND key = NEW.key);
        END;
CREATE TRIGGER "pubsub_broadcast_insert_items" AFTER INSERT ON "items"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "items", "channel": "changes\/items", "per_row": "", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'insert', 'table', 'items', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'items', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'items', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT 'changes/items' AS channel,
      json_object('id', pubsub_now."id") AS row_key,
      json_object('id', pubsub_now."id",
          'name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'price', CASE typeof(pubsub_now."price") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."price") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."price") AS REAL) = pubsub_now."price" THEN printf('%!.15g', pubsub_now."price") ELSE replace(printf('%!.17g', pubsub_now."price"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."price")) ELSE pubsub_now."price" END) AS new_row
      FROM "items" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
  );
END;
CREATE TRIGGER "pubsub_broadcast_update_items" AFTER UPDATE ON "items"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "items", "channel": "changes\/items", "per_row": "", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'delete', 'table', 'items', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'items', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'items', 'key', json(row_key), 'old', json(old_row)) AS payload
    FROM (
      SELECT 'changes/items' AS channel,
      json_object('id', pubsub_now."id") AS row_key,
      json_object('id', pubsub_now."id",
          'name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'price', CASE typeof(pubsub_now."price") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."price") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."price") AS REAL) = pubsub_now."price" THEN printf('%!.15g', pubsub_now."price") ELSE replace(printf('%!.17g', pubsub_now."price"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."price")) ELSE pubsub_now."price" END) AS old_row
      FROM (SELECT OLD."id" AS "id", OLD."name" AS "name", OLD."price" AS "price") AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "items" AS pubsub_now WHERE pubsub_now."id" IS OLD."id" AND json_object('id', pubsub_now."id") IS pubsub_row.row_key)
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'insert', 'table', 'items', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'items', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'items', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT 'changes/items' AS channel,
      json_object('id', pubsub_now."id") AS row_key,
      json_object('id', pubsub_now."id",
          'name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'price', CASE typeof(pubsub_now."price") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."price") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."price") AS REAL) = pubsub_now."price" THEN printf('%!.15g', pubsub_now."price") ELSE replace(printf('%!.17g', pubsub_now."price"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."price")) ELSE pubsub_now."price" END) AS new_row
      FROM "items" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
    WHERE row_key IS NOT json_object('id', OLD."id")
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'update', 'table', 'items', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'update', 'table', 'items', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'update', 'table', 'items', 'key', json(row_key), 'new', json(new_row), 'old', json(old_row)) AS payload
    FROM (
      SELECT 'changes/items' AS channel,
      json_object('id', pubsub_now."id") AS row_key,
      json_object('id', pubsub_now."id",
          'name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'price', CASE typeof(pubsub_now."price") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."price") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."price") AS REAL) = pubsub_now."price" THEN printf('%!.15g', pubsub_now."price") ELSE replace(printf('%!.17g', pubsub_now."price"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."price")) ELSE pubsub_now."price" END) AS new_row,
      json_object('id', OLD."id",
          'name', CASE typeof(OLD."name") WHEN 'blob' THEN json_object('hex', hex(OLD."name")) ELSE OLD."name" END,
          'price', CASE typeof(OLD."price") WHEN 'real' THEN json(CASE WHEN abs(OLD."price") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', OLD."price") AS REAL) = OLD."price" THEN printf('%!.15g', OLD."price") ELSE replace(printf('%!.17g', OLD."price"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(OLD."price")) ELSE OLD."price" END) AS old_row
      FROM "items" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
    WHERE new_row IS NOT old_row AND row_key IS json_object('id', OLD."id")
  );
END;
CREATE TRIGGER "pubsub_broadcast_delete_items" AFTER DELETE ON "items"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "items", "channel": "changes\/items", "per_row": "", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'delete', 'table', 'items', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'items', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'items', 'key', json(row_key), 'old', json(old_row)) AS payload
    FROM (
      SELECT 'changes/items' AS channel,
      json_object('id', pubsub_now."id") AS row_key,
      json_object('id', pubsub_now."id",
          'name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'price', CASE typeof(pubsub_now."price") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."price") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."price") AS REAL) = pubsub_now."price" THEN printf('%!.15g', pubsub_now."price") ELSE replace(printf('%!.17g', pubsub_now."price"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."price")) ELSE pubsub_now."price" END) AS old_row
      FROM (SELECT OLD."id" AS "id", OLD."name" AS "name", OLD."price" AS "price") AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "items" AS pubsub_now WHERE pubsub_now."id" IS OLD."id" AND json_object('id', pubsub_now."id") IS pubsub_row.row_key)
  );
END;
CREATE TRIGGER "pubsub_broadcast_update_people" AFTER UPDATE ON "people"
WHEN (NEW.status = 'banned')
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "people", "channel": "people\/", "per_row": "status", "columns": null, "new": true, "old": true, "conditions": {"update": "NEW.status = 'banned'"}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048468
      THEN json_object('op', 'delete', 'table', 'people', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'people', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'people', 'key', json(row_key), 'old', json(old_row)) AS payload
    FROM (
      SELECT coalesce((SELECT 'people/' || value FROM (SELECT (status) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('people/' || value AS BLOB)) <= 255), 'people/') AS channel,
      json_object('id', pubsub_now."id") AS row_key,
      json_object('id', pubsub_now."id",
          'email', CASE typeof(pubsub_now."email") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."email")) ELSE pubsub_now."email" END,
          'status', CASE typeof(pubsub_now."status") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."status")) ELSE pubsub_now."status" END) AS old_row
      FROM (SELECT OLD."id" AS "id", OLD."email" AS "email", OLD."status" AS "status") AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "people" AS pubsub_now WHERE pubsub_now."id" IS OLD."id" AND json_object('id', pubsub_now."id") IS pubsub_row.row_key AND coalesce((SELECT 'people/' || value FROM (SELECT (status) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('people/' || value AS BLOB)) <= 255), 'people/') IS pubsub_row.channel)
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048468
      THEN json_object('op', 'insert', 'table', 'people', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'people', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'people', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT coalesce((SELECT 'people/' || value FROM (SELECT (status) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('people/' || value AS BLOB)) <= 255), 'people/') AS channel,
      json_object('id', pubsub_now."id") AS row_key,
      json_object('id', pubsub_now."id",
          'email', CASE typeof(pubsub_now."email") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."email")) ELSE pubsub_now."email" END,
          'status', CASE typeof(pubsub_now."status") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."status")) ELSE pubsub_now."status" END) AS new_row
      FROM "people" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
    WHERE (row_key IS NOT json_object('id', OLD."id") OR channel IS NOT (SELECT coalesce((SELECT 'people/' || value FROM (SELECT (status) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('people/' || value AS BLOB)) <= 255), 'people/') FROM (SELECT OLD."id" AS "id", OLD."email" AS "email", OLD."status" AS "status") AS pubsub_now))
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048468
      THEN json_object('op', 'update', 'table', 'people', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'update', 'table', 'people', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'update', 'table', 'people', 'key', json(row_key), 'new', json(new_row), 'old', json(old_row)) AS payload
    FROM (
      SELECT coalesce((SELECT 'people/' || value FROM (SELECT (status) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('people/' || value AS BLOB)) <= 255), 'people/') AS channel,
      json_object('id', pubsub_now."id") AS row_key,
      json_object('id', pubsub_now."id",
          'email', CASE typeof(pubsub_now."email") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."email")) ELSE pubsub_now."email" END,
          'status', CASE typeof(pubsub_now."status") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."status")) ELSE pubsub_now."status" END) AS new_row,
      json_object('id', OLD."id",
          'email', CASE typeof(OLD."email") WHEN 'blob' THEN json_object('hex', hex(OLD."email")) ELSE OLD."email" END,
          'status', CASE typeof(OLD."status") WHEN 'blob' THEN json_object('hex', hex(OLD."status")) ELSE OLD."status" END) AS old_row
      FROM "people" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
    WHERE new_row IS NOT old_row AND row_key IS json_object('id', OLD."id") AND channel IS (SELECT coalesce((SELECT 'people/' || value FROM (SELECT (status) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('people/' || value AS BLOB)) <= 255), 'people/') FROM (SELECT OLD."id" AS "id", OLD."email" AS "email", OLD."status" AS "status") AS pubsub_now)
  );
END;
CREATE TRIGGER "pubsub_broadcast_insert_stock" AFTER INSERT ON "stock"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "stock", "channel": "stock", "per_row": "", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'insert', 'table', 'stock', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'stock', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'stock', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT 'stock' AS channel,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END) AS row_key,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END,
          'amount', CASE typeof(pubsub_now."amount") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."amount") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."amount") AS REAL) = pubsub_now."amount" THEN printf('%!.15g', pubsub_now."amount") ELSE replace(printf('%!.17g', pubsub_now."amount"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."amount")) ELSE pubsub_now."amount" END) AS new_row
      FROM "stock" AS pubsub_now WHERE pubsub_now."item" = NEW."item" AND pubsub_now."place" = NEW."place"
    ) AS pubsub_row
  );
END;
CREATE TRIGGER "pubsub_broadcast_update_stock" AFTER UPDATE ON "stock"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "stock", "channel": "stock", "per_row": "", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'delete', 'table', 'stock', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'stock', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'stock', 'key', json(row_key), 'old', json(old_row)) AS payload
    FROM (
      SELECT 'stock' AS channel,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END) AS row_key,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END,
          'amount', CASE typeof(pubsub_now."amount") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."amount") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."amount") AS REAL) = pubsub_now."amount" THEN printf('%!.15g', pubsub_now."amount") ELSE replace(printf('%!.17g', pubsub_now."amount"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."amount")) ELSE pubsub_now."amount" END) AS old_row
      FROM (SELECT OLD."item" AS "item", OLD."place" AS "place", OLD."amount" AS "amount") AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "stock" AS pubsub_now WHERE pubsub_now."item" IS OLD."item" AND pubsub_now."place" IS OLD."place" AND json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END) IS pubsub_row.row_key)
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'insert', 'table', 'stock', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'stock', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'stock', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT 'stock' AS channel,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END) AS row_key,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END,
          'amount', CASE typeof(pubsub_now."amount") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."amount") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."amount") AS REAL) = pubsub_now."amount" THEN printf('%!.15g', pubsub_now."amount") ELSE replace(printf('%!.17g', pubsub_now."amount"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."amount")) ELSE pubsub_now."amount" END) AS new_row
      FROM "stock" AS pubsub_now WHERE pubsub_now."item" = NEW."item" AND pubsub_now."place" = NEW."place"
    ) AS pubsub_row
    WHERE row_key IS NOT json_object('item', CASE typeof(OLD."item") WHEN 'real' THEN json(CASE WHEN abs(OLD."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', OLD."item") AS REAL) = OLD."item" THEN printf('%!.15g', OLD."item") ELSE replace(printf('%!.17g', OLD."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(OLD."item")) ELSE OLD."item" END,
          'place', CASE typeof(OLD."place") WHEN 'blob' THEN json_object('hex', hex(OLD."place")) ELSE OLD."place" END)
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'update', 'table', 'stock', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'update', 'table', 'stock', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'update', 'table', 'stock', 'key', json(row_key), 'new', json(new_row), 'old', json(old_row)) AS payload
    FROM (
      SELECT 'stock' AS channel,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END) AS row_key,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END,
          'amount', CASE typeof(pubsub_now."amount") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."amount") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."amount") AS REAL) = pubsub_now."amount" THEN printf('%!.15g', pubsub_now."amount") ELSE replace(printf('%!.17g', pubsub_now."amount"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."amount")) ELSE pubsub_now."amount" END) AS new_row,
      json_object('item', CASE typeof(OLD."item") WHEN 'real' THEN json(CASE WHEN abs(OLD."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', OLD."item") AS REAL) = OLD."item" THEN printf('%!.15g', OLD."item") ELSE replace(printf('%!.17g', OLD."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(OLD."item")) ELSE OLD."item" END,
          'place', CASE typeof(OLD."place") WHEN 'blob' THEN json_object('hex', hex(OLD."place")) ELSE OLD."place" END,
          'amount', CASE typeof(OLD."amount") WHEN 'real' THEN json(CASE WHEN abs(OLD."amount") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', OLD."amount") AS REAL) = OLD."amount" THEN printf('%!.15g', OLD."amount") ELSE replace(printf('%!.17g', OLD."amount"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(OLD."amount")) ELSE OLD."amount" END) AS old_row
      FROM "stock" AS pubsub_now WHERE pubsub_now."item" = NEW."item" AND pubsub_now."place" = NEW."place"
    ) AS pubsub_row
    WHERE new_row IS NOT old_row AND row_key IS json_object('item', CASE typeof(OLD."item") WHEN 'real' THEN json(CASE WHEN abs(OLD."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', OLD."item") AS REAL) = OLD."item" THEN printf('%!.15g', OLD."item") ELSE replace(printf('%!.17g', OLD."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(OLD."item")) ELSE OLD."item" END,
          'place', CASE typeof(OLD."place") WHEN 'blob' THEN json_object('hex', hex(OLD."place")) ELSE OLD."place" END)
  );
END;
CREATE TRIGGER "pubsub_broadcast_delete_stock" AFTER DELETE ON "stock"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "stock", "channel": "stock", "per_row": "", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'delete', 'table', 'stock', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'stock', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'stock', 'key', json(row_key), 'old', json(old_row)) AS payload
    FROM (
      SELECT 'stock' AS channel,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END) AS row_key,
      json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END,
          'amount', CASE typeof(pubsub_now."amount") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."amount") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."amount") AS REAL) = pubsub_now."amount" THEN printf('%!.15g', pubsub_now."amount") ELSE replace(printf('%!.17g', pubsub_now."amount"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."amount")) ELSE pubsub_now."amount" END) AS old_row
      FROM (SELECT OLD."item" AS "item", OLD."place" AS "place", OLD."amount" AS "amount") AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "stock" AS pubsub_now WHERE pubsub_now."item" IS OLD."item" AND pubsub_now."place" IS OLD."place" AND json_object('item', CASE typeof(pubsub_now."item") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."item") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."item") AS REAL) = pubsub_now."item" THEN printf('%!.15g', pubsub_now."item") ELSE replace(printf('%!.17g', pubsub_now."item"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."item")) ELSE pubsub_now."item" END,
          'place', CASE typeof(pubsub_now."place") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."place")) ELSE pubsub_now."place" END) IS pubsub_row.row_key)
  );
END;
CREATE TRIGGER "pubsub_broadcast_insert_notes" AFTER INSERT ON "notes"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "notes", "channel": "changes\/notes", "per_row": "", "columns": ["text"], "new": true, "old": false, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'insert', 'table', 'notes', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'notes', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'notes', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT 'changes/notes' AS channel,
      json_object('rowid', pubsub_now.rowid) AS row_key,
      json_object('text', CASE typeof(pubsub_now."text") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."text") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."text") AS REAL) = pubsub_now."text" THEN printf('%!.15g', pubsub_now."text") ELSE replace(printf('%!.17g', pubsub_now."text"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."text")) ELSE pubsub_now."text" END) AS new_row
      FROM "notes" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
  );
END;
CREATE TRIGGER "pubsub_broadcast_update_notes" AFTER UPDATE ON "notes"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "notes", "channel": "changes\/notes", "per_row": "", "columns": ["text"], "new": true, "old": false, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'delete', 'table', 'notes', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'notes', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'notes', 'key', json(row_key)) AS payload
    FROM (
      SELECT 'changes/notes' AS channel,
      json_object('rowid', pubsub_now.rowid) AS row_key,
      json_object('text', CASE typeof(pubsub_now."text") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."text") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."text") AS REAL) = pubsub_now."text" THEN printf('%!.15g', pubsub_now."text") ELSE replace(printf('%!.17g', pubsub_now."text"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."text")) ELSE pubsub_now."text" END) AS old_row
      FROM (SELECT OLD."text" AS "text", OLD.rowid AS rowid) AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "notes" AS pubsub_now WHERE pubsub_now.rowid = OLD.rowid)
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'insert', 'table', 'notes', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'notes', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'notes', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT 'changes/notes' AS channel,
      json_object('rowid', pubsub_now.rowid) AS row_key,
      json_object('text', CASE typeof(pubsub_now."text") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."text") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."text") AS REAL) = pubsub_now."text" THEN printf('%!.15g', pubsub_now."text") ELSE replace(printf('%!.17g', pubsub_now."text"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."text")) ELSE pubsub_now."text" END) AS new_row
      FROM "notes" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
    WHERE row_key IS NOT json_object('rowid', OLD.rowid)
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'update', 'table', 'notes', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'update', 'table', 'notes', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'update', 'table', 'notes', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT 'changes/notes' AS channel,
      json_object('rowid', pubsub_now.rowid) AS row_key,
      json_object('text', CASE typeof(pubsub_now."text") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."text") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."text") AS REAL) = pubsub_now."text" THEN printf('%!.15g', pubsub_now."text") ELSE replace(printf('%!.17g', pubsub_now."text"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."text")) ELSE pubsub_now."text" END) AS new_row,
      json_object('text', CASE typeof(OLD."text") WHEN 'real' THEN json(CASE WHEN abs(OLD."text") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', OLD."text") AS REAL) = OLD."text" THEN printf('%!.15g', OLD."text") ELSE replace(printf('%!.17g', OLD."text"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(OLD."text")) ELSE OLD."text" END) AS old_row
      FROM "notes" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
    WHERE new_row IS NOT old_row AND row_key IS json_object('rowid', OLD.rowid)
  );
END;
CREATE TRIGGER "pubsub_broadcast_delete_notes" AFTER DELETE ON "notes"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "notes", "channel": "changes\/notes", "per_row": "", "columns": ["text"], "new": true, "old": false, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048469
      THEN json_object('op', 'delete', 'table', 'notes', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'notes', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'notes', 'key', json(row_key)) AS payload
    FROM (
      SELECT 'changes/notes' AS channel,
      json_object('rowid', pubsub_now.rowid) AS row_key,
      json_object('text', CASE typeof(pubsub_now."text") WHEN 'real' THEN json(CASE WHEN abs(pubsub_now."text") BETWEEN 1e-15 AND 1e15 AND CAST(printf('%!.15g', pubsub_now."text") AS REAL) = pubsub_now."text" THEN printf('%!.15g', pubsub_now."text") ELSE replace(printf('%!.17g', pubsub_now."text"), 'Inf', '9e999') END) WHEN 'blob' THEN json_object('hex', hex(pubsub_now."text")) ELSE pubsub_now."text" END) AS old_row
      FROM (SELECT OLD."text" AS "text", OLD.rowid AS rowid) AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "notes" AS pubsub_now WHERE pubsub_now.rowid = OLD.rowid)
  );
END;
CREATE TRIGGER "pubsub_broadcast_insert_tags" AFTER INSERT ON "tags"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "tags", "channel": "tags\/", "per_row": "colour", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048470
      THEN json_object('op', 'insert', 'table', 'tags', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'tags', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'tags', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') AS channel,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END) AS row_key,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'colour', CASE typeof(pubsub_now."colour") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."colour")) ELSE pubsub_now."colour" END) AS new_row
      FROM "tags" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
  );
END;
CREATE TRIGGER "pubsub_broadcast_update_tags" AFTER UPDATE ON "tags"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "tags", "channel": "tags\/", "per_row": "colour", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048470
      THEN json_object('op', 'delete', 'table', 'tags', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'tags', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'tags', 'key', json(row_key), 'old', json(old_row)) AS payload
    FROM (
      SELECT coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') AS channel,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END) AS row_key,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'colour', CASE typeof(pubsub_now."colour") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."colour")) ELSE pubsub_now."colour" END) AS old_row
      FROM (SELECT OLD."name" AS "name", OLD."colour" AS "colour") AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "tags" AS pubsub_now WHERE pubsub_now."name" IS OLD."name" AND json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END) IS pubsub_row.row_key AND coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') IS pubsub_row.channel)
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048470
      THEN json_object('op', 'insert', 'table', 'tags', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'insert', 'table', 'tags', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'insert', 'table', 'tags', 'key', json(row_key), 'new', json(new_row)) AS payload
    FROM (
      SELECT coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') AS channel,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END) AS row_key,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'colour', CASE typeof(pubsub_now."colour") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."colour")) ELSE pubsub_now."colour" END) AS new_row
      FROM "tags" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
    WHERE (row_key IS NOT json_object('name', CASE typeof(OLD."name") WHEN 'blob' THEN json_object('hex', hex(OLD."name")) ELSE OLD."name" END) OR channel IS NOT (SELECT coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') FROM (SELECT OLD."name" AS "name", OLD."colour" AS "colour") AS pubsub_now))
  );
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048470
      THEN json_object('op', 'update', 'table', 'tags', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'update', 'table', 'tags', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'update', 'table', 'tags', 'key', json(row_key), 'new', json(new_row), 'old', json(old_row)) AS payload
    FROM (
      SELECT coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') AS channel,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END) AS row_key,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'colour', CASE typeof(pubsub_now."colour") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."colour")) ELSE pubsub_now."colour" END) AS new_row,
      json_object('name', CASE typeof(OLD."name") WHEN 'blob' THEN json_object('hex', hex(OLD."name")) ELSE OLD."name" END,
          'colour', CASE typeof(OLD."colour") WHEN 'blob' THEN json_object('hex', hex(OLD."colour")) ELSE OLD."colour" END) AS old_row
      FROM "tags" AS pubsub_now WHERE pubsub_now.rowid = NEW.rowid
    ) AS pubsub_row
    WHERE new_row IS NOT old_row AND row_key IS json_object('name', CASE typeof(OLD."name") WHEN 'blob' THEN json_object('hex', hex(OLD."name")) ELSE OLD."name" END) AND channel IS (SELECT coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') FROM (SELECT OLD."name" AS "name", OLD."colour" AS "colour") AS pubsub_now)
  );
END;
CREATE TRIGGER "pubsub_broadcast_delete_tags" AFTER DELETE ON "tags"
BEGIN
  /* datasette-pubsub broadcast 1: {"table": "tags", "channel": "tags\/", "per_row": "colour", "columns": null, "new": true, "old": true, "conditions": {"insert": "", "update": "", "delete": ""}, "limit": 1048576} */
  INSERT INTO vpubsub (channel, payload)
  SELECT channel, CASE
    WHEN length(CAST(payload AS BLOB)) <= 1048576 THEN payload
    WHEN length(CAST(row_key AS BLOB)) <= 1048470
      THEN json_object('op', 'delete', 'table', 'tags', 'key', json(row_key), 'too_large', json('true'))
    ELSE json_object('op', 'delete', 'table', 'tags', 'too_large', json('true')) END
  FROM (
    SELECT channel, row_key, json_object('op', 'delete', 'table', 'tags', 'key', json(row_key), 'old', json(old_row)) AS payload
    FROM (
      SELECT coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') AS channel,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END) AS row_key,
      json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END,
          'colour', CASE typeof(pubsub_now."colour") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."colour")) ELSE pubsub_now."colour" END) AS old_row
      FROM (SELECT OLD."name" AS "name", OLD."colour" AS "colour") AS pubsub_now
    ) AS pubsub_row
    WHERE NOT EXISTS (SELECT 1 FROM "tags" AS pubsub_now WHERE pubsub_now."name" IS OLD."name" AND json_object('name', CASE typeof(pubsub_now."name") WHEN 'blob' THEN json_object('hex', hex(pubsub_now."name")) ELSE pubsub_now."name" END) IS pubsub_row.row_key AND coalesce((SELECT 'tags/' || value FROM (SELECT (colour) AS value) WHERE typeof(value) <> 'blob' AND instr(value, char(0)) = 0 AND length(CAST('tags/' || value AS BLOB)) <= 255), 'tags/') IS pubsub_row.channel)
  );
END;
DELETE FROM "sqlite_sequence";
COMMIT;
