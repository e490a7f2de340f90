/** What happened to devices, for those who follow: an entry of `MIGRATIONS`. In no journal: it was seen, or is in the logs. */
export const EVENTS = `
  CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, -- no gaps: one that is rolled back takes its number back
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    scope TEXT NOT NULL,
    device_sequence INTEGER,
    detail TEXT NOT NULL -- JSON
  );
  CREATE INDEX events_scope ON events (scope, sequence);

  CREATE TABLE event_counts (
    device INTEGER PRIMARY KEY REFERENCES devices (row) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    refused_at INTEGER -- of the last refusal that is an event
  );
  `
