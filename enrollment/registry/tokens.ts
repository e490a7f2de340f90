import type { TokenView } from '#shared/api'
import { MusterError } from '#shared/errors'
import { isAllowed } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import type { Fleets } from './fleets.ts'
import type { NewReissue, NewToken, Registry } from './registry.ts'
import { DEVICE_COLUMNS, type DeviceRow } from './rows.ts'
import type { Store } from './store.ts'

interface TokenRow {
  readonly row: number
  readonly id: string
  readonly batch: string
  readonly uses: number
  readonly used: number
  readonly expires_at: number | null
  readonly cancelled_at: number | null
  readonly device: string | null
  readonly listed: number
  readonly created_at: number
}

interface NewRow {
  readonly id: string
  readonly hash: string
  readonly batch: string
  readonly uses: number
  readonly expires_at: number | null
  readonly device: string | null
  readonly listed: number
  readonly created_at: number
}

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    insert: db.prepare<[NewRow]>(
      `INSERT INTO tokens (id, hash, batch, uses, expires_at, device, listed, created_at)
       VALUES (@id, @hash, @batch, @uses, @expires_at, @device, @listed, @created_at)`,
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
      `INSERT INTO devices (id, kind, fleet, batch, state, created_at) VALUES (?, 'device', ?, ?, 'expected', ?)`,
    ),
  }
}

interface TokenParts {
  readonly store: Store
  readonly fleets: Fleets
}

type TokenIntents = Pick<
  Registry,
  'createToken' | 'createReissue' | 'listTokens' | 'findToken' | 'cancelToken'
>

export function openTokens({ store, fleets }: TokenParts): TokenIntents {
  const statements = prepare(store.db)
  const show = (id: string, now: number) => {
    const row = statements.find.get(id)
    if (row === undefined) throw new MusterError('not_found', `Cannot find the token "${id}"`)
    return tokenView(row, now)
  }

  return {
    createToken: (token) =>
      store.write(token, (log) => {
        createToken({ fleets, statements }, token)
        log.audit({ action: 'token.create', subject: `token:${token.id} batch:${token.batch}` })
        return show(token.id, token.now)
      }),
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
      store.read(() => {
        const row = statements.byHash.get(hash)
        return row === undefined ? null : tokenView(row, now)
      }),
    cancelToken: (id, act) =>
      store.write(act, (log) => {
        const { changes } = statements.cancel.run(act.now, id)
        if (changes > 0) log.audit({ action: 'token.cancel', subject: `token:${id}` })
        return show(id, act.now)
      }),
  }
}

/** @throws MusterError conflict */
function createToken(
  { fleets, statements }: { fleets: Fleets; statements: Statements },
  token: NewToken,
): void {
  const naming = token.naming ?? undefined
  if (fleets.findBatch(token.batch) === undefined)
    fleets.insertBatch({ id: token.batch, naming, now: token.now })
  const batch = fleets.findBatch(token.batch)
  if (batch === undefined) throw new Error(`no batch ${token.batch}`) // inserted just above
  if (naming !== undefined && naming !== batch.naming) {
    throw new MusterError(
      'conflict',
      `Cannot make the token: the batch "${batch.id}" has the naming ${batch.naming}`,
    )
  }
  const listed = [...new Set(token.devices ?? [])]
  const { lastInsertRowid: row } = statements.insert.run({
    id: token.id,
    hash: token.hash,
    batch: token.batch,
    uses: token.uses,
    expires_at: token.expiresAt,
    device: null,
    listed: listed.length,
    created_at: token.now,
  })
  for (const id of listed) {
    expect(statements, { id, batch, now: token.now })
    statements.list.run(row, id)
  }
}

/** @throws MusterError conflict when another batch, or a service, has the id */
function expect(
  statements: Statements,
  { id, batch, now }: { id: string; batch: { id: string; fleet: string }; now: number },
): void {
  const known = statements.device.get(id)
  if (known === undefined) {
    statements.expect.run(id, batch.fleet, batch.id, now)
  } else if (known.batch !== batch.id) {
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
    hash: reissue.hash,
    batch: device.batch,
    uses: 1,
    expires_at: reissue.expiresAt,
    device: device.id,
    listed: 0,
    created_at: reissue.now,
  })
}

function tokenView(row: TokenRow, now: number): TokenView {
  const { id, batch, uses, used, device, listed } = row
  const view = { id, batch, uses, used, device, listed, expiresAt: row.expires_at, createdAt: row.created_at }
  if (row.cancelled_at !== null) return { ...view, state: 'cancelled' }
  if (used >= uses) return { ...view, state: 'spent' }
  if (row.expires_at !== null && row.expires_at <= now) return { ...view, state: 'expired' }
  return { ...view, state: 'open' }
}
