/** Profiles, renewal windows, rotations and compromised keys: an entry of `MIGRATIONS`. */
export const PROFILES = `
  ALTER TABLE fleets ADD COLUMN profile TEXT NOT NULL DEFAULT '{}'; -- what differs from a new fleet's, without the lifetime

  -- The window in which the device is to ask for its next certificate.
  ALTER TABLE certificates ADD COLUMN renew_after INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE certificates ADD COLUMN renew_before INTEGER NOT NULL DEFAULT 0;
  UPDATE certificates SET renew_after = created_at + (not_after - created_at) / 1000 * (667 + row % 100),
    renew_before = created_at + (not_after - created_at) / 10 * 9;

  ALTER TABLE certificates ADD COLUMN rotation INTEGER; -- row of the rotation that moved the window
  CREATE INDEX certificates_rotation ON certificates (rotation) WHERE rotation IS NOT NULL;

  CREATE TABLE rotations (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    scope_kind TEXT NOT NULL,
    scope_id TEXT NOT NULL,
    over_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    progress TEXT NOT NULL DEFAULT '', -- the device after which the next slice begins
    by TEXT NOT NULL,
    created_at INTEGER NOT NULL
  );
  CREATE INDEX rotations_pacing ON rotations (state) WHERE state = 'pacing';

  CREATE TABLE rotation_members (
    rotation INTEGER NOT NULL,
    device TEXT NOT NULL,
    PRIMARY KEY (rotation, device)
  ) WITHOUT ROWID;

  -- SHA-256 of public keys that somebody else may have; nothing is certified for them again.
  CREATE TABLE compromised_keys (
    spki TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    created_at INTEGER NOT NULL
  ) WITHOUT ROWID;
  INSERT OR IGNORE INTO compromised_keys
    SELECT spki, 'revocation', COALESCE(revoked_at, created_at) FROM certificates
    WHERE state = 'revoked' AND reason = 'keyCompromise';
  `
