/** Identities that are in two places, and fleets whose devices are held for that: an entry of `MIGRATIONS`. */
export const CLONES = `
  ALTER TABLE fleets ADD COLUMN quarantine INTEGER NOT NULL DEFAULT 0; -- 1: the plane holds a device with a clone alarm

  -- What brokers saw: the newest of each device. Audited when it is told.
  CREATE TABLE clone_alarms (
    device INTEGER PRIMARY KEY REFERENCES devices (row) ON DELETE CASCADE,
    alarms INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    address TEXT NOT NULL,
    other_address TEXT NOT NULL,
    broker TEXT NOT NULL,
    told INTEGER NOT NULL DEFAULT 0, -- 1: logged and audited
    plan TEXT, -- id of the hold that it led to
    held_at INTEGER
  );
  CREATE INDEX clone_alarms_last ON clone_alarms (last_at);
  `
