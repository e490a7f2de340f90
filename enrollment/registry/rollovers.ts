import type { Generation, RolloverState } from '#shared/api/rollover'
import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { Intent } from './ledger.ts'
import type { NewRollover, RolloverCertificate, RolloverIntents, RolloverRecord } from './rollover-records.ts'
import type { Store } from './store.ts'

interface RolloverRow {
  readonly id: string
  readonly kind: 'issuing' | 'root'
  readonly state: RolloverState
  readonly from_cas: string
  readonly to_cas: string
  readonly published_version: number
  readonly version: number
  readonly started_at: number
  readonly cut_over_at: number | null
  readonly aborted_at: number | null
  readonly ended_at: number | null
}

type Step = 'cut-over' | 'abort' | 'finish'

/** From which states a step leads on. */
const STEPS = {
  'cut-over': ['published', 'aborting'],
  abort: ['published', 'cut-over'],
  finish: ['cut-over', 'aborting'],
} as const satisfies Record<Step, readonly RolloverState[]>

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    all: db.prepare<[], RolloverRow>('SELECT * FROM rollovers ORDER BY row'),
    find: db.prepare<[string], RolloverRow>('SELECT * FROM rollovers WHERE id = ?'),
    newest: db.prepare<[], RolloverRow>('SELECT * FROM rollovers ORDER BY row DESC LIMIT 1'),
    certificates: db.prepare<[string], RolloverCertificate>(
      'SELECT id, role, pem FROM rollover_certificates WHERE rollover = ? ORDER BY row',
    ),
    insert: db.prepare<[string, string, string, string, number, number, number]>(
      `INSERT INTO rollovers (id, kind, state, from_cas, to_cas, published_version, version, started_at)
       VALUES (?, ?, 'published', ?, ?, ?, ?, ?)`,
    ),
    insertCertificate: db.prepare<[string, string, string, string]>(
      'INSERT INTO rollover_certificates (id, rollover, role, pem) VALUES (?, ?, ?, ?)',
    ),
    move: db.prepare<[string, number, number | null, number | null, number | null, string]>(
      'UPDATE rollovers SET state = ?, version = ?, cut_over_at = ?, aborted_at = ?, ended_at = ? WHERE id = ?',
    ),
    issuer: db.prepare<[string], { id: string; pem: string; trusted: 0 | 1 }>(
      'SELECT id, pem, trusted FROM issuers WHERE id = ?',
    ),
    putIssuer: db.prepare<[string, string, 0 | 1]>(
      `INSERT INTO issuers (id, pem, trusted) VALUES (?, ?, ?)
       ON CONFLICT (id) DO UPDATE SET trusted = excluded.trusted`,
    ),
    live: db.prepare<[string, number], { live: number }>(
      `SELECT COUNT(*) AS live FROM certificates
       WHERE issuer = ? AND state IN ('reserved', 'issued', 'active') AND not_after > ?`,
    ),
  }
}

type RolloverSteps = Omit<RolloverIntents, 'recordAdoption' | 'adoptionAfter' | 'newestNotBefore'>

/** How one generation of CAs follows another; each step is one row and its changes. */
export function openRollovers(store: Store): RolloverSteps {
  const statements = prepare(store.db)
  return {
    listRollovers: () => store.read(() => statements.all.all().map((row) => record(statements, row))),
    startRollover: (rollover) =>
      store.write(rollover, (log) => {
        refuseStart(statements, rollover)
        publish(statements, rollover, log)
        log.audit({ action: 'rollover.start', subject: `rollover:${rollover.id} kind:${rollover.kind}` })
        return found(statements, rollover.id)
      }),
    cutOverRollover: (id, { devices, adopted }, act) =>
      store.write(act, (log) => {
        const row = permitted(statements, { id, step: 'cut-over' })
        move(statements, { ...row, state: 'cut-over', cut_over_at: act.now, aborted_at: null })
        log.audit({ action: 'rollover.cut-over', subject: `rollover:${id} adopted:${adopted}/${devices}` })
        return found(statements, id)
      }),
    abortRollover: (id, act) =>
      store.write(act, (log) => {
        const row = permitted(statements, { id, step: 'abort' })
        const aborted = { ...row, aborted_at: act.now }
        if (row.state === 'cut-over') move(statements, { ...aborted, state: 'aborting' })
        else end(statements, { row: { ...aborted, state: 'aborted' }, at: act.now, log })
        log.audit({ action: 'rollover.abort', subject: `rollover:${id}` })
        return found(statements, id)
      }),
    finishRollover: (id, act) =>
      store.write(act, (log) => {
        const row = permitted(statements, { id, step: 'finish' })
        refuseLive(statements, { row, now: act.now })
        const state = row.state === 'aborting' ? 'aborted' : 'finished'
        end(statements, { row: { ...row, state }, at: act.now, log })
        log.audit({ action: 'rollover.finish', subject: `rollover:${id} state:${state}` })
        return found(statements, id)
      }),
    liveUnder: (issuer, now) => store.read(() => statements.live.get(issuer, now - 1000)?.live ?? 0),
  }
}

