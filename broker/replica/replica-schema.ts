/**
 * The schema of `broker.db`: which state serves, and the spool of reports that have not been taken yet.
 *
 * What the registry says is in state files beside it (`state-schema.ts`), numbered by generation. One of them serves; a
 * snapshot is written to one with a higher number and takes over with a single update here, so that neither a crash
 * nor a cut stream ever leaves half a state in charge.
 */
export const MIGRATIONS = [
  `
  CREATE TABLE replica (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- The complete state that serves.
    generation INTEGER NOT NULL,
    -- The highest number ever given to a snapshot; numbers are not used twice.
    newest INTEGER NOT NULL,
    epoch TEXT,
    position INTEGER,
    -- When the registry was last heard, ms since 1970 by this machine's clock.
    heard_at INTEGER
  ) STRICT;
  INSERT INTO replica VALUES (1, 0, 0, NULL, NULL, NULL);

  CREATE TABLE issuers (
    generation INTEGER NOT NULL, id TEXT NOT NULL, pem TEXT NOT NULL, trusted INTEGER NOT NULL,
    PRIMARY KEY (generation, id)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE fleets (
    generation INTEGER NOT NULL, id TEXT NOT NULL, policy TEXT NOT NULL, policy_epoch INTEGER NOT NULL,
    PRIMARY KEY (generation, id)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE devices (
    generation INTEGER NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, fleet TEXT NOT NULL, batch TEXT,
    state TEXT NOT NULL,
    PRIMARY KEY (generation, id)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE certificates (
    generation INTEGER NOT NULL, fingerprint TEXT NOT NULL, serial TEXT NOT NULL, issuer TEXT NOT NULL,
    device TEXT NOT NULL, state TEXT NOT NULL, not_before INTEGER NOT NULL, not_after INTEGER NOT NULL,
    superseded_from INTEGER, revoked_at INTEGER, reason TEXT,
    PRIMARY KEY (generation, fingerprint)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX certificates_by_device ON certificates (generation, device);

  CREATE TABLE holds (
    generation INTEGER NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, scope TEXT NOT NULL, state TEXT NOT NULL,
    -- 1 when the line for the receipt is in the spool.
    reported INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (generation, id)
  ) STRICT, WITHOUT ROWID;

  -- Members of holds on a plan; they arrive before their hold, so there is no foreign key.
  CREATE TABLE members (
    generation INTEGER NOT NULL, hold TEXT NOT NULL, device TEXT NOT NULL,
    PRIMARY KEY (generation, hold, device)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX members_by_device ON members (generation, device);

  -- Reports in the order in which they were made; boot and sequence are set when a batch is made of them.
  CREATE TABLE spool (
    id INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL, report TEXT NOT NULL, boot TEXT, sequence INTEGER
  ) STRICT;
  CREATE INDEX spool_by_type ON spool (type, id);
  `,
  `
  ALTER TABLE certificates ADD COLUMN renew_after INTEGER;
  ALTER TABLE certificates ADD COLUMN renew_before INTEGER;
  `,
  `
  -- What devices are to trust; no row before the first rollover.
  CREATE TABLE trust (
    generation INTEGER PRIMARY KEY, version INTEGER NOT NULL, bundle TEXT NOT NULL
  ) STRICT;
  `,
  `
  -- What is known of a device, and its own policy, as JSON; null where there is nothing.
  ALTER TABLE devices ADD COLUMN attributes TEXT;
  ALTER TABLE devices ADD COLUMN policy TEXT;
  `,
  `
  -- States have moved to files of their own. A broker that is brought up to this version asks for a snapshot.
  DROP TABLE issuers;
  DROP TABLE fleets;
  DROP TABLE devices;
  DROP TABLE certificates;
  DROP TABLE holds;
  DROP TABLE members;
  DROP TABLE trust;
  ALTER TABLE replica DROP COLUMN epoch;
  ALTER TABLE replica DROP COLUMN position;
  ALTER TABLE replica DROP COLUMN heard_at;
  UPDATE replica SET newest = newest + 1;
  UPDATE replica SET generation = newest;
  `,
] as const

/** How long a statement waits for another process, ms. Only this broker writes here, so waiting helps nobody. */
export const BUSY_TIMEOUT_MS = 100
