import type { TokenView } from '#shared/api'
import { MusterError } from '#shared/errors'
import { isAllowed } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import type { Certificates } from './certificates.ts'
import { prepareRevokeClaims } from './claim-revocation.ts'
import type { Fleets } from './fleets.ts'
import type { CredentialKind, NewClaim, NewReissue, NewToken, Registry } from './registry.ts'
import { DEVICE_COLUMNS, type DeviceRow } from './rows.ts'
import { slices } from './slices.ts'
import type { Store } from './store.ts'

export interface TokenRow {
  readonly row: number
  readonly id: string
  readonly kind: CredentialKind
  readonly batch: string
  readonly uses: number
  readonly used: number
  readonly expires_at: number | null
  readonly cancelled_at: number | null
  readonly device: string | null
  readonly listed: number
  readonly approval: 0 | 1
  readonly created_at: number
}

interface NewRow {
  readonly id: string
  readonly kind: CredentialKind
  readonly hash: string
  readonly batch: string
  readonly uses: number
  readonly expires_at: number | null
  readonly device: string | null
  readonly listed: number
  readonly approval: 0 | 1
  readonly created_at: number
}

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    insert: db.prepare<[NewRow]>(
      `INSERT INTO tokens (id, kind, hash, batch, uses, expires_at, device, listed, approval, created_at)
       VALUES (@id, @kind, @hash, @batch, @uses, @expires_at, @device, @listed, @approval, @created_at)`,
    ),
    insertClaim: db.prepare<[NewClaim & { token: number | bigint }]>(
      `INSERT INTO claims (token, issuer, serial, spki, not_after)
       VALUES (@token, @issuer, @serial, @spki, @notAfter)`,
    ),
    list: db.prepare<[number | bigint, string]>(
      'INSERT OR IGNORE INTO token_devices (token, device) VALUES (?, ?)',
    ),
    find: db.prepare<[string], TokenRow>('SELECT * FROM tokens WHERE id = ?'),
    byHash: db.prepare<[string], TokenRow>('SELECT * FROM tokens WHERE hash = ?'),
    all: db.prepare<[], TokenRow>('SELECT * FROM tokens ORDER BY row'),
    ofBatch: db.prepare<[string], TokenRow>('SELECT * FROM tokens WHERE batch = ? ORDER BY row'),
    cancel: db.prepare<[number, string]>(
      'UPDATE tokens SET cancelled_at = ? WHERE id = ? AND cancelled_at IS NULL',
    ),
    device: db.prepare<[string], DeviceRow>(`SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.id = ?`),
    expect: db.prepare<[string, string, string, number]>(
      `INSERT OR IGNORE INTO devices (id, kind, fleet, batch, state, created_at)
       VALUES (?, 'device', ?, ?, 'expected', ?)`,
    ),
  }
}

interface TokenParts {
  readonly store: Store
  readonly fleets: Fleets
  readonly certificates: Certificates
}

type TokenIntents = Pick<
  Registry,
  'createToken' | 'createReissue' | 'listTokens' | 'findToken' | 'cancelToken'
>

export function openTokens({ store, fleets, certificates }: TokenParts): TokenIntents {
  const statements = prepare(store.db)
  const revokeClaims = prepareRevokeClaims(store.db)
  const show = (id: string, now: number) => {
    const row = statements.find.get(id)
    if (row === undefined) throw new MusterError('not_found', `Cannot find the token "${id}"`)
    return tokenView(row, now)
  }

  return {
    async createToken(token) {
      await createToken({ store, fleets, certificates, statements }, token)
      return store.read(() => show(token.id, token.now))
    },
    createReissue: (reissue) =>
      store.write(reissue, (log) => {
        createReissue(statements, reissue)
        log.audit({ action: 'token.reissue', subject: `token:${reissue.id} device:${reissue.device}` })
        return show(reissue.id, reissue.now)
      }),
    listTokens: ({ batch, now }) =>
      store.read(() => {
        const rows = batch === undefined ? statements.all.all() : statements.ofBatch.all(batch)
        return rows.map((row) => tokenView(row, now))
      }),
    findToken: (hash, now) =>
      store.readOne(() => {
        const row = statements.byHash.get(hash)
        return row === undefined ? null : tokenView(row, now)
      }),
    cancelToken: (id, act) =>
      store.write(act, (log) => {
        const { changes } = statements.cancel.run(act.now, id)
        const view = show(id, act.now)
        if (changes === 0) return view
        if (view.kind === 'claim') revokeClaims()
        log.audit({ action: `${view.kind}.cancel`, subject: `${view.kind}:${id}` })
        return view
      }),
  }
}

