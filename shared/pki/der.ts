/**
 * A strict reader of DER (X.690): definite and minimal lengths, low tag numbers, no trailing bytes, bounded depth.
 * Every rule is checked while the tree is read, so what it returns needs no second look.
 * Everything here throws SyntaxError, and only that, on bytes that break a rule.
 */

/** Universal tags that certificates, requests and CRLs use. */
export const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  null: 0x05,
  oid: 0x06,
  enumerated: 0x0a,
  utf8String: 0x0c,
  sequence: 0x30,
  set: 0x31,
  printableString: 0x13,
  ia5String: 0x16,
  utcTime: 0x17,
  generalizedTime: 0x18,
} as const

/** Deeper nesting than any honest certificate has (they stay below 12). */
const MAX_DEPTH = 32

const CONSTRUCTED = 0x20
const CLASS_BITS = 0xc0

export interface DerNode {
  readonly tag: number
  /** Tag, length and content. A view of the input. */
  readonly raw: Buffer
  readonly content: Buffer
  /** Empty for primitive elements. */
  readonly children: readonly DerNode[]
}

/** Tag of a context-specific element: `[0]`, `[1]` … */
export function contextTag(number: number, form: 'primitive' | 'constructed'): number {
  return 0x80 | number | (form === 'constructed' ? CONSTRUCTED : 0)
}

/**
 * Reads the one element that `bytes` must consist of.
 * @throws SyntaxError naming the rule that was broken
 */
export function readDer(bytes: Uint8Array): DerNode {
  const input = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const node = readElement(input, 0)
  if (node.raw.length !== input.length) throw new SyntaxError('trailing bytes')
  return node
}

function readElement(input: Buffer, depth: number): DerNode {
  if (depth > MAX_DEPTH) throw new SyntaxError('nested too deep')
  const tag = input[0]
  if (tag === undefined) throw new SyntaxError('truncated')
  if ((tag & 0x1f) === 0x1f) throw new SyntaxError('high tag number')
  const { header, length } = readLength(input)
  if (header + length > input.length) throw new SyntaxError('truncated')
  const raw = input.subarray(0, header + length)
  const content = raw.subarray(header)
  const children = (tag & CONSTRUCTED) === 0 ? [] : readChildren(content, depth)
  const node = { tag, raw, content, children }
  if ((tag & CLASS_BITS) === 0) checkUniversal(node)
  return node
}

function readLength(input: Buffer): { header: number; length: number } {
  const first = input[1]
  if (first === undefined) throw new SyntaxError('truncated')
  if (first < 0x80) return { header: 2, length: first }
  if (first === 0x80) throw new SyntaxError('indefinite length')
  const octets = first & 0x7f
  if (octets > 4) throw new SyntaxError('length too long')
  if (input.length < 2 + octets) throw new SyntaxError('truncated')
  const length = input.readUIntBE(2, octets)
  if (length < 0x80 || length < 2 ** (8 * (octets - 1))) throw new SyntaxError('length not minimal')
  return { header: 2 + octets, length }
}

function readChildren(content: Buffer, depth: number): DerNode[] {
  const children: DerNode[] = []
  for (let rest = content; rest.length > 0; ) {
    const child = readElement(rest, depth + 1)
    children.push(child)
    rest = rest.subarray(child.raw.length)
  }
  return children
}

/** X.690 sections 8, 10 and 11: what DER demands of the universal types. */
const UNIVERSAL_RULES: Readonly<Record<number, (node: DerNode) => void>> = {
  [TAG.sequence]: () => {},
  [TAG.set]: ({ children }) => checkSetOrder(children),
  [TAG.boolean]: ({ content }) => checkBoolean(content),
  [TAG.integer]: ({ content }) => checkInteger(content),
  [TAG.enumerated]: ({ content }) => checkInteger(content),
  [TAG.null]: ({ content }) => checkNull(content),
  [TAG.oid]: ({ content }) => checkOid(content),
  [TAG.bitString]: ({ content }) => checkBitString(content),
}

function checkUniversal(node: DerNode): void {
  const rule = UNIVERSAL_RULES[node.tag]
  if (rule !== undefined) return void rule(node)
  const isListInPrimitiveForm =
    (node.tag | CONSTRUCTED) === TAG.sequence || (node.tag | CONSTRUCTED) === TAG.set
  if (node.tag === 0 || isListInPrimitiveForm) throw new SyntaxError('reserved or misformed tag')
  if ((node.tag & CONSTRUCTED) !== 0) throw new SyntaxError('constructed string')
}

