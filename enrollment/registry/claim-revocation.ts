import type { Sqlite } from '#shared/sqlite'

/** Claims that are cancelled and not on the CRL yet are put there, for whoever looks there. */
export function prepareRevokeClaims(db: Sqlite): () => void {
  const revoke = db.prepare<[]>(
    `INSERT INTO revocations (issuer, serial, revoked_at, reason, not_after)
     SELECT c.issuer, c.serial, t.cancelled_at, 'cessationOfOperation', c.not_after
     FROM claims c CROSS JOIN tokens t ON t.row = c.token
     WHERE t.cancelled_at IS NOT NULL AND c.der IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM revocations r WHERE r.serial = c.serial)`,
  )
  return () => void revoke.run()
}
