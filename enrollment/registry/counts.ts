import type { DeviceState } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { IN_FORCE } from './holds.ts'
import type { RefusalLog } from './refusals.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

interface StateRow {
  readonly state: DeviceState
  readonly synthetic: 0 | 1
  readonly devices: number
}

const DEVICES = `devices d JOIN fleets f ON f.id = d.fleet`

function prepare(db: Sqlite) {
  return {
    /** Grouped in the order of an index, and filtered after it: an eighth of the time of a join that is sorted. */
    byState: db.prepare<[], StateRow>(
      `SELECT n.state, n.devices, (SELECT f.synthetic FROM fleets f WHERE f.id = n.fleet) AS synthetic
       FROM (SELECT d.fleet, d.kind, d.state, COUNT(*) AS devices FROM devices d
         GROUP BY d.fleet, d.kind, d.state HAVING +d.kind = 'device') n`,
    ),
    online: db.prepare<[], { online: number }>(
      `SELECT COUNT(*) AS online FROM (SELECT DISTINCT device FROM connections) n JOIN ${DEVICES}
       WHERE d.row = n.device AND d.kind = 'device' AND f.synthetic = 0`,
    ),
    holds: db.prepare<[], { holds: number }>(`SELECT COUNT(*) AS holds FROM plans WHERE ${IN_FORCE}`),
  }
}

/** How the whole stands; synthetic devices are counted apart, services not at all. */
export function openCounts(parts: { store: Store; refusals: RefusalLog }): Pick<Registry, 'counts'> {
  const { store, refusals } = parts
  const statements = prepare(store.db)
  return {
    counts: (now) =>
      store.read(() => {
        const rows = statements.byState.all()
        const sum = (of: (row: StateRow) => boolean) =>
          rows.reduce((total, row) => total + (of(row) ? row.devices : 0), 0)
        const inState = (state: DeviceState) => sum((row) => row.synthetic === 0 && row.state === state)
        return {
          expected: inState('expected'),
          pending: inState('pending'),
          active: inState('active'),
          retired: inState('retired'),
          online: statements.online.get()?.online ?? 0,
          synthetic: sum(({ synthetic }) => synthetic === 1),
          holds: statements.holds.get()?.holds ?? 0,
          refusedLastHour: refusals.inLastHour(now),
        }
      }),
  }
}
