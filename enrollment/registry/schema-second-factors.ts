/** What a service or a fleet asks for beside a certificate: an entry of `MIGRATIONS`. */
export const SECOND_FACTORS = `
  ALTER TABLE devices ADD COLUMN factor TEXT; -- as JSON; null for what its fleet asks for
  ALTER TABLE fleets ADD COLUMN factor TEXT; -- as JSON; null for nothing
  `