interface Creating extends TokenParts {
  readonly statements: Statements
}

/**
 * A long list is written in slices. Until the last one the token is good for fewer devices, and it cannot be used at
 * all: its text is shown when this is done.
 * @throws MusterError conflict
 */
async function createToken(creating: Creating, token: NewToken): Promise<void> {
  const { store, statements } = creating
  const listed = [...new Set(token.devices ?? [])]
  for await (const { items } of slices(listed)) {
    await store.read(() => refuseForeign(statements, { ids: items, batch: token.batch }))
  }
  let row: number | bigint = 0
  for await (const { items, isFirst } of slices(listed)) {
    await store.write(token, (log) => {
      const batch = batchFor(creating, token)
      if (isFirst) row = insertToken(creating, { token, listed: listed.length })
      for (const id of items) {
        statements.expect.run(id, batch.fleet, batch.id, token.now)
        statements.list.run(row, id)
      }
      refuseForeign(statements, { ids: items, batch: batch.id })
      const kind = kindOf(token)
      const action = isFirst ? `${kind}.create` : `${kind}.list`
      log.audit({ action, subject: `${kind}:${token.id} batch:${token.batch}` })
    })
  }
}

/** Makes the batch when it is new. @throws MusterError conflict when it has another naming */
function batchFor({ fleets }: Creating, { batch: id, naming, now }: NewToken): { id: string; fleet: string } {
  if (fleets.findBatch(id) === undefined) fleets.insertBatch({ id, naming: naming ?? undefined, now })
  const batch = fleets.findBatch(id)
  if (batch === undefined) throw new Error(`no batch ${id}`) // inserted just above
  if (naming === null || naming === batch.naming) return batch
  throw new MusterError('conflict', `Cannot make the token: the batch "${id}" has the naming ${batch.naming}`)
}

/** @throws MusterError csr_key: the key of a claim is no device's, and no other claim's */
function insertToken(
  { statements, certificates }: Creating,
  { token, listed }: { token: NewToken; listed: number },
) {
  if (token.claim) certificates.refuseForeignKey(token.claim.spki, token.id)
  const { lastInsertRowid } = statements.insert.run({
    id: token.id,
    kind: kindOf(token),
    hash: token.hash,
    batch: token.batch,
    uses: token.uses,
    expires_at: token.expiresAt,
    device: null,
    listed,
    approval: token.approval ? 1 : 0,
    created_at: token.now,
  })
  if (token.claim) statements.insertClaim.run({ ...token.claim, token: lastInsertRowid })
  return lastInsertRowid
}

function kindOf({ claim }: NewToken): CredentialKind {
  return claim ? 'claim' : 'token'
}

/** @throws MusterError conflict when another batch, or a service, has one of the ids */
function refuseForeign(
  statements: Statements,
  { ids, batch }: { ids: readonly string[]; batch: string },
): void {
  for (const id of ids) {
    const known = statements.device.get(id)
    if (known === undefined || known.batch === batch) continue
    const owner = known.batch === null ? 'a service' : `a device of the batch "${known.batch}"`
    throw new MusterError('conflict', `Cannot list "${id}": it is ${owner}`)
  }
}

/** @throws MusterError not_found, conflict */
function createReissue(statements: Statements, reissue: NewReissue): void {
  const device = statements.device.get(reissue.device)
  if (device === undefined)
    throw new MusterError('not_found', `Cannot reissue "${reissue.device}": it is not known`)
  if (device.batch === null) {
    throw new MusterError(
      'conflict',
      `Cannot reissue "${device.id}": a service gets its certificates by its name`,
    )
  }
  if (!isAllowed('reissue', device.state)) {
    throw new MusterError('conflict', `Cannot reissue "${device.id}": it is ${device.state}`)
  }
  statements.insert.run({
    id: reissue.id,
    kind: 'token',
    hash: reissue.hash,
    batch: device.batch,
    uses: 1,
    expires_at: reissue.expiresAt,
    device: device.id,
    listed: 0,
    approval: 0,
    created_at: reissue.now,
  })
}

export function tokenView(row: TokenRow, now: number): TokenView {
  const { id, kind, batch, uses, used, device, listed } = row
  const { expires_at: expiresAt, created_at: createdAt } = row
  const view = {
    id,
    kind,
    batch,
    uses,
    used,
    device,
    listed,
    approval: row.approval === 1,
    expiresAt,
    createdAt,
  }
  if (row.cancelled_at !== null) return { ...view, state: 'cancelled' }
  if (used >= uses && uses > 0) return { ...view, state: 'spent' }
  if (row.expires_at !== null && row.expires_at <= now) return { ...view, state: 'expired' }
  return { ...view, state: 'open' }
}
