import type { FactorScope } from '#shared/api/second-factors'
import { MusterError } from '#shared/errors'
import type { SecondFactor } from '#shared/second-factor'
import { type Fleets, fleetRecord } from './fleets.ts'
import type { Act } from './records.ts'
import { DEVICE_COLUMNS, type DeviceRow, deviceRecord } from './rows.ts'
import type { Store } from './store.ts'

/** The part of the port for what services and fleets ask for beside a certificate. */
export interface SecondFactorIntents {
  /** Null asks for nothing; brokers hear of it at once. @throws MusterError not_found */
  setFactor(scope: FactorScope, factor: SecondFactor | null, act: Act): Promise<void>
  /** Null where the scope itself asks for nothing. @throws MusterError not_found */
  factorOf(scope: FactorScope): Promise<SecondFactor | null>
}

export function openSecondFactorIntents({
  store,
  fleets,
}: {
  readonly store: Store
  readonly fleets: Fleets
}): SecondFactorIntents {
  const { db } = store
  const find = db.prepare<[string], DeviceRow>(
    `SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.id = ? AND d.kind = 'service'`,
  )
  const setService = db.prepare<[string | null, number]>('UPDATE devices SET factor = ? WHERE row = ?')
  const setFleet = db.prepare<[string | null, string]>('UPDATE fleets SET factor = ? WHERE id = ?')
  const service = (id: string): DeviceRow => {
    const row = find.get(id)
    if (row === undefined) throw new MusterError('not_found', `Cannot find the service "${id}"`)
    return row
  }
  return {
    setFactor: ({ kind, id }, factor, act) =>
      store.write(act, (log) => {
        const text = factor === null ? null : JSON.stringify(factor)
        if (kind === 'service') {
          setService.run(text, service(id).row)
          log.change({ kind: 'device', device: deviceRecord(service(id)) })
        } else {
          fleets.require(id)
          setFleet.run(text, id)
          log.change({ kind: 'fleet', fleet: fleetRecord(fleets.require(id)) })
        }
        log.audit({ action: `${kind}.factor`, subject: `${kind}:${id} factor:${factor?.kind ?? 'none'}` })
      }),
    factorOf: ({ kind, id }) =>
      store.read(() => {
        const text = kind === 'service' ? service(id).factor : fleets.require(id).factor
        return text === null ? null : (JSON.parse(text) as SecondFactor) // written by setFactor only
      }),
  }
}
