import type { ApiTokenView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { InfrastructureCertificate, InfrastructureKind, Registry } from './registry.ts'
import type { Store } from './store.ts'

interface InfrastructureRow {
  readonly fingerprint: string
  readonly serial: string
  readonly issuer: string | null
  readonly kind: InfrastructureKind
  readonly owner: string
  readonly not_before: number
  readonly not_after: number
  readonly revoked_at: number | null
}

interface ApiTokenRow {
  readonly name: string
  readonly created_at: number
  readonly expires_at: number | null
  readonly cancelled_at: number | null
}

function prepare(db: Sqlite) {
  return {
    insert: db.prepare<[Omit<InfrastructureCertificate, 'revokedAt'>]>(
      `INSERT INTO infrastructure (fingerprint, serial, issuer, kind, owner, not_before, not_after)
       VALUES (@fingerprint, @serial, @issuer, @kind, @owner, @notBefore, @notAfter)`,
    ),
    find: db.prepare<[string], InfrastructureRow>('SELECT * FROM infrastructure WHERE fingerprint = ?'),
    isBroker: db.prepare<[string], unknown>(
      'SELECT 1 FROM brokers WHERE id = ? AND accepted_at IS NOT NULL AND forgotten_at IS NULL',
    ),
    insertToken: db.prepare<[string, string, number, number | null]>(
      'INSERT INTO api_tokens (name, hash, created_at, expires_at) VALUES (?, ?, ?, ?)',
    ),
    listTokens: db.prepare<[], ApiTokenRow>('SELECT * FROM api_tokens ORDER BY row'),
    isTaken: db.prepare<[string], unknown>(
      'SELECT 1 FROM api_tokens WHERE name = ? AND cancelled_at IS NULL',
    ),
    cancel: db.prepare<[number, string]>(
      'UPDATE api_tokens SET cancelled_at = ? WHERE name = ? AND cancelled_at IS NULL',
    ),
    findToken: db.prepare<[string, number], { name: string }>(
      `SELECT name FROM api_tokens
       WHERE hash = ? AND cancelled_at IS NULL AND (expires_at IS NULL OR expires_at > ?)`,
    ),
  }
}

/** The certificates of servers, brokers and operators: who may use the admin listener. */
export function openInfrastructure(
  store: Store,
): Pick<Registry, 'recordInfrastructure' | 'findInfrastructure'> {
  const statements = prepare(store.db)
  return {
    recordInfrastructure: ({ fingerprint, serial, issuer, kind, owner, notBefore, notAfter }, act) =>
      store.write(act, (log) => {
        // It may have been forgotten since it asked: what is recorded now would outlive the revocation of the others.
        if (kind === 'broker' && statements.isBroker.get(owner) === undefined) {
          throw new MusterError(
            'not_found',
            `Cannot record a certificate of the broker "${owner}": it is not known`,
          )
        }
        statements.insert.run({ fingerprint, serial, issuer, kind, owner, notBefore, notAfter })
        log.audit({ action: `issue.${kind}`, subject: `${kind}:${owner} certificate:${serial}` })
      }),
    findInfrastructure: (fingerprint) =>
      store.read(() => {
        const row = statements.find.get(fingerprint)
        return row === undefined ? null : infrastructureCertificate(row)
      }),
  }
}

type ApiTokenIntents = Pick<Registry, 'createApiToken' | 'listApiTokens' | 'cancelApiToken' | 'findApiToken'>

/** Tokens for scripts that act through the admin API. A name can be given again once its token is cancelled. */
export function openApiTokens(store: Store): ApiTokenIntents {
  const statements = prepare(store.db)
  return {
    createApiToken: ({ name, hash, expiresAt, ...act }) =>
      store.write(act, (log): ApiTokenView => {
        if (statements.isTaken.get(name) !== undefined) {
          throw new MusterError('conflict', `Cannot make the API token "${name}": there is one of this name`)
        }
        statements.insertToken.run(name, hash, act.now, expiresAt)
        log.audit({ action: 'api-token.create', subject: `api-token:${name}` })
        return { name, createdAt: act.now, expiresAt, cancelledAt: null }
      }),
    listApiTokens: () => store.read(() => statements.listTokens.all().map(apiTokenView)),
    cancelApiToken: (name, act) =>
      store.write(act, (log) => {
        if (statements.cancel.run(act.now, name).changes === 0) {
          throw new MusterError(
            'not_found',
            `Cannot cancel the API token "${name}": there is none of this name`,
          )
        }
        log.audit({ action: 'api-token.cancel', subject: `api-token:${name}` })
      }),
    findApiToken: (hash, now) => store.read(() => statements.findToken.get(hash, now)?.name ?? null),
  }
}

function infrastructureCertificate(row: InfrastructureRow): InfrastructureCertificate {
  const {
    fingerprint,
    serial,
    issuer,
    kind,
    owner,
    not_before: notBefore,
    not_after: notAfter,
    revoked_at: revokedAt,
  } = row
  return { fingerprint, serial, issuer, kind, owner, notBefore, notAfter, revokedAt }
}

function apiTokenView(row: ApiTokenRow): ApiTokenView {
  const { name, created_at: createdAt, expires_at: expiresAt, cancelled_at: cancelledAt } = row
  return { name, createdAt, expiresAt, cancelledAt }
}
