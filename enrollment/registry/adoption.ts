import type { Sqlite } from '#shared/sqlite'
import type { AdoptionPage, RolloverIntents } from './rollover-records.ts'
import { missing } from './rollovers.ts'
import type { Store } from './store.ts'

/** Devices that are named when they are missing, in each page. */
const NAMED = 20

interface DeviceRow {
  readonly row: number
  readonly id: string
  readonly has: 0 | 1
}

function prepare(db: Sqlite) {
  return {
    rollover: db.prepare<[string], { version: number; device: string }>(
      `SELECT published_version AS version, json_extract(to_cas, '$.device') AS device
       FROM rollovers WHERE id = ?`,
    ),
    /** A certificate of the new CA says as much: whoever has it was told of the bundle by the same reply. */
    page: db.prepare<[number, string, number, number, number], DeviceRow>(
      `SELECT d.row, d.id, (
           EXISTS (SELECT 1 FROM trust_adoptions a WHERE a.device = d.row AND a.version >= ?)
           OR EXISTS (SELECT 1 FROM certificates n WHERE n.device = d.row AND n.issuer = ? AND n.state = 'active')
         ) AS has
       FROM devices d JOIN fleets f ON f.id = d.fleet
       WHERE d.row > ? AND d.state = 'active' AND f.synthetic = 0
         AND EXISTS (SELECT 1 FROM certificates c
           WHERE c.device = d.row AND c.state IN ('issued', 'active') AND c.not_after > ?)
       ORDER BY d.row LIMIT ?`,
    ),
    put: db.prepare<[number, number, string]>(
      `INSERT INTO trust_adoptions (device, version, at) SELECT row, ?, ? FROM devices WHERE id = ?
       ON CONFLICT (device) DO UPDATE SET version = MAX(version, excluded.version), at = excluded.at`,
    ),
  }
}

/** Who has the new trust bundle, as far as the plane can see it. */
export function openAdoption(store: Store): Pick<RolloverIntents, 'recordAdoption' | 'adoptionAfter'> {
  const statements = prepare(store.db)
  return {
    recordAdoption: (device, version, now) =>
      store.write({ now, by: 'plane' }, () => {
        statements.put.run(version, now, device)
      }),
    adoptionAfter: (id, { after, limit, now }) =>
      store.read(() => {
        const rollover = statements.rollover.get(id)
        if (rollover === undefined) throw missing(id)
        const { version, device } = rollover
        return pageOf(statements.page.all(version, device, after, now - 1000, limit), limit)
      }),
  }
}

function pageOf(rows: readonly DeviceRow[], limit: number): AdoptionPage {
  const waiting = rows.filter(({ has }) => has === 0)
  return {
    devices: rows.length,
    adopted: rows.length - waiting.length,
    waiting: waiting.slice(0, NAMED).map(({ id }) => id),
    next: rows.length < limit ? null : (rows.at(-1)?.row ?? null),
  }
}
