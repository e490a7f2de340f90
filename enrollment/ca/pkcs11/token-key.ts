/** Keys in tokens: found, made, and read as far as they may be read. */
import { MusterError } from '#shared/errors'
import { readDer, TAG } from '#shared/pki/der'
import { bitString, NULL, oid, sequence, unsigned } from '#shared/pki/der-write'
import { OID } from '#shared/pki/oid'
import { type Attribute, CKA, CKM, CKO, type Handle } from './cryptoki.ts'
import type { Session } from './token.ts'
import type { KeyUri } from './uri.ts'

export type KeyName = Pick<KeyUri, 'object' | 'id'>

const [TRUE, FALSE] = [Buffer.from([1]), Buffer.from([0])]

/**
 * The private or the public half of a key; null without one.
 * @throws MusterError conflict (more than one), CryptokiError
 */
export async function findKey(
  session: Session,
  { object, id, half }: KeyName & { half: 'private' | 'public' },
): Promise<Handle | null> {
  const name = `${half} ${object ?? ''} ${id?.toString('hex') ?? ''}`
  const known = session.keys.get(name)
  if (known !== undefined) return known
  const [one, another] = await session.module.find(session.handle, [
    { type: CKA.class, value: ulong(half === 'private' ? CKO.privateKey : CKO.publicKey) },
    ...labels({ object, id }),
  ])
  if (one === undefined) return null
  if (another !== undefined) {
    const shown = object ?? id?.toString('hex')
    throw new MusterError(
      'conflict',
      `Cannot use the key "${shown}": the token has more than one; name its id, too`,
    )
  }
  session.keys.set(name, one)
  return one
}

/** Makes a P-256 key that never leaves the token. */
export async function makeKey(session: Session, name: { object: string; id: Buffer }): Promise<void> {
  const common = [{ type: CKA.token, value: TRUE }, ...labels(name)]
  await session.module.generateKeyPair(session.handle, {
    mechanism: CKM.ecKeyPairGen,
    publicKey: [
      ...common,
      { type: CKA.verify, value: TRUE },
      { type: CKA.ecParams, value: oid(OID.prime256v1) },
    ],
    privateKey: [
      ...common,
      { type: CKA.private, value: TRUE },
      { type: CKA.sensitive, value: TRUE },
      { type: CKA.extractable, value: FALSE },
      { type: CKA.sign, value: TRUE },
    ],
  })
}

/** DER of the SubjectPublicKeyInfo of the public half. @throws MusterError not_found, unsupported, conflict, CryptokiError */
export async function readPublicKey(session: Session, name: KeyName): Promise<Buffer> {
  const object = await findKey(session, { ...name, half: 'public' })
  if (object === null) {
    throw new MusterError(
      'not_found',
      `Cannot use the key "${name.object ?? name.id?.toString('hex')}": its public half is not in the token`,
    )
  }
  const read = (type: number) => session.module.attribute(session.handle, { object, type })
  const [parameters, point] = [await read(CKA.ecParams), await read(CKA.ecPoint)]
  if (parameters && point) {
    return sequence(sequence(oid(OID.ecPublicKey), parameters), bitString(rawPoint(point)))
  }
  const [modulus, exponent] = [await read(CKA.modulus), await read(CKA.publicExponent)]
  if (modulus && exponent) {
    const key = sequence(unsigned(modulus), unsigned(exponent))
    return sequence(sequence(oid(OID.rsaEncryption), NULL), bitString(key))
  }
  throw new MusterError('unsupported', 'Cannot use a key of a token: it is neither ECDSA nor RSA')
}

/** CKA_EC_POINT is an OCTET STRING around the point; some modules leave that out. */
function rawPoint(octets: Buffer): Buffer {
  const isBare = octets[0] === 4 && octets.length % 2 === 1 && octets.length - 2 !== octets[1]
  return isBare || octets[0] !== TAG.octetString ? octets : readDer(octets).content
}

function labels({ object, id }: KeyName): Attribute[] {
  return [
    ...(object ? [{ type: CKA.label, value: Buffer.from(object, 'utf8') }] : []),
    ...(id ? [{ type: CKA.id, value: id }] : []),
  ]
}

/** A CK_ULONG as the value of an attribute. */
function ulong(value: number): Buffer {
  const octets = Buffer.alloc(8)
  octets.writeUInt32LE(value)
  return octets
}
