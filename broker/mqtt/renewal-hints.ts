import { hintTopic, type RenewalHint } from '#shared/renewal-hint'
import type { AdmissionRecord } from '../replica/replica.ts'

export interface HintMessage {
  readonly topic: string
  readonly payload: string
}

/** By the row of the certificate, which is read anew when it changes. */
const made = new WeakMap<AdmissionRecord['certificate'], HintMessage>()

/** What a device is told about its certificate; null for a service, and for a record of before there were windows. */
export function hintFor(record: AdmissionRecord | null): HintMessage | null {
  if (record === null || record.device.kind !== 'device') return null
  const known = made.get(record.certificate)
  if (known !== undefined) return known
  const { serial, renewAfter, renewBefore, notAfter } = record.certificate
  if (renewAfter === undefined || renewBefore === undefined) return null
  const hint: RenewalHint = { serial, renewAfter, renewBefore, notAfter }
  const message = { topic: hintTopic(record.device.id), payload: JSON.stringify(hint) }
  made.set(record.certificate, message)
  return message
}
