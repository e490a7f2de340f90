/** Plans that take retained messages away as well: an entry of `MIGRATIONS`. */
export const PURGES = `
  ALTER TABLE plans ADD COLUMN purge_retained INTEGER NOT NULL DEFAULT 0; -- 1: brokers forget what its devices retained
  `
