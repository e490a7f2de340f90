/** Policies of single devices and services: an entry of `MIGRATIONS`. */
export const POLICIES = `
  ALTER TABLE devices ADD COLUMN policy TEXT; -- its own, as JSON; null for that of its fleet
  `
