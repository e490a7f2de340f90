/** Requests made by hand, for tests of what nobody's tools would make. */
import { type KeyObject, sign } from 'node:crypto'
import { bitString, explicit, integer, oid, sequence, setOf } from '#shared/pki/der-write'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { encodeName } from '#shared/pki/name'
import { OID } from '#shared/pki/oid'

const DEFAULT_KEY = generateKey()

/** A request made by hand, whose every part can be replaced; signed over what it says. */
export interface CraftedCsr {
  readonly key?: KeyObject
  readonly version?: Buffer
  readonly subject?: Buffer
  readonly spki?: Buffer
  readonly extensions?: readonly Buffer[]
  readonly attributes?: Buffer | null
  readonly algorithm?: Buffer
  readonly hash?: string
  readonly signature?: Buffer
}

export function craftCsr(parts: CraftedCsr = {}): Buffer {
  const signer = parts.key ?? DEFAULT_KEY
  const requested = sequence(oid(OID.extensionRequest), setOf(sequence(...(parts.extensions ?? []))))
  const attributes = parts.attributes === undefined ? explicit(0, requested) : parts.attributes
  const info = sequence(
    parts.version ?? integer(0),
    parts.subject ?? encodeName({ commonName: 'dev-1' }),
    parts.spki ?? spkiDer(signer),
    ...(attributes === null ? [] : [attributes]),
  )
  const algorithm = parts.algorithm ?? sequence(oid(OID.ecdsaWithSha256))
  const signature = parts.signature ?? sign(parts.hash ?? 'sha256', info, signer)
  return sequence(info, algorithm, bitString(signature))
}
