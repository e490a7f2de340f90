import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { IssuanceParts } from './issuance.ts'
import type { Intent } from './ledger.ts'
import type { Registry, SignedCertificate } from './registry.ts'
import {
  type CertificateRow,
  certificateRecord,
  DEVICE_COLUMNS,
  type DeviceRow,
  deviceRecord,
} from './rows.ts'

type Statements = ReturnType<typeof prepare>

function prepare(db: Sqlite) {
  return {
    device: db.prepare<[number], DeviceRow>(`SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.row = ?`),
    activate: db.prepare<[number]>(`UPDATE devices SET state = 'active' WHERE row = ?`),
    sign: db.prepare<[string, Buffer, number]>(
      `UPDATE certificates SET fingerprint = ?, der = ?, state = CASE state WHEN 'reserved' THEN 'issued' ELSE state END
       WHERE row = ?`,
    ),
  }
}

/** The last step of an issuance: brokers hear of the certificate, and of its device. */
export function openFinish(parts: IssuanceParts): Pick<Registry, 'finishIssuance'> {
  const statements = prepare(parts.store.db)
  return {
    finishIssuance: (serial, signed, act) =>
      parts.store.write(act, (log) => {
        const reserved = parts.certificates.bySerial(serial)
        if (reserved === undefined) {
          throw new MusterError(
            'not_found',
            `Cannot record the certificate "${serial}": nothing is reserved for it`,
          )
        }
        if (reserved.fingerprint === signed.fingerprint) return
        if (reserved.fingerprint !== null) {
          throw new MusterError(
            'conflict',
            `Cannot record the certificate "${serial}": another one was signed`,
          )
        }
        finish({ ...parts, statements, log }, { reserved, signed })
      }),
  }
}

/** One that was revoked while it was being signed stays revoked: whoever gets hold of it is refused. */
function finish(
  { certificates, statements, log }: IssuanceParts & { statements: Statements; log: Intent },
  { reserved, signed }: { reserved: CertificateRow; signed: SignedCertificate },
): void {
  statements.sign.run(signed.fingerprint, signed.der, reserved.row)
  const device = statements.device.get(reserved.device_row)
  const certificate = certificates.bySerial(reserved.serial)
  const record = certificate && certificateRecord(certificate)
  if (device === undefined || !record) throw new Error(`no certificate ${reserved.serial}`) // written just above
  const isOut = device.state === 'expected' || device.state === 'retired'
  const isBack = isOut && reserved.activates === 1 && reserved.state === 'reserved'
  if (isBack) statements.activate.run(device.row)
  log.change({ kind: 'device', device: deviceRecord(isBack ? { ...device, state: 'active' } : device) })
  log.change({ kind: 'certificate', certificate: record })
  log.audit({ action: 'issue', subject: `certificate:${reserved.serial}` })
}
