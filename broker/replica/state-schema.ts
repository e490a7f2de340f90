/**
 * The schema of a state file: what the registry says, as it was at one cursor and as the changes since then have made it.
 *
 * Devices and certificates are kept in the order in which they came, so that a snapshot appends and touches each page
 * once; fingerprints come in no order, and a table that is keyed by them would write a page for each.
 */
export const STATE_MIGRATIONS = [
  `
  CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch TEXT,
    position INTEGER,
    -- When the registry was last heard, ms since 1970 by this machine's clock.
    heard_at INTEGER
  ) STRICT;
  INSERT INTO state VALUES (1, NULL, NULL, NULL);

  CREATE TABLE issuers (id TEXT PRIMARY KEY, pem TEXT NOT NULL, trusted INTEGER NOT NULL) STRICT, WITHOUT ROWID;

  CREATE TABLE fleets (id TEXT PRIMARY KEY, policy TEXT NOT NULL, policy_epoch INTEGER NOT NULL) STRICT, WITHOUT ROWID;

  CREATE TABLE devices (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, kind TEXT NOT NULL, fleet TEXT NOT NULL, batch TEXT,
    state TEXT NOT NULL,
    -- Fields without a column of their own, as JSON; null when there are none.
    also TEXT
  ) STRICT;

  -- Of type ANY is hex as the octets that it stands for, or as it came when that is not whole octets.
  CREATE TABLE certificates (
    row INTEGER PRIMARY KEY, fingerprint ANY NOT NULL, serial ANY NOT NULL, issuer ANY NOT NULL,
    device TEXT NOT NULL, state TEXT NOT NULL, not_before INTEGER NOT NULL, not_after INTEGER NOT NULL,
    superseded_from INTEGER, revoked_at INTEGER, reason TEXT, renew_after INTEGER, renew_before INTEGER
  ) STRICT;

  CREATE TABLE holds (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, scope TEXT NOT NULL, state TEXT NOT NULL,
    -- 1 when the line for the receipt is in the spool.
    reported INTEGER NOT NULL DEFAULT 0
  ) STRICT, WITHOUT ROWID;

  -- Members of holds on a plan; they arrive before their hold, so there is no foreign key.
  CREATE TABLE members (hold TEXT NOT NULL, device TEXT NOT NULL, PRIMARY KEY (hold, device)) STRICT, WITHOUT ROWID;

  -- What devices are to trust; no row before the first rollover.
  CREATE TABLE trust (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, bundle TEXT NOT NULL) STRICT;
  `,
  `
  -- What the fleet asks for beside a certificate, as JSON; null for nothing.
  ALTER TABLE fleets ADD COLUMN factor TEXT;
  `,
  `
  -- 1: what the devices have retained is to be forgotten.
  ALTER TABLE holds ADD COLUMN purge_retained INTEGER NOT NULL DEFAULT 0;
  `,
  `
  -- What was ordered to be forgotten of the devices in a scope, also by holds that have ended: of each the newest.
  CREATE TABLE purges (
    kind TEXT NOT NULL, id TEXT NOT NULL,
    -- 1: with what they have retained.
    retained INTEGER NOT NULL,
    -- Where the order stands in the stream, and when it was given.
    epoch TEXT NOT NULL, position INTEGER NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (kind, id, retained)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX purges_by_position ON purges (epoch, position);
  INSERT OR REPLACE INTO purges SELECT kind, CASE kind WHEN 'plan' THEN holds.id ELSE scope END, purge_retained, epoch, position, 253402300800000
    FROM holds, state WHERE holds.state = 'active' AND epoch IS NOT NULL AND position IS NOT NULL;
  `,
] as const

/** Made when a snapshot is complete: sorting once costs a tenth of keeping them in order row by row. */
export const STATE_INDEXES = [
  'CREATE UNIQUE INDEX IF NOT EXISTS devices_by_id ON devices (id)',
  'CREATE UNIQUE INDEX IF NOT EXISTS certificates_by_fingerprint ON certificates (fingerprint)',
  'CREATE INDEX IF NOT EXISTS certificates_by_device ON certificates (device)',
  'CREATE INDEX IF NOT EXISTS members_by_device ON members (device)',
] as const