function checkBoolean(content: Buffer): void {
  if (content.length !== 1 || (content[0] !== 0 && content[0] !== 0xff))
    throw new SyntaxError('boolean not DER')
}

function checkNull(content: Buffer): void {
  if (content.length !== 0) throw new SyntaxError('null with content')
}

function checkSetOrder(children: readonly DerNode[]): void {
  for (const [index, child] of children.entries()) {
    const next = children[index + 1]
    if (next !== undefined && Buffer.compare(child.raw, next.raw) > 0) throw new SyntaxError('set not sorted')
  }
}

function checkInteger(content: Buffer): void {
  const [first, second] = content
  if (first === undefined) throw new SyntaxError('integer without content')
  if (second === undefined) return
  if ((first === 0 && second < 0x80) || (first === 0xff && second >= 0x80)) {
    throw new SyntaxError('integer not minimal')
  }
}

/** Arcs of at most 28 bits: more than any registered one, and exact in a number. */
function checkOid(content: Buffer): void {
  if (content.length === 0 || (content.at(-1) ?? 0x80) >= 0x80) throw new SyntaxError('object identifier')
  let octetsOfArc = 0
  for (const octet of content) {
    if (octetsOfArc === 0 && octet === 0x80) throw new SyntaxError('object identifier')
    octetsOfArc = octet < 0x80 ? 0 : octetsOfArc + 1
    if (octetsOfArc > 3) throw new SyntaxError('object identifier')
  }
}

function checkBitString(content: Buffer): void {
  const unused = content[0]
  if (unused === undefined || unused > 7) throw new SyntaxError('bit string')
  const last = content.length > 1 ? (content.at(-1) ?? 0) : 0
  if ((content.length === 1 && unused !== 0) || (last & ((1 << unused) - 1)) !== 0) {
    throw new SyntaxError('bit string')
  }
}

/** The node itself when it has this tag. @throws SyntaxError */
export function expectTag(node: DerNode | undefined, tag: number, what: string): DerNode {
  if (node === undefined || node.tag !== tag) throw new SyntaxError(`no ${what}`)
  return node
}

/** The children of a SEQUENCE with `min` to `max` elements. @throws SyntaxError */
export function fields(
  node: DerNode | undefined,
  what: string,
  [min, max]: [number, number],
): readonly DerNode[] {
  const { children } = expectTag(node, TAG.sequence, what)
  if (children.length < min || children.length > max)
    throw new SyntaxError(`wrong number of fields in ${what}`)
  return children
}

/** Dotted form. @throws SyntaxError */
export function oidOf(node: DerNode | undefined): string {
  const { content } = expectTag(node, TAG.oid, 'object identifier')
  const arcs: number[] = []
  let arc = 0
  for (const octet of content) {
    arc = arc * 128 + (octet & 0x7f)
    if (octet >= 0x80) continue
    arcs.push(arc)
    arc = 0
  }
  const [head = 0, ...tail] = arcs
  const first = Math.min(2, Math.floor(head / 40))
  return [first, head - first * 40, ...tail].join('.')
}

/** An INTEGER between 0 and 2^31. @throws SyntaxError */
export function smallIntegerOf(node: DerNode | undefined): number {
  const { content } = expectTag(node, TAG.integer, 'integer')
  if (content.length > 4 || (content[0] ?? 0x80) >= 0x80) throw new SyntaxError('integer out of range')
  return content.readUIntBE(0, content.length)
}

/** The octets of a BIT STRING without unused bits (keys and signatures). @throws SyntaxError */
export function bitsOf(node: DerNode | undefined): Buffer {
  const { content } = expectTag(node, TAG.bitString, 'bit string')
  if (content[0] !== 0) throw new SyntaxError('bit string with unused bits')
  return content.subarray(1)
}

const PRINTABLE = /^[A-Za-z0-9 '()+,\-./:=?]*$/

/** Text of a UTF8String, PrintableString or IA5String; other string types are refused. @throws SyntaxError */
export function textOf(node: DerNode): string {
  if (node.tag === TAG.utf8String) {
    const text = node.content.toString('utf8')
    if (!Buffer.from(text, 'utf8').equals(node.content)) throw new SyntaxError('text is not UTF-8')
    return text
  }
  const text = node.content.toString('latin1')
  if (node.tag === TAG.printableString && PRINTABLE.test(text)) return text
  if (node.tag === TAG.ia5String && node.content.every((octet) => octet < 0x80)) return text
  throw new SyntaxError('text type')
}
