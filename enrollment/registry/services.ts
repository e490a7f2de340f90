import { MusterError } from '#shared/errors'
import { type DeviceId, SERVICES_FLEET } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { isAnswerable } from './certificates.ts'
import type { IssuanceParts } from './issuance.ts'
import type { Issuance, Registry, ServiceIntent } from './registry.ts'
import type { Recording } from './reservations.ts'
import { DEVICE_COLUMNS, type DeviceRow, type NewDeviceRow } from './rows.ts'

function prepare(db: Sqlite) {
  return {
    device: db.prepare<[string], DeviceRow>(`SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.id = ?`),
  }
}

/**
 * Certificates of services. Each key has a line of its own: a service may run in several places, so that the
 * certificate of one does not supersede that of another.
 */
export function openServices(parts: IssuanceParts): Pick<Registry, 'beginService'> {
  const statements = prepare(parts.store.db)
  return {
    beginService: (intent, signNow) =>
      parts.store.write(intent, (log) => {
        const service = statements.device.get(intent.id)
        if (service !== undefined && service.kind !== 'service') {
          throw new MusterError('id_taken', `Cannot make the service "${intent.id}": a device has this id`, {
            evidence: { device: intent.id },
          })
        }
        const subject = { device: intent.id, batch: null, fleet: SERVICES_FLEET, issuer: intent.issuer.id }
        parts.holds.refuseHeld(subject, intent.id)
        parts.certificates.refuseForeignKey(intent.spkiHash, intent.id)
        const asked = { intent, service, recording: { log, signNow } }
        return repeat(parts, asked) ?? begin(parts, asked)
      }),
  }
}

interface Asked {
  readonly intent: ServiceIntent
  readonly service: DeviceRow | undefined
  readonly recording: Recording
}

function repeat({ certificates, reservations }: IssuanceParts, asked: Asked): Issuance | null {
  const { intent, service, recording } = asked
  if (service === undefined) return null
  const found = certificates
    .ofDevice(service.row)
    .find(
      ({ spki, state, predecessor }) =>
        spki === intent.spkiHash && predecessor === null && state !== 'revoked',
    )
  if (found === undefined || !isAnswerable(found, intent.now)) return null
  if (service.state === 'retired' && found.state !== 'reserved') return null
  const { now, issuer, by } = intent
  return reservations.resume(found, { now, issuer, device: service, by }, recording)
}

function begin({ reservations }: IssuanceParts, { intent, service, recording }: Asked): Issuance {
  const { id, now, serial, issuer, spkiHash: spki } = intent
  const device = service ?? newService(id, now)
  recording.log.audit({ action: 'service', subject: `service:${id} certificate:${serial}` })
  const own = { wish: null, token: null, predecessor: null, line: serial, activates: true }
  return reservations.reserve({ now, serial, issuer, device, spki, ...own }, recording)
}

function newService(id: DeviceId, now: number): NewDeviceRow {
  return { row: null, id, kind: 'service', fleet: SERVICES_FLEET, batch: null, created_at: now }
}
