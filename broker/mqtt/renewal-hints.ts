import { hintTopic, type RenewalHint } from '#shared/renewal-hint'
import type { AdmissionRecord } from '../replica/replica.ts'

export interface HintMessage {
  readonly topic: string
  readonly payload: string
}

/** What a device is told about its certificate; null for a service, and for a record of before there were windows. */
export function hintFor(record: AdmissionRecord | null): HintMessage | null {
  if (record === null || record.device.kind !== 'device') return null
  const { serial, renewAfter, renewBefore, notAfter } = record.certificate
  if (renewAfter === undefined || renewBefore === undefined) return null
  const hint: RenewalHint = { serial, renewAfter, renewBefore, notAfter }
  return { topic: hintTopic(record.device.id), payload: JSON.stringify(hint) }
}
