/**
 * The schema of `sessions.db`: what MQTT keeps when a client, or the broker, is gone. A message lies there once,
 * however many queues it is in. Statements of a released version are never edited.
 */
export const STORE_MIGRATIONS = [
  `
  -- The fingerprint is of the certificate that used the session last.
  CREATE TABLE sessions (
    client TEXT PRIMARY KEY, identity TEXT NOT NULL, kind TEXT NOT NULL, fleet TEXT NOT NULL,
    fingerprint TEXT NOT NULL
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE subscriptions (
    client TEXT NOT NULL, filter TEXT NOT NULL, qos INTEGER NOT NULL,
    PRIMARY KEY (client, filter)
  ) STRICT, WITHOUT ROWID;

  -- Numbered in the order in which they were routed.
  CREATE TABLE messages (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL
  ) STRICT;

  -- released: 1 once the client has received a QoS 2 message (PUBREC) and only PUBREL is owed to it.
  CREATE TABLE queue (
    client TEXT NOT NULL, seq INTEGER NOT NULL, message_id INTEGER, qos INTEGER NOT NULL,
    released INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (client, seq)
  ) STRICT, WITHOUT ROWID;

  -- Packet identifiers of QoS 2 messages that were routed and whose PUBREL has not come.
  CREATE TABLE incoming (
    client TEXT NOT NULL, message_id INTEGER NOT NULL,
    PRIMARY KEY (client, message_id)
  ) STRICT, WITHOUT ROWID;

  -- owner: the identity that it counts for; null for the broker itself.
  CREATE TABLE retained (
    topic TEXT PRIMARY KEY, payload BLOB NOT NULL, qos INTEGER NOT NULL, owner TEXT
  ) STRICT;

  CREATE TABLE wills (
    client TEXT PRIMARY KEY, broker TEXT NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
    qos INTEGER NOT NULL, retain INTEGER NOT NULL, fingerprint TEXT, connection TEXT
  ) STRICT;
  `,
  `
  -- How long this broker has lived, s, and when in its life the client of a session was there last. Null: it is
  -- there, or was until a while ago. Sessions of an earlier version begin to be away with this one.
  CREATE TABLE life (lived INTEGER NOT NULL) STRICT;
  INSERT INTO life VALUES (0);
  ALTER TABLE sessions ADD COLUMN away_since INTEGER;
  `,
  `
  -- Up to which change of each epoch of the registry everything is forgotten that holds have ordered to be.
  CREATE TABLE purged (epoch TEXT PRIMARY KEY, position INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  `,
] as const