/** @throws MusterError conflict */
function refuseStart({ newest }: Statements, { from }: NewRollover): void {
  const last = newest.get()
  if (last === undefined) return
  if (last.ended_at === null) {
    throw new MusterError(
      'conflict',
      `Cannot start a rollover: "${last.id}" is under way (${last.state}); finish or abort it first`,
    )
  }
  const signing = generation(last.state === 'finished' ? last.to_cas : last.from_cas)
  if (from.device !== signing.device || from.root !== signing.root) {
    throw new MusterError('conflict', 'Cannot start a rollover: other CAs sign since it was prepared')
  }
}

function publish(statements: Statements, rollover: NewRollover, log: Intent): void {
  const { id, kind, from, to, certificates, now } = rollover
  const version = nextVersion(statements)
  statements.insert.run(id, kind, JSON.stringify(from), JSON.stringify(to), version, version, now)
  for (const { id: fingerprint, role, pem } of certificates) {
    statements.insertCertificate.run(fingerprint, id, role, pem)
    if (isForBrokers(role)) trust(statements, { issuer: { id: fingerprint, pem }, trusted: true, log })
  }
}

/** Brokers look at chains of clients: the device CA, and the way from it to a root that they have. */
function isForBrokers(role: RolloverCertificate['role']): boolean {
  return role === 'device' || role === 'root' || role === 'new-with-old'
}

/** The generation that no longer signs loses its trust. */
function end(statements: Statements, { row, at, log }: { row: RolloverRow; at: number; log: Intent }): void {
  const version = nextVersion(statements)
  const [gone, stays] =
    row.state === 'finished'
      ? [row.from_cas, row.to_cas].map(generation)
      : [row.to_cas, row.from_cas].map(generation)
  if (!gone || !stays) throw new TypeError('a rollover has two generations')
  const links = statements.certificates.all(row.id).filter(({ role }) => role === 'new-with-old')
  const ids = [gone.device, gone.root, ...links.map(({ id }) => id)]
  for (const id of ids) {
    const issuer = statements.issuer.get(id)
    const isKept = id === stays.device || id === stays.root
    if (issuer && !isKept) trust(statements, { issuer, trusted: false, log })
  }
  move(statements, { ...row, version, ended_at: at })
}

function trust(
  statements: Statements,
  { issuer, trusted, log }: { issuer: { id: string; pem: string }; trusted: boolean; log: Intent },
): void {
  const { id, pem } = issuer
  statements.putIssuer.run(id, pem, trusted ? 1 : 0)
  log.change({ kind: 'issuer', issuer: { id, pem, trusted } })
}

function move({ move }: Statements, row: RolloverRow): void {
  move.run(row.state, row.version, row.cut_over_at, row.aborted_at, row.ended_at, row.id)
}

function nextVersion({ newest }: Statements): number {
  return (newest.get()?.version ?? 1) + 1
}

/** @throws MusterError not_found, conflict */
function permitted({ find }: Statements, { id, step }: { id: string; step: Step }): RolloverRow {
  const row = find.get(id)
  if (row === undefined) throw missing(id)
  const states: readonly RolloverState[] = STEPS[step]
  if (states.includes(row.state)) return row
  throw new MusterError('conflict', `Cannot ${step} the rollover "${id}": it is ${row.state}`)
}

/** @throws MusterError conflict */
function refuseLive({ live }: Statements, { row, now }: { row: RolloverRow; now: number }): void {
  const [from, to] = [generation(row.from_cas), generation(row.to_cas)]
  const issuer = row.state === 'cut-over' ? from.device : to.device
  const count = live.get(issuer, now - 1000)?.live ?? 0
  if (count === 0) return
  const good = count === 1 ? '1 certificate' : `${count} certificates`
  throw new MusterError(
    'conflict',
    `Cannot finish the rollover "${row.id}": ${good} of the device CA ${issuer.slice(0, 16)} are still good; fix: let the devices renew, or wait until they expire`,
  )
}

function found(statements: Statements, id: string): RolloverRecord {
  const row = statements.find.get(id)
  if (row === undefined) throw missing(id)
  return record(statements, row)
}

function record({ certificates }: Statements, row: RolloverRow): RolloverRecord {
  return {
    id: row.id,
    kind: row.kind,
    state: row.state,
    from: generation(row.from_cas),
    to: generation(row.to_cas),
    publishedVersion: row.published_version,
    version: row.version,
    startedAt: row.started_at,
    cutOverAt: row.cut_over_at,
    abortedAt: row.aborted_at,
    endedAt: row.ended_at,
    certificates: certificates.all(row.id),
  }
}

function generation(text: string): Generation {
  return JSON.parse(text) as Generation // written by `publish` only
}

export function missing(id: string): MusterError {
  return new MusterError('not_found', `Cannot find the rollover "${id}"`)
}
