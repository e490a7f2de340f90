import type { DeviceState } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { IN_FORCE } from './holds.ts'
import { type LongReadParts, readInSlices, type Slices } from './long-reads.ts'
import type { RefusalLog } from './refusals.ts'
import type { Registry, StatusCounts } from './registry.ts'

type Counts = Record<DeviceState | 'synthetic', number>

interface Slice {
  readonly devices: number
  /** Row of the last, null when there is none. */
  readonly last: number | null
}
const NONE: Slice = { devices: 0, last: null }

/** What a look into the index costs, in rows that are only counted. */
const LOOK = 10

function prepare(db: Sqlite) {
  return {
    fleets: db.prepare<[], { id: string; synthetic: 0 | 1 }>('SELECT id, synthetic FROM fleets'),
    /** In the order of an index that holds all of it. */
    slice: db.prepare<[{ fleet: string; state: DeviceState; after: number; rows: number }], Slice>(
      `SELECT COUNT(*) AS devices, MAX(row) AS last FROM (SELECT row FROM devices
         WHERE fleet = @fleet AND kind = 'device' AND state = @state AND row > @after ORDER BY row LIMIT @rows)`,
    ),
    online: db.prepare<[], { online: number }>(
      `SELECT COUNT(*) AS online FROM (SELECT DISTINCT device FROM connections) n
       JOIN devices d ON d.row = n.device JOIN fleets f ON f.id = d.fleet WHERE d.kind = 'device' AND f.synthetic = 0`,
    ),
    holds: db.prepare<[], { holds: number }>(`SELECT COUNT(*) AS holds FROM plans WHERE ${IN_FORCE}`),
  }
}

/** How the whole stands; synthetic devices are counted apart, services not at all. */
export function openCounts(parts: LongReadParts & { refusals: RefusalLog }): Pick<Registry, 'counts'> {
  const { store, refusals } = parts
  return {
    async counts(now) {
      const counted = await readInSlices(parts, countAll)
      return { ...counted, refusedLastHour: await store.read(() => refusals.inLastHour(now)) }
    },
  }
}

function* countAll(db: Sqlite, rows: number): Slices<Omit<StatusCounts, 'refusedLastHour'>> {
  const statements = prepare(db)
  const counts = yield* countDevices(statements, rows)
  return {
    ...counts,
    online: statements.online.get()?.online ?? 0,
    holds: statements.holds.get()?.holds ?? 0,
  }
}

function* countDevices({ fleets, slice }: ReturnType<typeof prepare>, rows: number): Slices<Counts> {
  const counts: Counts = { expected: 0, pending: 0, active: 0, retired: 0, synthetic: 0 }
  let left = rows
  for (const { id, synthetic } of fleets.all()) {
    for (const state of ['expected', 'pending', 'active', 'retired'] as const) {
      for (let after: number | null = 0; after !== null; ) {
        const limit = left
        const { devices, last }: Slice = slice.get({ fleet: id, state, after, rows: limit }) ?? NONE
        counts[synthetic === 1 ? 'synthetic' : state] += devices
        after = devices < limit ? null : last
        left -= LOOK + devices
        if (left > 0) continue
        left = rows
        yield
      }
    }
  }
  return counts
}
