/** Which keys the plane has made: an entry of `MIGRATIONS`. */
export const SERVER_KEYS = `
  ALTER TABLE certificates ADD COLUMN server_key INTEGER NOT NULL DEFAULT 0; -- 1: the plane made the key, and has forgotten it
  `
