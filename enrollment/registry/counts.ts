import type { DeviceState, IdentityKind } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { IN_FORCE } from './holds.ts'
import { type LongReadParts, readInSlices, type Slices } from './long-reads.ts'
import type { RefusalLog } from './refusals.ts'
import type { Registry, StatusCounts } from './registry.ts'

interface Group {
  readonly fleet: string
  readonly kind: IdentityKind
  readonly state: DeviceState
  readonly synthetic: 0 | 1
}

interface Counted extends Group {
  readonly devices: number
}

/** What a look into the index costs, in rows that are only counted. */
const LOOK = 10

function prepare(db: Sqlite) {
  return {
    /** The next in the order of an index: each costs one look into it, however many devices are in the one before. */
    group: db.prepare<[string, string, string], Group>(
      `SELECT d.fleet, d.kind, d.state, (SELECT f.synthetic FROM fleets f WHERE f.id = d.fleet) AS synthetic
       FROM devices d WHERE (d.fleet, d.kind, d.state) > (?, ?, ?) ORDER BY d.fleet, d.kind, d.state LIMIT 1`,
    ),
    slice: db.prepare<[Group & { after: number; rows: number }], { devices: number; last: number | null }>(
      `SELECT COUNT(*) AS devices, MAX(row) AS last FROM (SELECT row FROM devices
         WHERE fleet = @fleet AND kind = @kind AND state = @state AND row > @after ORDER BY row LIMIT @rows)`,
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
  const groups = (yield* byState(statements, rows)).filter(({ kind }) => kind === 'device')
  const sum = (of: (group: Counted) => boolean) =>
    groups.reduce((total, group) => total + (of(group) ? group.devices : 0), 0)
  const inState = (state: DeviceState) => sum((group) => group.synthetic === 0 && group.state === state)
  return {
    expected: inState('expected'),
    pending: inState('pending'),
    active: inState('active'),
    retired: inState('retired'),
    online: statements.online.get()?.online ?? 0,
    synthetic: sum(({ synthetic }) => synthetic === 1),
    holds: statements.holds.get()?.holds ?? 0,
  }
}

function* byState(statements: ReturnType<typeof prepare>, rows: number): Slices<Counted[]> {
  const all: Counted[] = []
  let group = statements.group.get('', '', '')
  for (let left = rows; group !== undefined; ) {
    let [devices, after] = [0, 0]
    for (let isWhole = false; !isWhole; ) {
      const slice = statements.slice.get({ ...group, after, rows: left })
      isWhole = slice === undefined || slice.devices < left
      devices += slice?.devices ?? 0
      after = slice?.last ?? after
      left -= LOOK + (slice?.devices ?? 0)
      if (left > 0) continue
      left = rows
      yield
    }
    all.push({ ...group, devices })
    group = statements.group.get(group.fleet, group.kind, group.state)
  }
  return all
}
