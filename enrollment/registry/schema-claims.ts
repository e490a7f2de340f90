/** Claim certificates of batches, and manufacturers whose devices are listed: an entry of `MIGRATIONS`. */
export const CLAIMS = `
  -- A token is a credential of a batch with uses: of which kind, and where its details are.
  ALTER TABLE tokens ADD COLUMN kind TEXT NOT NULL DEFAULT 'token';

  CREATE TABLE claims (
    token INTEGER PRIMARY KEY REFERENCES tokens (row) ON DELETE CASCADE,
    issuer TEXT NOT NULL,
    serial TEXT NOT NULL UNIQUE,
    spki TEXT NOT NULL UNIQUE,
    not_after INTEGER NOT NULL,
    der BLOB -- null until it has been signed
  );

  CREATE TABLE manufacturers (
    token INTEGER PRIMARY KEY REFERENCES tokens (row) ON DELETE CASCADE,
    ca TEXT NOT NULL, -- SHA-256 of the certificate
    pem TEXT NOT NULL
  );
  CREATE INDEX manufacturers_ca ON manufacturers (ca);

  -- The devices that a manufacturer has made for a batch; each of the two numbers may be null, not both.
  CREATE TABLE manufactured (
    row INTEGER PRIMARY KEY,
    token INTEGER NOT NULL REFERENCES tokens (row) ON DELETE CASCADE,
    serial_number TEXT, -- of the subject, as it stands there
    certificate_serial TEXT, -- hex, 32 digits or more
    device TEXT NOT NULL UNIQUE,
    CHECK (serial_number IS NOT NULL OR certificate_serial IS NOT NULL)
  );
  CREATE UNIQUE INDEX manufactured_serial_number ON manufactured (token, serial_number)
    WHERE serial_number IS NOT NULL;
  CREATE UNIQUE INDEX manufactured_certificate_serial ON manufactured (token, certificate_serial)
    WHERE certificate_serial IS NOT NULL;
  `
