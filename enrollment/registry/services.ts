import { MusterError } from '#shared/errors'
import { SERVICES_FLEET } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { isAnswerable } from './certificates.ts'
import type { IssuanceParts } from './issuance.ts'
import type { Intent } from './ledger.ts'
import type { Issuance, Registry, ServiceIntent } from './registry.ts'
import { DEVICE_COLUMNS, type DeviceRow } from './rows.ts'

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    device: db.prepare<[string], DeviceRow>(`SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.id = ?`),
    insert: db.prepare<[string, string, number]>(
      `INSERT INTO devices (id, kind, fleet, batch, state, created_at) VALUES (?, 'service', ?, NULL, 'expected', ?)`,
    ),
  }
}

/**
 * Certificates of services. Each key has a line of its own: a service may run in several places, so that the
 * certificate of one does not supersede that of another.
 */
export function openServices(parts: IssuanceParts): Pick<Registry, 'beginService'> {
  const statements = prepare(parts.store.db)
  return {
    beginService: (intent) =>
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
        return (service && repeat(parts, { intent, service })) ?? begin(parts, { statements, intent, log })
      }),
  }
}

function repeat(
  { certificates, reservations }: IssuanceParts,
  of: { intent: ServiceIntent; service: DeviceRow },
): Issuance | null {
  const { intent, service } = of
  const found = certificates
    .ofDevice(service.row)
    .find(
      ({ spki, state, predecessor }) =>
        spki === intent.spkiHash && predecessor === null && state !== 'revoked',
    )
  if (found === undefined || !isAnswerable(found, intent.now)) return null
  if (service.state === 'retired' && found.state !== 'reserved') return null
  return reservations.resume(found, { now: intent.now, issuer: intent.issuer, device: service })
}

function begin(
  { reservations }: IssuanceParts,
  { statements, intent, log }: { statements: Statements; intent: ServiceIntent; log: Intent },
): Issuance {
  if (statements.device.get(intent.id) === undefined) {
    statements.insert.run(intent.id, SERVICES_FLEET, intent.now)
  }
  const device = statements.device.get(intent.id)
  if (device === undefined) throw new Error(`no service ${intent.id}`) // inserted in this transaction
  log.audit({ action: 'service', subject: `service:${intent.id}` })
  return reservations.reserve({
    now: intent.now,
    serial: intent.serial,
    issuer: intent.issuer,
    device,
    spki: intent.spkiHash,
    wish: null,
    token: null,
    predecessor: null,
    line: intent.serial,
    activates: true,
  })
}
