/** Rows of a list as certificates have their serial, in whole octets: before, one that began with a zero digit lost it. An entry of `MIGRATIONS`. */
export const LISTED_SERIALS = `
  UPDATE manufactured SET certificate_serial = '0' || certificate_serial WHERE length(certificate_serial) % 2 = 1
  `
