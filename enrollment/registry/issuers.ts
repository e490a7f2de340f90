import type { Reason } from '#shared/api'
import type { Sqlite } from '#shared/sqlite'
import type { ListedRevocation, Registry } from './registry.ts'
import type { Store } from './store.ts'

interface RevocationRow {
  readonly row: number
  readonly serial: string
  readonly revoked_at: number
  readonly reason: Reason
  readonly not_after: number
}

type IssuerIntents = Pick<
  Registry,
  'recordIssuer' | 'recordTrust' | 'revokedBy' | 'revokedAfter' | 'revocationMark' | 'newestNotBefore'
>

function prepare(db: Sqlite) {
  return {
    find: db.prepare<[string], { pem: string; trusted: 0 | 1 }>(
      'SELECT pem, trusted FROM issuers WHERE id = ?',
    ),
    put: db.prepare<[string, string, 0 | 1]>(
      `INSERT INTO issuers (id, pem, trusted) VALUES (?, ?, ?)
       ON CONFLICT (id) DO UPDATE SET pem = excluded.pem, trusted = excluded.trusted`,
    ),
    trust: db.prepare<[], { bundle: string }>('SELECT bundle FROM trust_bundle'),
    putTrust: db.prepare<[number, string]>(
      `INSERT INTO trust_bundle (one, version, bundle) VALUES (1, ?, ?)
       ON CONFLICT (one) DO UPDATE SET version = excluded.version, bundle = excluded.bundle`,
    ),
    revoked: db.prepare<[string, number], { serial: string; revoked_at: number; reason: Reason }>(
      'SELECT serial, revoked_at, reason FROM revocations WHERE issuer = ? AND not_after >= ? ORDER BY row',
    ),
    revokedAfter: db.prepare<[string, number, number, number], RevocationRow>(
      `SELECT row, serial, revoked_at, reason, not_after FROM revocations
       WHERE issuer = ? AND row > ? AND not_after >= ? ORDER BY row LIMIT ?`,
    ),
    mark: db.prepare<[string], { mark: number | null }>(
      'SELECT MAX(row) AS mark FROM revocations WHERE issuer = ?',
    ),
    newest: db.prepare<[], { newest: number | null }>('SELECT MAX(not_before) AS newest FROM certificates'),
  }
}

/** The CAs that brokers trust for clients, and what their CRLs say. */
export function openIssuers(store: Store): IssuerIntents {
  const statements = prepare(store.db)
  return {
    recordIssuer: (issuer, act) =>
      store.write(act, (log) => {
        const known = statements.find.get(issuer.id)
        if (known?.pem === issuer.pem && (known.trusted === 1) === issuer.trusted) return
        statements.put.run(issuer.id, issuer.pem, issuer.trusted ? 1 : 0)
        log.change({ kind: 'issuer', issuer: { id: issuer.id, pem: issuer.pem, trusted: issuer.trusted } })
        log.audit({
          action: issuer.trusted ? 'issuer.trust' : 'issuer.distrust',
          subject: `issuer:${issuer.id}`,
        })
      }),
    recordTrust: (trust, act) =>
      store.write(act, (log) => {
        const bundle = JSON.stringify(trust)
        if (statements.trust.get()?.bundle === bundle) return
        statements.putTrust.run(trust.version, bundle)
        log.change({ kind: 'trust', trust })
        log.audit({ action: 'trust.publish', subject: `bundle:${trust.version}` })
      }),
    revokedBy: (issuer, notExpiredAt) =>
      store.read(() =>
        statements.revoked
          .all(issuer, notExpiredAt)
          .map(({ serial, revoked_at: revokedAt, reason }) => ({ serial, revokedAt, reason })),
      ),
    revokedAfter: (issuer, { mark, notExpiredAt, limit }) =>
      store.read(() => statements.revokedAfter.all(issuer, mark, notExpiredAt, limit).map(listedRevocation)),
    revocationMark: (issuer) => store.read(() => statements.mark.get(issuer)?.mark ?? 0),
    newestNotBefore: () => store.read(() => statements.newest.get()?.newest ?? 0),
  }
}

function listedRevocation(found: RevocationRow): ListedRevocation {
  const { row: mark, serial, revoked_at: revokedAt, reason, not_after: notAfter } = found
  return { mark, serial, revokedAt, reason, notAfter }
}
