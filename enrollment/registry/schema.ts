import { LATER } from './schema-later.ts'

/**
 * The schema of registry.db, one entry per version; a released entry is never edited.
 *
 * Every large table is an append-only rowid table with unique indexes on its random keys (serial, fingerprint,
 * hash): keyed by a random serial the table itself would be written all over, and stops at half the speed.
 * `changes.position` and `audit.sequence` are AUTOINCREMENT, so that no number is ever given out twice.
 */
export const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

  CREATE TABLE changes (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    change TEXT NOT NULL
  );

  CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    by TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    first_position INTEGER,
    last_position INTEGER,
    changes_digest TEXT,
    hash TEXT NOT NULL
  );

  CREATE TABLE issuers (id TEXT PRIMARY KEY, pem TEXT NOT NULL, trusted INTEGER NOT NULL) WITHOUT ROWID;

  CREATE TABLE fleets (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    lifetime_ms INTEGER NOT NULL,
    policy TEXT NOT NULL,
    policy_epoch INTEGER NOT NULL,
    synthetic INTEGER NOT NULL,
    created_at INTEGER NOT NULL
  );

  CREATE TABLE batches (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    fleet TEXT NOT NULL REFERENCES fleets (id),
    naming TEXT NOT NULL,
    created_at INTEGER NOT NULL
  );
  CREATE INDEX batches_fleet ON batches (fleet);

  CREATE TABLE tokens (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    hash TEXT NOT NULL UNIQUE,
    batch TEXT NOT NULL REFERENCES batches (id),
    uses INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0,
    expires_at INTEGER,
    cancelled_at INTEGER,
    device TEXT, -- of a reissue token
    listed INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    CHECK (used <= uses)
  );
  CREATE INDEX tokens_batch ON tokens (batch);
  CREATE INDEX tokens_device ON tokens (device) WHERE device IS NOT NULL;

  CREATE TABLE token_devices (
    token INTEGER NOT NULL REFERENCES tokens (row),
    device TEXT NOT NULL,
    PRIMARY KEY (token, device)
  ) WITHOUT ROWID;

  CREATE TABLE devices (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    fleet TEXT NOT NULL REFERENCES fleets (id),
    batch TEXT REFERENCES batches (id),
    state TEXT NOT NULL,
    last_seen_at INTEGER,
    created_at INTEGER NOT NULL
  );
  CREATE INDEX devices_fleet ON devices (fleet, id);
  CREATE INDEX devices_batch ON devices (batch, id);
  CREATE INDEX devices_state ON devices (fleet, kind, state);

  CREATE TABLE certificates (
    row INTEGER PRIMARY KEY,
    serial TEXT NOT NULL UNIQUE,
    fingerprint TEXT UNIQUE, -- null until it has been signed
    issuer TEXT NOT NULL,
    device INTEGER NOT NULL REFERENCES devices (row),
    spki TEXT NOT NULL,
    state TEXT NOT NULL,
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    superseded_from INTEGER,
    revoked_at INTEGER,
    reason TEXT,
    first_seen_at INTEGER,
    token INTEGER, -- row of the token that it was enrolled with
    predecessor INTEGER, -- row of the certificate that asked for it
    line TEXT NOT NULL, -- a sighting supersedes older certificates of the same device and line
    activates INTEGER NOT NULL, -- 1: once signed, it takes an expected or retired device into service
    created_at INTEGER NOT NULL,
    der BLOB
  );
  CREATE INDEX certificates_device ON certificates (device);
  CREATE INDEX certificates_spki ON certificates (spki);
  CREATE INDEX certificates_issuer ON certificates (issuer);
  CREATE INDEX certificates_due ON certificates (superseded_from)
    WHERE superseded_from IS NOT NULL AND state IN ('issued', 'active');

  -- Outlives its certificate: a CRL must not lose an entry because a device was forgotten.
  CREATE TABLE revocations (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    issuer TEXT NOT NULL,
    serial TEXT NOT NULL UNIQUE,
    revoked_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    not_after INTEGER NOT NULL
  );
  CREATE INDEX revocations_issuer ON revocations (issuer);

  CREATE TABLE plans (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    action TEXT NOT NULL,
    scope_kind TEXT NOT NULL,
    scope_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    undo_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    counts TEXT NOT NULL,
    by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    applied_at INTEGER,
    finalise_at INTEGER,
    progress TEXT NOT NULL DEFAULT '' -- where the next slice of finalising begins
  );
  CREATE INDEX plans_scope ON plans (scope_kind, scope_id) WHERE state IN ('applied', 'finalising');
  CREATE INDEX plans_state ON plans (state);

  CREATE TABLE plan_members (
    plan TEXT NOT NULL,
    device TEXT NOT NULL,
    PRIMARY KEY (plan, device)
  ) WITHOUT ROWID;
  CREATE INDEX plan_members_device ON plan_members (device);

  CREATE TABLE receipts (
    row INTEGER PRIMARY KEY,
    plan TEXT NOT NULL,
    broker TEXT NOT NULL,
    position INTEGER, -- null until the broker has applied the hold
    sessions_closed INTEGER NOT NULL DEFAULT 0,
    p50 REAL NOT NULL DEFAULT 0,
    p95 REAL NOT NULL DEFAULT 0,
    max REAL NOT NULL DEFAULT 0,
    survivors TEXT NOT NULL DEFAULT '[]',
    UNIQUE (plan, broker)
  );

  CREATE TABLE brokers (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    accepted_at INTEGER,
    forgotten_at INTEGER,
    url TEXT,
    sessions INTEGER NOT NULL DEFAULT 0,
    position INTEGER,
    last_heard_at INTEGER
  );

  CREATE TABLE invitations (
    row INTEGER PRIMARY KEY,
    broker TEXT NOT NULL REFERENCES brokers (id),
    hash TEXT NOT NULL UNIQUE,
    expires_at INTEGER NOT NULL,
    spki TEXT
  );
  CREATE INDEX invitations_broker ON invitations (broker);

  -- The newest row of a broker is its current boot.
  CREATE TABLE boots (
    row INTEGER PRIMARY KEY,
    broker TEXT NOT NULL REFERENCES brokers (id),
    boot TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    UNIQUE (broker, boot)
  );

  CREATE TABLE connections (
    broker TEXT NOT NULL,
    boot INTEGER NOT NULL,
    connection TEXT NOT NULL,
    device INTEGER NOT NULL REFERENCES devices (row),
    PRIMARY KEY (broker, boot, connection)
  ) WITHOUT ROWID;
  CREATE INDEX connections_device ON connections (device);

  CREATE TABLE refusals (
    row INTEGER PRIMARY KEY,
    bucket INTEGER NOT NULL, -- row of the device, 0 for strangers
    at INTEGER NOT NULL,
    code TEXT NOT NULL,
    evidence TEXT NOT NULL,
    device TEXT,
    fingerprint TEXT,
    address TEXT NOT NULL,
    by TEXT NOT NULL
  );
  CREATE INDEX refusals_bucket ON refusals (bucket);
  CREATE INDEX refusals_device ON refusals (device, at);
  CREATE INDEX refusals_fingerprint ON refusals (fingerprint, at);
  CREATE INDEX refusals_address ON refusals (address, at);

  -- How many were refused in each minute since 1970: the rows above are bounded, so they cannot be counted.
  CREATE TABLE refused_minutes (minute INTEGER PRIMARY KEY, refused INTEGER NOT NULL);

  CREATE TABLE infrastructure (
    row INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    serial TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    revoked_at INTEGER
  );
  CREATE INDEX infrastructure_owner ON infrastructure (kind, owner);

  CREATE TABLE api_tokens (
    row INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    cancelled_at INTEGER
  );
  CREATE UNIQUE INDEX api_tokens_name ON api_tokens (name) WHERE cancelled_at IS NULL;
  `,
  `
  ALTER TABLE batches ADD COLUMN approval INTEGER NOT NULL DEFAULT 0; -- 1: an operator approves its devices
  ALTER TABLE tokens ADD COLUMN approval INTEGER NOT NULL DEFAULT 0;

  -- Gone when the device has its certificate.
  CREATE TABLE approvals (
    row INTEGER PRIMARY KEY,
    device INTEGER REFERENCES devices (row), -- null once it is rejected
    token INTEGER, -- row of the token of which a use is reserved; null when nobody has asked yet
    spki TEXT, -- null: any key
    state TEXT NOT NULL,
    made INTEGER NOT NULL, -- 1: the application made the device
    created_at INTEGER NOT NULL
  );
  CREATE UNIQUE INDEX approvals_device ON approvals (device) WHERE device IS NOT NULL;
  CREATE INDEX approvals_request ON approvals (spki, token);
  `,
  `
  -- The CAs that follow those of the first start; at most the newest is open (ended_at is null).
  CREATE TABLE rollovers (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    from_cas TEXT NOT NULL,
    to_cas TEXT NOT NULL,
    published_version INTEGER NOT NULL,
    version INTEGER NOT NULL, -- of the trust bundle, after the newest step
    started_at INTEGER NOT NULL,
    cut_over_at INTEGER,
    aborted_at INTEGER,
    ended_at INTEGER
  );

  CREATE TABLE rollover_certificates (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    rollover TEXT NOT NULL REFERENCES rollovers (id),
    role TEXT NOT NULL,
    pem TEXT NOT NULL
  );
  CREATE INDEX rollover_certificates_rollover ON rollover_certificates (rollover);

  -- The newest trust bundle that each device has fetched.
  CREATE TABLE trust_adoptions (
    device INTEGER PRIMARY KEY REFERENCES devices (row) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    at INTEGER NOT NULL
  );
  `,
  ...LATER,
]
