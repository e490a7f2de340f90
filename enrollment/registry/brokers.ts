import type { BrokerView } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { Intent } from './ledger.ts'
import type { ReceiptBook } from './receipts.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'
import type { Streams } from './streams.ts'

interface BrokerRow {
  readonly id: string
  readonly accepted_at: number | null
  readonly forgotten_at: number | null
  readonly url: string | null
  readonly sessions: number
  readonly position: number | null
  readonly last_heard_at: number | null
}

interface InvitationRow {
  readonly broker: string
  readonly expires_at: number
  readonly spki: string | null
}

type Statements = ReturnType<typeof prepare> & { readonly enlist: ReturnType<typeof prepareEnlist> }

function prepare(db: Sqlite) {
  return {
    /** A broker that was forgotten begins anew. */
    insert: db.prepare<[string]>(
      `INSERT INTO brokers (id) VALUES (?) ON CONFLICT (id) DO UPDATE SET accepted_at = NULL, forgotten_at = NULL
         WHERE forgotten_at IS NOT NULL`,
    ),
    invite: db.prepare<[string, string, number]>(
      'INSERT INTO invitations (broker, hash, expires_at) VALUES (?, ?, ?)',
    ),
    invitation: db.prepare<[string], InvitationRow>(
      'SELECT broker, expires_at, spki FROM invitations WHERE hash = ?',
    ),
    spend: db.prepare<[string, string]>('UPDATE invitations SET spki = ? WHERE hash = ?'),
    accept: db.prepare<[number, string]>(
      'UPDATE brokers SET accepted_at = ? WHERE id = ? AND accepted_at IS NULL',
    ),
    find: db.prepare<[string], BrokerRow>('SELECT * FROM brokers WHERE id = ? AND forgotten_at IS NULL'),
    /** One that is only invited is listed while an invitation is open. */
    list: db.prepare<[number], BrokerRow>(
      `SELECT b.* FROM brokers b WHERE b.forgotten_at IS NULL AND (b.accepted_at IS NOT NULL
         OR EXISTS (SELECT 1 FROM invitations i WHERE i.broker = b.id AND i.expires_at > ?)) ORDER BY b.row`,
    ),
    heard: db.prepare<[number, string]>(
      'UPDATE brokers SET last_heard_at = ? WHERE id = ? AND forgotten_at IS NULL',
    ),
    forget: db.prepare<[number, string]>(
      'UPDATE brokers SET forgotten_at = ?, sessions = 0, position = NULL, url = NULL WHERE id = ?',
    ),
    uninvite: db.prepare<[string]>('DELETE FROM invitations WHERE broker = ?'),
    disconnect: db.prepare<[string]>('DELETE FROM connections WHERE broker = ?'),
    revoke: db.prepare<[number, string]>(
      `UPDATE infrastructure SET revoked_at = ? WHERE kind = 'broker' AND owner = ? AND revoked_at IS NULL`,
    ),
    head: db.prepare<[], { position: number | null }>('SELECT MAX(position) AS position FROM changes'),
  }
}

/** Its certificates that are not revoked yet, for the CRL of the CA that has issued them. */
function prepareEnlist(db: Sqlite) {
  return db.prepare<[number, string]>(
    `INSERT INTO revocations (issuer, serial, revoked_at, reason, not_after)
     SELECT issuer, serial, ?, 'cessationOfOperation', not_after FROM infrastructure
     WHERE kind = 'broker' AND owner = ? AND revoked_at IS NULL AND issuer IS NOT NULL`,
  )
}

interface BrokerParts {
  readonly store: Store
  readonly streams: Streams
  readonly receipts: ReceiptBook
}

type BrokerIntents = Pick<
  Registry,
  'invite' | 'acceptInvitation' | 'listBrokers' | 'streamOf' | 'forgetBroker'
>

export function openBrokers(parts: BrokerParts): BrokerIntents {
  const { store, streams } = parts
  const statements = { ...prepare(store.db), enlist: prepareEnlist(store.db) }
  return {
    invite: ({ id, hash, expiresAt, ...act }) =>
      store.write(act, (log) => {
        statements.insert.run(id)
        statements.invite.run(id, hash, expiresAt)
        log.audit({ action: 'broker.invite', subject: `broker:${id}` })
      }),
    acceptInvitation: ({ hash, spkiHash, now }) =>
      store.write({ now, by: 'plane' }, (log) => accept(statements, { hash, spkiHash, now, log })),
    listBrokers: (now) =>
      store.read(() => {
        const head = statements.head.get()?.position ?? 0
        return statements.list.all(now).map((row) => brokerView(row, { head, streams }))
      }),
    streamOf: (broker, open, now) => {
      streams.changed(broker, open)
      return store.write({ now, by: `broker:${broker}` }, () => void statements.heard.run(now, broker))
    },
    forgetBroker: (id, act) =>
      store.write(act, (log) => forget(parts, { statements, id, now: act.now, log })),
  }
}

interface Accepting {
  readonly hash: string
  readonly spkiHash: string
  readonly now: number
  readonly log: Intent
}

/** @throws MusterError token_unknown, token_spent, token_expired */
function accept(statements: Statements, { hash, spkiHash, now, log }: Accepting): string {
  const invitation = statements.invitation.get(hash)
  if (invitation === undefined)
    throw new MusterError('token_unknown', 'Cannot use the invitation: it is not known')
  const { broker } = invitation
  if (invitation.spki === spkiHash) return broker
  if (invitation.spki !== null) {
    throw new MusterError('token_spent', `Cannot use the invitation of "${broker}": it has been used`, {
      evidence: { token: broker, uses: 1 },
    })
  }
  if (invitation.expires_at <= now) {
    throw new MusterError('token_expired', `Cannot use the invitation of "${broker}": it has expired`, {
      evidence: { token: broker, expiresAt: invitation.expires_at },
    })
  }
  statements.spend.run(spkiHash, hash)
  statements.accept.run(now, broker)
  log.audit({ action: 'broker.accept', subject: `broker:${broker}` })
  return broker
}

/** Its invitations go with it, so that none brings it back. @throws MusterError not_found */
function forget(
  { receipts }: BrokerParts,
  { statements, id, now, log }: { statements: Statements; id: string; now: number; log: Intent },
): void {
  if (statements.find.get(id) === undefined)
    throw new MusterError('not_found', `Cannot find the broker "${id}"`)
  statements.forget.run(now, id)
  statements.uninvite.run(id)
  statements.disconnect.run(id)
  statements.enlist.run(now, id)
  statements.revoke.run(now, id)
  receipts.forget(id)
  log.audit({ action: 'broker.forget', subject: `broker:${id}` })
}

function brokerView(row: BrokerRow, { head, streams }: { head: number; streams: Streams }): BrokerView {
  const { id, url, sessions, position } = row
  const reached = streams.isOpen(id) ? 'up' : 'down'
  return {
    id,
    state: row.accepted_at === null ? 'invited' : reached,
    url,
    sessions,
    position,
    behind: position === null ? null : Math.max(0, head - position),
    lastHeardAt: row.last_heard_at,
  }
}
