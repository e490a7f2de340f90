/** By which a repeated request for a key that the plane makes is known again: an entry of `MIGRATIONS`. */
export const REQUEST_KEYS = `
  ALTER TABLE certificates ADD COLUMN request_key TEXT; -- of those whose key the plane made: SHA-256 of the SPKI in the request
  `
