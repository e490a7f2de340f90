/** Requests that nobody honest would send: what each family of them is made of. */

import type { KeyObject } from 'node:crypto'
import { oid, sequence, setOf, utf8String } from '#shared/pki/der-write'
import { OID } from '#shared/pki/oid'

export interface HostileCsr {
  readonly name: string
  readonly der: Buffer
}

/** So that a request whose wish is ignored enrolls as a device of its own, with a key of its own. */
export interface Victim {
  readonly id: string
  readonly key: KeyObject
}

export type Family = (next: () => Victim) => HostileCsr[]

export const commonName = (text: Buffer) => sequence(setOf(sequence(oid(OID.commonName), text)))
export const named = (id: string) => commonName(utf8String(id))
