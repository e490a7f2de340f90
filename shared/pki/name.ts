/** Distinguished names (RFC 5280 section 4.1.2.4), one attribute per RDN when written. */
import { type DerNode, expectTag, fields, oidOf, TAG, textOf } from './der.ts'
import { oid, sequence, setOf, utf8String } from './der-write.ts'
import { OID } from './oid.ts'

/** DER of a name; attributes in this order. */
export function encodeName(attributes: {
  readonly organization?: string | null
  readonly organizationalUnit?: string | null
  readonly commonName: string
}): Buffer {
  const { organization, organizationalUnit, commonName } = attributes
  return sequence(
    ...(organization ? [attribute(OID.organization, organization)] : []),
    ...(organizationalUnit ? [attribute(OID.organizationalUnit, organizationalUnit)] : []),
    attribute(OID.commonName, commonName),
  )
}

function attribute(type: string, text: string): Buffer {
  return setOf(sequence(oid(type), utf8String(text)))
}

/** Every attribute of a name, also those that share an RDN, with its value still encoded. @throws SyntaxError */
export function nameAttributes(name: DerNode | undefined): { type: string; value: DerNode }[] {
  return expectTag(name, TAG.sequence, 'name').children.flatMap((rdn) => {
    const { children } = expectTag(rdn, TAG.set, 'relative name')
    if (children.length === 0) throw new SyntaxError('empty relative name')
    return children.map((pair) => {
      const [type, value] = fields(pair, 'name attribute', [2, 2])
      if (value === undefined) throw new SyntaxError('no name value')
      return { type: oidOf(type), value }
    })
  })
}

/** The texts of all common names. @throws SyntaxError */
export function commonNames(name: DerNode | undefined): string[] {
  return nameAttributes(name)
    .filter(({ type }) => type === OID.commonName)
    .map(({ value }) => textOf(value))
}
