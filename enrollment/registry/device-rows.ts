import type { DeviceState, IdentityKind } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import type { DeviceRow, NewDeviceRow } from './rows.ts'

/** Writes devices, for those parts of the registry that let them in. */
export function openDeviceRows(db: Sqlite) {
  const insert = db.prepare<[string, IdentityKind, string, string | null, DeviceState, number]>(
    'INSERT INTO devices (id, kind, fleet, batch, state, created_at) VALUES (?, ?, ?, ?, ?, ?)',
  )
  const activate = db.prepare<[number]>(`UPDATE devices SET state = 'active' WHERE row = ?`)

  /** Its certificate, or an approval, is still to come. */
  function expect(device: DeviceRow | NewDeviceRow): DeviceRow {
    return device.row === null ? add(device, 'expected') : device
  }

  /** As it is once its first certificate is issued. */
  function takeIn(device: DeviceRow | NewDeviceRow): DeviceRow {
    if (device.row === null) return add(device, 'active')
    if (device.state !== 'expected' && device.state !== 'retired') return device
    activate.run(device.row)
    return { ...device, state: 'active' }
  }

  function add(device: NewDeviceRow, state: DeviceState): DeviceRow {
    const { id, kind, fleet, batch, created_at } = device
    const { lastInsertRowid } = insert.run(id, kind, fleet, batch, state, created_at)
    const none = { last_seen_at: null, attributes: '{}', policy: null, factor: null }
    return { ...device, row: Number(lastInsertRowid), state, ...none }
  }

  return { expect, takeIn }
}
export type DeviceRows = ReturnType<typeof openDeviceRows>
