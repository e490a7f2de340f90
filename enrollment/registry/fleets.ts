import type { BatchView, FleetRequest, FleetView, Naming } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { FleetRecord, Policy } from '#shared/feed'
import { isBatchId, SERVICES_FLEET } from '#shared/identity/device'
import type { SecondFactor } from '#shared/second-factor'
import type { Sqlite } from '#shared/sqlite'
import { DEFAULT_FLEET, DEFAULT_POLICY } from './defaults.ts'
import type { Intent } from './ledger.ts'
import { profileColumns, profileOf } from './profiles.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

export interface FleetRow {
  readonly row: number
  readonly id: string
  readonly lifetime_ms: number
  readonly profile: string
  readonly policy: string
  readonly policy_epoch: number
  readonly factor: string | null
  readonly synthetic: 0 | 1
  readonly created_at: number
}

interface BatchRow {
  readonly id: string
  readonly fleet: string
  readonly naming: Naming
  readonly approval: 0 | 1
  readonly created_at: number
}

interface CountedBatchRow extends BatchRow {
  readonly devices: number
  readonly tokens: number
}

export interface NewBatch {
  readonly id: string
  readonly fleet?: string | undefined
  readonly naming?: Naming | undefined
  readonly approval?: boolean | undefined
  readonly now: number
}

export function fleetRecord(row: FleetRow): FleetRecord {
  const policy = JSON.parse(row.policy) as Policy // written by insertFleet and setPolicy only
  const asked = row.factor === null ? {} : { factor: JSON.parse(row.factor) as SecondFactor } // by setFactor only
  return { id: row.id, policy, policyEpoch: row.policy_epoch, ...asked }
}

/** Fleets and batches, for those parts of the registry that make or read them within an intent of their own. */
export function openFleets(db: Sqlite) {
  const find = db.prepare<[string], FleetRow>('SELECT * FROM fleets WHERE id = ?')
  const insert = db.prepare<[string, number, string, string, 0 | 1, number]>(
    `INSERT INTO fleets (id, lifetime_ms, profile, policy, policy_epoch, synthetic, created_at)
     VALUES (?, ?, ?, ?, 1, ?, ?)`,
  )
  const findBatch = db.prepare<[string], BatchRow>(
    'SELECT id, fleet, naming, approval, created_at FROM batches WHERE id = ?',
  )
  const insertBatch = db.prepare<[string, string, string, number, number]>(
    'INSERT INTO batches (id, fleet, naming, approval, created_at) VALUES (?, ?, ?, ?, ?)',
  )

  return {
    find: (id: string) => find.get(id),
    findBatch: (id: string) => findBatch.get(id),
    /** @throws MusterError conflict */
    insert(fleet: FleetRequest, at: { now: number; log: Intent }): FleetRow {
      if (find.get(fleet.id) !== undefined) {
        throw new MusterError('conflict', `Cannot make the fleet "${fleet.id}": there is one of this name`)
      }
      const policy = JSON.stringify(fleet.policy ?? DEFAULT_POLICY)
      const { lifetimeMs = fleet.lifetimeMs, ...rest } = fleet.profile ?? {}
      const { lifetime_ms, profile } = profileColumns({ ...rest, ...(lifetimeMs ? { lifetimeMs } : {}) })
      insert.run(fleet.id, lifetime_ms, profile, policy, fleet.synthetic ? 1 : 0, at.now)
      const row = this.require(fleet.id)
      at.log.change({ kind: 'fleet', fleet: fleetRecord(row) })
      return row
    },
    /** @throws MusterError not_found */
    require(id: string): FleetRow {
      const row = find.get(id)
      if (row === undefined) throw new MusterError('not_found', `Cannot find the fleet "${id}"`)
      return row
    },
    /** @throws MusterError invalid_request, conflict, not_found (the fleet) */
    insertBatch(batch: NewBatch): void {
      if (!isBatchId(batch.id)) {
        throw new MusterError('invalid_request', `Cannot make the batch "${batch.id}": the name is reserved`)
      }
      if (findBatch.get(batch.id) !== undefined) {
        throw new MusterError('conflict', `Cannot make the batch "${batch.id}": there is one of this name`)
      }
      const fleet = this.require(batch.fleet ?? DEFAULT_FLEET).id
      if (fleet === SERVICES_FLEET) {
        throw new MusterError('conflict', `Cannot make the batch "${batch.id}": services have no batches`)
      }
      insertBatch.run(batch.id, fleet, batch.naming ?? 'csr', batch.approval ? 1 : 0, batch.now)
    },
  }
}
export type Fleets = ReturnType<typeof openFleets>

