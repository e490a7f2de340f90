import type { DeviceState } from '#shared/identity/device'
import { IN_FORCE } from './holds.ts'
import type { RefusalLog } from './refusals.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

interface StateRow {
  readonly state: DeviceState
  readonly synthetic: 0 | 1
  readonly devices: number
  readonly online: number
}

/** How the whole stands; synthetic devices are counted apart, services not at all. */
export function openCounts(parts: { store: Store; refusals: RefusalLog }): Pick<Registry, 'counts'> {
  const { store, refusals } = parts
  const byState = store.db.prepare<[], StateRow>(
    `SELECT d.state, f.synthetic, COUNT(*) AS devices,
       SUM(EXISTS (SELECT 1 FROM connections n WHERE n.device = d.row)) AS online
     FROM devices d JOIN fleets f ON f.id = d.fleet WHERE d.kind = 'device' GROUP BY d.state, f.synthetic`,
  )
  const holds = store.db.prepare<[], { holds: number }>(
    `SELECT COUNT(*) AS holds FROM plans WHERE ${IN_FORCE}`,
  )
  return {
    counts: (now) =>
      store.read(() => {
        const rows = byState.all()
        const real = rows.filter(({ synthetic }) => synthetic === 0)
        const inState = (state: DeviceState) => real.find((row) => row.state === state)?.devices ?? 0
        const sum = (of: readonly number[]) => of.reduce((total, each) => total + each, 0)
        return {
          expected: inState('expected'),
          active: inState('active'),
          retired: inState('retired'),
          online: sum(real.map(({ online }) => online)),
          synthetic: sum(rows.filter(({ synthetic }) => synthetic === 1).map(({ devices }) => devices)),
          holds: holds.get()?.holds ?? 0,
          refusedLastHour: refusals.inLastHour(now),
        }
      }),
  }
}
