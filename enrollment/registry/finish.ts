import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { Certificates } from './certificates.ts'
import type { DeviceRows } from './device-rows.ts'
import type { AuditDraft, Intent } from './ledger.ts'
import type { Registry, SignedCertificate } from './registry.ts'
import {
  type CertificateRow,
  certificateRecord,
  DEVICE_COLUMNS,
  type DeviceRow,
  deviceRecord,
} from './rows.ts'
import type { Store } from './store.ts'

interface Signed {
  readonly reserved: CertificateRow
  readonly signed: SignedCertificate
  /** Who asked for it, where the intent as a whole is not his. */
  readonly by?: AuditDraft['by']
}

interface FinishingParts {
  readonly certificates: Certificates
  readonly devices: DeviceRows
}

/** Turns a reserved certificate into an issued one: brokers hear of it, and of its device. */
export function openFinishing(db: Sqlite, { certificates, devices }: FinishingParts) {
  const sign = db.prepare<[string, Buffer, number]>(
    `UPDATE certificates SET fingerprint = ?, der = ?, state = CASE state WHEN 'reserved' THEN 'issued' ELSE state END
     WHERE row = ?`,
  )
  const find = db.prepare<[number], DeviceRow>(`SELECT ${DEVICE_COLUMNS} FROM devices d WHERE d.row = ?`)
  return {
    /** One that was revoked while it was being signed stays revoked: whoever gets hold of it is refused. */
    finish({ reserved, signed, by }: Signed, log: Intent): void {
      sign.run(signed.fingerprint, signed.der, reserved.row)
      const device = find.get(reserved.device_row)
      const certificate = certificates.bySerial(reserved.serial)
      const record = certificate && certificateRecord(certificate)
      if (device === undefined || !record) throw new Error(`no certificate ${reserved.serial}`) // written just above
      const isIn = reserved.activates === 1 && reserved.state === 'reserved'
      log.change({ kind: 'device', device: deviceRecord(isIn ? devices.takeIn(device) : device) })
      log.change({ kind: 'certificate', certificate: record })
      log.audit({ action: 'issue', subject: `certificate:${reserved.serial}`, ...(by && { by }) })
    },
  }
}
export type Finishing = ReturnType<typeof openFinishing>

interface FinishParts {
  readonly store: Store
  readonly certificates: Certificates
  readonly finishing: Finishing
}

/** The last step of an issuance whose certificate was reserved first. */
export function openFinish({
  store,
  certificates,
  finishing,
}: FinishParts): Pick<Registry, 'finishIssuance'> {
  return {
    finishIssuance: (serial, signed, act) =>
      store.write(act, (log) => {
        const reserved = certificates.bySerial(serial)
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
        finishing.finish({ reserved, signed }, log)
      }),
  }
}
