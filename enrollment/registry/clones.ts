import type { CloneAlarm } from '#shared/api'
import type { Evidence } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { OpenClone } from './clone-records.ts'
import type { Fleets } from './fleets.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'

interface OpenRow {
  readonly device: string
  readonly address: string
  readonly otherAddress: string
  readonly broker: string
  readonly told: 0 | 1
  readonly due: 0 | 1
}

export interface RaisedClone {
  readonly device: string
  readonly at: number
  readonly evidence: Evidence
  readonly broker: string
}

/** Takes alarms out of reports, within the caller's transaction. An alarm after a hold is a new one. */
export function openCloneBook(db: Sqlite) {
  const put = db.prepare<[{ device: string; at: number; address: string; other: string; broker: string }]>(
    `INSERT INTO clone_alarms (device, alarms, first_at, last_at, address, other_address, broker)
     SELECT row, 1, @at, @at, @address, @other, @broker FROM devices WHERE id = @device
     ON CONFLICT (device) DO UPDATE SET alarms = alarms + 1, last_at = MAX(last_at, excluded.last_at),
       address = excluded.address, other_address = excluded.other_address, broker = excluded.broker, told = 0,
       plan = CASE WHEN excluded.last_at > COALESCE(held_at, 0) THEN NULL ELSE plan END`,
  )
  return {
    raise({ device, at, evidence, broker }: RaisedClone): void {
      const { address = '', otherAddress = '' } = evidence
      put.run({ device, at, address: String(address), other: String(otherAddress), broker })
    },
  }
}
export type CloneBook = ReturnType<typeof openCloneBook>

const DEVICE = '(SELECT row FROM devices WHERE id = ?)'

function prepare(db: Sqlite) {
  const select = (where: string) => `SELECT d.id AS device, d.fleet, c.alarms, c.first_at AS firstAt,
      c.last_at AS lastAt, c.address, c.other_address AS otherAddress, c.broker, c.plan
    FROM clone_alarms c JOIN devices d ON d.row = c.device WHERE c.last_at >= ? ${where}
    ORDER BY c.last_at DESC, c.device DESC LIMIT ?`
  return {
    newest: db.prepare<[number, number], CloneAlarm>(select('')),
    ofDevice: db.prepare<[number, string, number], CloneAlarm>(select('AND d.id = ?')),
    open: db.prepare<[{ since: number }], OpenRow>(
      `SELECT * FROM (SELECT d.id AS device, c.address, c.other_address AS otherAddress, c.broker, c.told, c.last_at,
           f.quarantine = 1 AND c.plan IS NULL AND c.last_at >= @since AS due
         FROM clone_alarms c JOIN devices d ON d.row = c.device JOIN fleets f ON f.id = d.fleet)
       WHERE told = 0 OR due = 1 ORDER BY last_at LIMIT 100`,
    ),
    tell: db.prepare<[string]>(`UPDATE clone_alarms SET told = 1 WHERE told = 0 AND device = ${DEVICE}`),
    held: db.prepare<[string, number, string]>(
      `UPDATE clone_alarms SET plan = ?, held_at = ? WHERE device = ${DEVICE}`,
    ),
    quarantine: db.prepare<[string], { quarantine: 0 | 1 }>('SELECT quarantine FROM fleets WHERE id = ?'),
    setQuarantine: db.prepare<[0 | 1, string]>('UPDATE fleets SET quarantine = ? WHERE id = ?'),
  }
}

type CloneIntents = Pick<
  Registry,
  'cloneAlarms' | 'openClones' | 'tellClone' | 'cloneHeld' | 'showQuarantine' | 'setQuarantine'
>

export function openClones(parts: { store: Store; fleets: Fleets }): CloneIntents {
  const { store, fleets } = parts
  const statements = prepare(store.db)
  const show = (fleet: string) => {
    fleets.require(fleet)
    return { fleet, clones: statements.quarantine.get(fleet)?.quarantine === 1 }
  }
  return {
    cloneAlarms: ({ since, limit, device }) =>
      store.read(() =>
        device === undefined
          ? statements.newest.all(since, limit)
          : statements.ofDevice.all(since, device, limit),
      ),
    openClones: (since) => store.read(() => statements.open.all({ since }).map(openClone)),
    tellClone: (device, act) =>
      store.write(act, (log) => {
        const { changes } = statements.tell.run(device)
        if (changes > 0) log.audit({ action: 'clone.alarm', subject: `device:${device}` })
      }),
    cloneHeld: (device, plan, act) =>
      store.write({ ...act, cannotWait: true }, () => void statements.held.run(plan, act.now, device)),
    showQuarantine: (fleet) => store.read(() => show(fleet)),
    setQuarantine: (fleet, clones, act) =>
      store.write(act, (log) => {
        if (show(fleet).clones === clones) return show(fleet)
        statements.setQuarantine.run(clones ? 1 : 0, fleet)
        log.audit({ action: `fleet.quarantine.${clones ? 'on' : 'off'}`, subject: `fleet:${fleet}` })
        return show(fleet)
      }),
  }
}

function openClone({ told, due, device, address, otherAddress, broker }: OpenRow): OpenClone {
  return { device, address, otherAddress, broker, isTold: told === 1, mayHold: due === 1 }
}
