/** Finds the refusals of strangers from one address: an entry of `MIGRATIONS`. */
export const STRANGERS = `
  CREATE INDEX refusals_stranger ON refusals (address, row) WHERE bucket = 0;
  `