type FleetIntents = Pick<Registry, 'createFleet' | 'listFleets' | 'setPolicy' | 'createBatch' | 'listBatches'>

export function openFleetIntents({ store, fleets }: { store: Store; fleets: Fleets }): FleetIntents {
  const counted = 'SELECT f.*, (SELECT COUNT(*) FROM devices d WHERE d.fleet = f.id) AS devices FROM fleets f'
  const list = store.db.prepare<[], FleetRow & { devices: number }>(`${counted} ORDER BY f.row`)
  const show = store.db.prepare<[string], FleetRow & { devices: number }>(`${counted} WHERE f.id = ?`)
  const setPolicy = store.db.prepare<[string, string]>(
    'UPDATE fleets SET policy = ?, policy_epoch = policy_epoch + 1 WHERE id = ?',
  )
  const batches = `SELECT b.id, b.fleet, b.naming, b.approval, b.created_at,
      (SELECT COUNT(*) FROM devices d WHERE d.batch = b.id) AS devices,
      (SELECT COUNT(*) FROM tokens t WHERE t.batch = b.id) AS tokens FROM batches b`
  const showBatch = store.db.prepare<[string], CountedBatchRow>(`${batches} WHERE b.id = ?`)
  const listBatches = store.db.prepare<[], CountedBatchRow>(`${batches} ORDER BY b.row`)
  const view = (id: string) => fleetView(show.get(id) ?? { ...fleets.require(id), devices: 0 })

  return {
    createFleet: (fleet, act) =>
      store.write(act, (log) => {
        fleets.insert(fleet, { now: act.now, log })
        log.audit({ action: 'fleet.create', subject: `fleet:${fleet.id}` })
        return view(fleet.id)
      }),
    listFleets: () => store.read(() => list.all().map(fleetView)),
    setPolicy: (fleet, policy, act) =>
      store.write(act, (log) => {
        fleets.require(fleet)
        setPolicy.run(JSON.stringify(policy), fleet)
        log.change({ kind: 'fleet', fleet: fleetRecord(fleets.require(fleet)) })
        log.audit({ action: 'fleet.policy', subject: `fleet:${fleet}` })
        return view(fleet)
      }),
    createBatch: (batch, act) =>
      store.write(act, (log) => {
        fleets.insertBatch({ ...batch, now: act.now })
        log.audit({ action: 'batch.create', subject: `batch:${batch.id}` })
        return batchView(showBatch.get(batch.id))
      }),
    listBatches: () => store.read(() => listBatches.all().map(batchView)),
  }
}

function fleetView(row: FleetRow & { devices: number }): FleetView {
  const { id, policy, policyEpoch } = fleetRecord(row)
  const { lifetime_ms: lifetimeMs, devices, created_at: createdAt } = row
  const profile = profileOf(row)
  return { id, lifetimeMs, policy, policyEpoch, profile, synthetic: row.synthetic === 1, devices, createdAt }
}

function batchView(row: CountedBatchRow | undefined): BatchView {
  if (row === undefined) throw new Error('no such batch') // inserted in this transaction
  const { id, fleet, naming, devices, tokens, created_at: createdAt } = row
  return { id, fleet, naming, approval: row.approval === 1, devices, tokens, createdAt }
}
