import { MusterError } from '#shared/errors'
import { type DeviceId, isDeviceId } from '#shared/identity/device'
import { type DerNode, textOf } from '#shared/pki/der'
import { commonNames, nameAttributes } from '#shared/pki/name'
import { OID, oidName } from '#shared/pki/oid'
import {
  type Extension,
  type Extensions,
  type ReadName,
  readBasicConstraints,
  readExtKeyUsage,
  readKeyUsage,
  readSubjectAltName,
} from '#shared/pki/read-extensions'

/** What a request may wish for: names. */
export interface Wishes {
  readonly commonName: DeviceId | null
  /** SPIFFE ids. */
  readonly uris: readonly string[]
  /** Other SAN entries, as they are shown: `URI:…`, `DNS:…`. */
  readonly names: readonly string[]
  /** Attributes of the subject that a profile can set; an attribute that is there twice cannot be read as one. */
  readonly organization: string | null
  readonly organizationalUnit: string | null
}

/**
 * Names and extensions come from the profile; a wish for more is refused by name instead of being dropped in silence,
 * because a device that asked for it would take its certificate for something that it is not.
 * Other attributes of the subject and harmless extensions are passed over.
 * @throws MusterError csr_subject (evidence: wish)
 */
export function checkWishes(csr: Wishing): Pick<Wishes, 'commonName' | 'uris'> {
  const { commonName, uris, names } = wishesFor(csr)
  const [extra] = names
  if (extra !== undefined) throw refused(`SAN ${extra}`)
  return { commonName, uris }
}

/** The same without a word on names and attributes that a profile can grant. @throws MusterError csr_subject */
export function wishesOf(csr: Wishing): Wishes {
  const attributes = readable('subject', () => nameAttributes(csr.subject))
  const attribute = (type: string) => readable('subject', () => attributeOf(attributes, type))
  return {
    ...wishesFor(csr),
    organization: attribute(OID.organization),
    organizationalUnit: attribute(OID.organizationalUnit),
  }
}

interface Wishing {
  readonly subject: DerNode
  readonly extensions: Extensions
}

function wishesFor(csr: Wishing): Pick<Wishes, 'commonName' | 'uris' | 'names'> {
  for (const [type, extension] of csr.extensions) {
    const check = CHECKS.get(type)
    if (check === undefined && extension.isCritical) throw refused(`critical extension ${oidName(type)}`)
    if (check !== undefined) readable(oidName(type), () => check(extension))
  }
  const san = csr.extensions.get(OID.subjectAltName)
  const all = san === undefined ? [] : readSubjectAltName(san)
  const isOwn = (name: ReadName) => name.type === 'uri' && isSpiffeId(name.text)
  return {
    commonName: commonNameOf(csr.subject),
    uris: all.flatMap((name) => (name.type === 'uri' && isOwn(name) ? [name.text] : [])),
    names: all.filter((name) => !isOwn(name)).map(shown),
  }
}

function attributeOf(attributes: ReturnType<typeof nameAttributes>, type: string): string | null {
  const values = attributes.filter((attribute) => attribute.type === type)
  return values.length === 0 ? null : values.map(({ value }) => textOf(value)).join(', ')
}

const CHECKS: ReadonlyMap<string, (extension: Extension) => void> = new Map([
  [OID.basicConstraints, checkBasicConstraints],
  [OID.keyUsage, checkKeyUsage],
  [OID.extKeyUsage, checkExtKeyUsage],
  [OID.subjectAltName, checkSubjectAltName],
])

function checkBasicConstraints(extension: Extension): void {
  if (readBasicConstraints(extension).isCa) throw refused('CA:TRUE')
}

function checkKeyUsage(extension: Extension): void {
  const usages = readKeyUsage(extension)
  for (const usage of ['keyCertSign', 'cRLSign'] as const) {
    if (usages.includes(usage)) throw refused(usage)
  }
}

function checkExtKeyUsage(extension: Extension): void {
  const foreign = readExtKeyUsage(extension).find((purpose) => purpose !== OID.clientAuth)
  if (foreign !== undefined) throw refused(oidName(foreign))
}

function checkSubjectAltName(extension: Extension): void {
  for (const name of readSubjectAltName(extension)) {
    const isForeign = name.type === 'uri' && name.text.startsWith('spiffe:') && !isSpiffeId(name.text)
    if (isForeign || (name.type !== 'uri' && name.type !== 'dns')) throw refused(`SAN ${shown(name)}`)
  }
}

/** `spiffe://<trust domain>/<kind>/<id>`; whose it is gets compared once the id is known. */
function isSpiffeId(uri: string): boolean {
  const match = /^spiffe:\/\/[a-z0-9._-]{1,64}\/(?:device|service|broker)\/([^/]+)$/.exec(uri)
  return match?.[1] !== undefined && isDeviceId(match[1])
}

function shown(name: ReadName): string {
  if (name.type === 'uri' || name.type === 'dns') return `${name.type.toUpperCase()}:${name.text}`
  return name.type === 'ip' ? `IP:${name.octets.join('.')}` : `of type ${name.tag & 0x1f}`
}

function commonNameOf(subject: DerNode): DeviceId | null {
  const names = readable('common name', () => commonNames(subject))
  if (names.length > 1) throw refused(`${names.length} common names`)
  const [name] = names
  if (name === undefined) return null
  if (!isDeviceId(name)) throw refused('a common name that is no device id')
  return name
}

/** An extension that cannot be read is a wish that cannot be granted. */
function readable<Result>(what: string, read: () => Result): Result {
  try {
    return read()
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    throw refused(`unreadable ${what}`, cause)
  }
}

function refused(whole: string, cause?: unknown): MusterError {
  const wish = whole.slice(0, 120)
  return new MusterError('csr_subject', `Cannot grant what the request asks for: ${wish}`, {
    cause,
    evidence: { wish },
  })
}
