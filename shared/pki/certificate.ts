/** Reads certificates (RFC 5280 section 4.1) strictly, with the details that node:crypto does not tell. */
import {
  bitsOf,
  contextTag,
  type DerNode,
  expectTag,
  fields,
  oidOf,
  readDer,
  smallIntegerOf,
  TAG,
} from './der.ts'
import { type Extensions, readExtensions } from './read-extensions.ts'
import { readTime } from './time.ts'

export interface Tbs {
  /** 1, 2 or 3. */
  readonly version: number
  /** Content octets of the INTEGER: a leading zero octet when the first bit is set, negative when it is not. */
  readonly serial: Buffer
  /** Dotted signature algorithm. */
  readonly algorithm: string
  /** The same with its parameters, as it is encoded. */
  readonly algorithmIdentifier: DerNode
  readonly issuer: DerNode
  /** Ms since 1970. */
  readonly notBefore: number
  readonly notAfter: number
  /** The two dates as they are encoded. */
  readonly validity: DerNode
  readonly subject: DerNode
  readonly spki: DerNode
  readonly extensions: Extensions
}

export interface Certificate {
  readonly tbs: Tbs
  readonly tbsDer: Buffer
  /** The algorithm outside of the signed part. */
  readonly algorithm: string
  readonly signature: Buffer
}

/** @throws SyntaxError */
export function readCertificate(der: Uint8Array): Certificate {
  const [tbsNode, algorithm, signature] = fields(readDer(der), 'certificate', [3, 3])
  const tbs = readTbsNode(tbsNode)
  return {
    tbs,
    tbsDer: expectTag(tbsNode, TAG.sequence, 'tbsCertificate').raw,
    algorithm: oidOf(fields(algorithm, 'signature algorithm', [1, 2])[0]),
    signature: bitsOf(signature),
  }
}

/** Reads the part that is about to be signed. @throws SyntaxError */
export function readTbs(der: Uint8Array): Tbs {
  return readTbsNode(readDer(der))
}

function readTbsNode(node: DerNode | undefined): Tbs {
  const all = fields(node, 'tbsCertificate', [6, 10])
  const hasVersion = all[0]?.tag === contextTag(0, 'constructed')
  const [serial, algorithm, issuer, validity, subject, spki, ...rest] = hasVersion ? all.slice(1) : all
  const [algorithmOid] = fields(algorithm, 'signature algorithm', [1, 2])
  const [notBefore, notAfter] = fields(validity, 'validity', [2, 2])
  return {
    version: hasVersion ? smallIntegerOf(all[0]?.children[0]) + 1 : 1,
    serial: expectTag(serial, TAG.integer, 'serial').content,
    algorithm: oidOf(algorithmOid),
    algorithmIdentifier: expectTag(algorithm, TAG.sequence, 'signature algorithm'),
    issuer: expectTag(issuer, TAG.sequence, 'issuer'),
    notBefore: readTime(notBefore),
    notAfter: readTime(notAfter),
    validity: expectTag(validity, TAG.sequence, 'validity'),
    subject: expectTag(subject, TAG.sequence, 'subject'),
    spki: expectTag(spki, TAG.sequence, 'public key'),
    extensions: extensionsIn(rest),
  }
}

/** Unique identifiers ([1], [2]) went out of use with version 2 and are refused. */
function extensionsIn(rest: readonly DerNode[]): Extensions {
  const [wrapper, ...others] = rest
  if (wrapper === undefined) return new Map()
  const { children } = expectTag(wrapper, contextTag(3, 'constructed'), 'extensions')
  if (others.length > 0 || children.length !== 1)
    throw new SyntaxError('wrong number of fields in extensions')
  return readExtensions(children[0])
}

/** 32 lower-case hex digits, the form of the registry; longer when the serial is. */
export function serialHex(serial: Buffer): string {
  return serial
    .toString('hex')
    .replace(/^(00)+/, '')
    .padStart(32, '0')
}
