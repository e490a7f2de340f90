/** What devices are told to trust, as brokers tell it: an entry of `MIGRATIONS`. */
export const TRUST_BUNDLE = `
  CREATE TABLE trust_bundle (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    bundle TEXT NOT NULL
  );
  `
