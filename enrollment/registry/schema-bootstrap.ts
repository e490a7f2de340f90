/** What a manifest says of devices, and attempts on tokens that are over: an entry of `MIGRATIONS`. */
export const BOOTSTRAP = `
  CREATE TABLE device_attributes (
    device INTEGER NOT NULL REFERENCES devices (row) ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (device, name)
  ) WITHOUT ROWID;

  -- How often a token was refused because it was spent, expired or cancelled.
  CREATE TABLE token_attempts (
    token INTEGER NOT NULL REFERENCES tokens (row) ON DELETE CASCADE,
    code TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    PRIMARY KEY (token, code)
  ) WITHOUT ROWID;
  `
