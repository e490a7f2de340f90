/** Which infrastructure CA has issued a certificate, so that its CRL can list it: an entry of `MIGRATIONS`. */
export const INFRASTRUCTURE_ISSUERS = `
  ALTER TABLE infrastructure ADD COLUMN issuer TEXT; -- null: recorded before there was this column
  `
