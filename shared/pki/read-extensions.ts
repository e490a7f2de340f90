/** Strict readers of extensions (RFC 5280 section 4.2), for certificates and for the wishes of a request. */
import { contextTag, type DerNode, expectTag, fields, oidOf, readDer, smallIntegerOf, TAG } from './der.ts'
import { KEY_USAGE_BIT, type KeyUsage } from './extensions.ts'
import { oidName } from './oid.ts'

export interface Extension {
  readonly isCritical: boolean
  /** The DER inside the OCTET STRING; unread, because extensions that nobody asks for need not be DER. */
  readonly value: Buffer
}
/** Extensions by dotted type. */
export type Extensions = ReadonlyMap<string, Extension>

/** @throws SyntaxError, also when a type appears twice (RFC 5280 section 4.2) */
export function readExtensions(list: DerNode | undefined): Extensions {
  const { children } = expectTag(list, TAG.sequence, 'extensions')
  const extensions = new Map<string, Extension>()
  for (const child of children) {
    const parts = fields(child, 'extension', [2, 3])
    const type = oidOf(parts[0])
    if (extensions.has(type)) throw new SyntaxError(`duplicate extension ${oidName(type)}`)
    const isCritical = parts.length === 3
    // FALSE is the default and therefore must not be written (X.690 section 11.5)
    if (isCritical && expectTag(parts[1], TAG.boolean, 'criticality').content[0] !== 0xff) {
      throw new SyntaxError('criticality written although default')
    }
    extensions.set(type, {
      isCritical,
      value: expectTag(parts.at(-1), TAG.octetString, 'extension value').content,
    })
  }
  return extensions
}

/** @throws SyntaxError */
export function readBasicConstraints(extension: Extension): { isCa: boolean; pathLength: number | null } {
  const parts = fields(readDer(extension.value), 'basicConstraints', [0, 2])
  if (parts.length === 0) return { isCa: false, pathLength: null }
  const isCa = expectTag(parts[0], TAG.boolean, 'cA').content[0] === 0xff
  if (!isCa) throw new SyntaxError('cA written although default')
  return { isCa, pathLength: parts.length === 2 ? smallIntegerOf(parts[1]) : null }
}

/** @throws SyntaxError */
export function readKeyUsage(extension: Extension): KeyUsage[] {
  const { content } = expectTag(readDer(extension.value), TAG.bitString, 'keyUsage')
  const [unused = 0] = content
  // a named bit list ends with a set bit (X.690 section 11.2.2)
  if (content.length > 1 && ((content.at(-1) ?? 0) & (1 << unused)) === 0)
    throw new SyntaxError('keyUsage not minimal')
  const names = Object.entries(KEY_USAGE_BIT) as [KeyUsage, number][] // Object.entries forgets the key type
  return names
    .filter(([, bit]) => ((content[1 + (bit >> 3)] ?? 0) & (0x80 >> (bit & 7))) !== 0)
    .map(([name]) => name)
}

/** Dotted purposes. @throws SyntaxError */
export function readExtKeyUsage(extension: Extension): string[] {
  const { children } = expectTag(readDer(extension.value), TAG.sequence, 'extKeyUsage')
  if (children.length === 0) throw new SyntaxError('empty extKeyUsage')
  return children.map(oidOf)
}

/** A name of a SAN; of the types that Muster has no use for only the tag is kept. */
export type ReadName =
  | { readonly type: 'uri'; readonly text: string }
  | { readonly type: 'dns'; readonly text: string }
  | { readonly type: 'ip'; readonly octets: Buffer }
  | { readonly type: 'other'; readonly tag: number }

/** @throws SyntaxError */
export function readSubjectAltName(extension: Extension): ReadName[] {
  const { children } = expectTag(readDer(extension.value), TAG.sequence, 'subjectAltName')
  if (children.length === 0) throw new SyntaxError('empty subjectAltName')
  return children.map(readName)
}

function readName(node: DerNode): ReadName {
  switch (node.tag) {
    case contextTag(6, 'primitive'):
      return { type: 'uri', text: ia5Of(node) }
    case contextTag(2, 'primitive'):
      return { type: 'dns', text: ia5Of(node) }
    case contextTag(7, 'primitive'):
      if (node.content.length !== 4 && node.content.length !== 16) throw new SyntaxError('IP address length')
      return { type: 'ip', octets: node.content }
    default:
      return { type: 'other', tag: node.tag }
  }
}

/** Printable ASCII only: NUL, controls and anything above end here. */
function ia5Of(node: DerNode): string {
  const text = node.content.toString('latin1')
  if (!/^[\x20-\x7e]+$/.test(text)) throw new SyntaxError('name is not printable ASCII')
  return text
}

/** The keyIdentifier of an AKI, or null when it has none. @throws SyntaxError */
export function readAuthorityKeyId(extension: Extension): Buffer | null {
  const parts = fields(readDer(extension.value), 'authorityKeyIdentifier', [0, 3])
  return parts.find((part) => part.tag === contextTag(0, 'primitive'))?.content ?? null
}

/** @throws SyntaxError */
export function readSubjectKeyId(extension: Extension): Buffer {
  return expectTag(readDer(extension.value), TAG.octetString, 'subjectKeyIdentifier').content
}

/** The one URI of the one distribution point; anything richer is refused. @throws SyntaxError */
export function readDistributionPoint(extension: Extension): string {
  const [point] = fields(readDer(extension.value), 'cRLDistributionPoints', [1, 1])
  const [name] = fields(point, 'distribution point', [1, 1])
  const fullName = onlyChild(expectTag(name, contextTag(0, 'constructed'), 'distribution point name'))
  return uriOf(onlyChild(expectTag(fullName, contextTag(0, 'constructed'), 'full name')))
}

export interface InfoAccess {
  /** Dotted. */
  readonly method: string
  readonly uri: string
}

/** The access descriptions in order; at least one. @throws SyntaxError */
export function readInfoAccesses(extension: Extension): InfoAccess[] {
  const { children } = expectTag(readDer(extension.value), TAG.sequence, 'authorityInfoAccess')
  if (children.length === 0) throw new SyntaxError('empty authorityInfoAccess')
  return children.map((child) => {
    const [method, location] = fields(child, 'access description', [2, 2])
    return { method: oidOf(method), uri: uriOf(location) }
  })
}

/** The one access description. @throws SyntaxError */
export function readInfoAccess(extension: Extension): InfoAccess {
  const [access, ...others] = readInfoAccesses(extension)
  if (access === undefined || others.length > 0) throw new SyntaxError('more than one access description')
  return access
}

function onlyChild(node: DerNode): DerNode | undefined {
  if (node.children.length !== 1) throw new SyntaxError('more than one name')
  return node.children[0]
}

function uriOf(node: DerNode | undefined): string {
  return ia5Of(expectTag(node, contextTag(6, 'primitive'), 'URI'))
}
